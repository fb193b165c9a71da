"""The driver's log can be read with tail: whole lines, no carriage returns, each with its time."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from kdlib.lab import runlog
from kdlib.lab.runlog import RunLog


def test_pieces_become_whole_lines(capsys: pytest.CaptureFixture[str]) -> None:
    file = io.StringIO()
    log = RunLog(file)
    for piece in (
        "teacher: st",
        "ep 1\nteacher: step 2",
        "\n",
        ("10 %\r20 %\r100 %\r\nnot yet ended"),
    ):
        log.write(piece)
        log.flush()
    assert capsys.readouterr().out == "teacher: step 1\nteacher: step 2\n100 %\n"
    lines = file.getvalue().splitlines()
    assert [line[20:] for line in lines] == ["teacher: step 1", "teacher: step 2", "100 %"]
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in lines)


def test_a_second_call_adds_to_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("one", "two"):
        with runlog.opened(tmp_path) as log:
            print(word, file=log)
            assert (tmp_path / runlog.LOG).read_text().endswith(f" {word}\n"), (
                "a line that is said is there to be read"
            )
    assert len((tmp_path / runlog.LOG).read_text().splitlines()) == 2
    assert capsys.readouterr().out == "one\ntwo\n"
