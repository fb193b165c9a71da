"""Stage results with their card."""

from __future__ import annotations

import pytest

from kdlib import records
from kdlib.records import is_complete, mark_complete, read_history, write_result


def test_result_carries_its_card(tmp_path):
    path = write_result(tmp_path / "stage", {"mAPH": 0.5}, config_hash="abc", seed=3)
    values = records.read_json(path)
    assert values["mAPH"] == 0.5
    card = values["card"]
    assert card["config_hash"] == "abc" and card["seed"] == 3
    assert {"python", "torch", "numpy"} <= set(card["versions"])
    assert card["hardware"]["cores"] >= 1 and card["hardware"]["memory_gb"] > 0 and card["hardware"]["cpu"]


def test_bad_value_keeps_the_earlier_result(tmp_path):
    path = write_result(tmp_path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_result(tmp_path, {"a": float("inf")})
    assert records.read_json(path)["a"] == 1


def test_marks(tmp_path):
    mark_complete(tmp_path, "k1")
    assert is_complete(tmp_path, "k1") and not is_complete(tmp_path, "k2")


def test_history_by_folder_or_file(tmp_path):
    (tmp_path / "history.jsonl").write_text('{"step": 1}\n{"st')
    assert read_history(tmp_path) == [{"step": 1}] == read_history(tmp_path / "history.jsonl")


def test_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert records.sha256(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_commit_is_a_hash_or_empty():
    text = records.commit().rstrip("+")
    assert text == "" or len(text) == 40
