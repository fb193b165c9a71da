"""Atomic records and their damaged cousins."""

from __future__ import annotations

import json
import os
import sys

import pytest

from kdlib import records
from kdlib.errors import DataError


def test_round_trip_makes_the_folder(tmp_path):
    path = tmp_path / "a" / "b.json"
    records.write_json(path, {"x": [1, 2.5, None], "y": {"z": "ä"}})
    assert records.read_json(path) == {"x": [1, 2.5, None], "y": {"z": "ä"}}
    assert [p.name for p in path.parent.iterdir()] == ["b.json"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failing_disk_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "a.json"
    records.write_json(path, {"x": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left"):
        records.write_json(path, {"x": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert json.loads(path.read_text()) == {"x": 1}


def test_nan_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        records.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not JSON"), ("", "is not JSON"), ("[1]", "holds a list")]
)
def test_damaged_file_is_named(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"a\.json {message}"):
        records.read_json(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.json does not exist"):
        records.read_json(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ('{"a": 1}\n', 1),
        ('{"a": 1}\n{"a"', 1),
        ('{"a": 1}\n{"a": 2}', 2),
        ('{"a": 1}\n\n{"a": 2}\n', 2),
    ],
)
def test_lines_tolerate_a_half_last_one(tmp_path, text, count):
    path = tmp_path / "h.jsonl"
    path.write_text(text)
    assert len(records.read_json_lines(path)) == count


def test_lines_of_a_missing_file(tmp_path):
    assert records.read_json_lines(tmp_path / "none") == []


def test_damaged_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "h.jsonl"
    path.write_text('{"a": 1}\n{"a"\n{"a": 2}\n')
    with pytest.raises(DataError, match=r"h\.jsonl, line 2 is not JSON"):
        records.read_json_lines(path)


def test_completion_mark(tmp_path):
    assert not records.is_complete(tmp_path, "k")
    records.mark_complete(tmp_path, "k")
    assert records.is_complete(tmp_path, "k")
    assert not records.is_complete(tmp_path, "other")


def test_result_carries_its_card(tmp_path):
    path = records.write_result(tmp_path / "stage", {"mAPH": 0.5})
    values = records.read_json(path)
    assert values["mAPH"] == 0.5
    card = values["card"]
    assert {"python", "torch", "numpy"} <= set(card["versions"])
    assert (
        card["hardware"]["cores"] >= 1
        and card["hardware"]["memory_gb"] > 0
        and card["hardware"]["cpu"]
    )


def test_bad_value_keeps_the_earlier_result(tmp_path):
    path = records.write_result(tmp_path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        records.write_result(tmp_path, {"a": float("inf")})
    assert records.read_json(path)["a"] == 1


def test_history_of_a_folder(tmp_path):
    (tmp_path / "history.jsonl").write_text('{"step": 1}\n{"st')
    assert records.read_history(tmp_path) == [{"step": 1}]


def test_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert (
        records.sha256(tmp_path / "f")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_commit_is_a_hash_or_empty():
    text = records.commit().rstrip("+")
    assert text == "" or len(text) == 40


@pytest.mark.parametrize(
    ("argv", "handed", "command"),
    [
        (["/x/kdlib/__main__.py", "run", "demo", "-p", "ARMS=a b"], "", "run demo -p 'ARMS=a b'"),
        (["/x/bin/kdlib", "run", "demo"], "", "run demo"),
        (["/x/ipykernel_launcher.py", "-f", "k.json"], "python -m kdlib run demo", "run demo"),
        (["/x/kdlib/__main__.py", "train", "students/a"], "python -m kdlib run demo", "run demo"),
    ],
)
def test_a_card_names_the_command_that_was_typed(
    argv: list[str], handed: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.delenv(records.COMMAND, raising=False)
    if handed:
        monkeypatch.setenv(records.COMMAND, handed)
    assert records.provenance()["command"] == f"python -m kdlib {command}"
