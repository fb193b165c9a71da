"""``kdlib fly``: a film of a smoke run, which is only read; what cannot be filmed is one
sentence.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from kdlib import cli
from kdlib.errors import ConfigError
from kdlib.lab.pipeline import Run
from kdlib.tools.scans.fly import fly

DEAD = (sys.executable, "-c", "raise SystemExit(3)")


def contents(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_filmed_and_left_as_it_was(smoke_run: Run, tmp_path: Path) -> None:
    before = contents(smoke_run.folder)
    made = fly(
        smoke_run.folder,
        tmp_path / "a.gif",
        data=smoke_run.data,
        images=2,
        panel=(160, 120),
        worker=DEAD,
    )
    assert contents(smoke_run.folder) == before
    with Image.open(made.path) as movie:
        assert movie.n_frames == 2 and movie.size == (322, 172)
    assert made.segment in str(made) and "matplotlib" in str(made)
    assert any(
        name.startswith(made.segment) for name in smoke_run.store.split("validation").frame_ids()
    )
    again = fly(
        smoke_run.folder,
        tmp_path / "b.gif",
        data=smoke_run.data,
        segment=made.segment[:12],
        arm="alone",
        images=1,
        panel=(160, 120),
        worker=DEAD,
    )
    assert again.segment == made.segment


def test_what_cannot_be_filmed(smoke_run: Run, tmp_path: Path) -> None:
    for run, out, options, message in (
        (smoke_run.folder, "a.mp4", {}, r"written as \.gif, not '\.mp4'"),
        (tmp_path, "a.gif", {}, "no folder of a run with students"),
        (smoke_run.folder, "a.gif", {"segment": "nobody"}, "begins the names of 0 segments"),
        (smoke_run.folder, "a.gif", {"arm": "best"}, "has no arm 'best'"),
    ):
        with pytest.raises(ConfigError, match=message):
            fly(run, tmp_path / out, data=smoke_run.data, **options)
    assert not list(tmp_path.iterdir())


def test_the_command_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["kdlib", "fly", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2 and "kdlib: " in capsys.readouterr().err
