"""Parts are plain JSON values; a cell reads the same in every table."""

from __future__ import annotations

import pandas as pd

from kdlib.lab.parts import markdown_table, part


def test_part_is_plain_json() -> None:
    table = pd.DataFrame({"a": [1, 3], "b": [2.5, float("nan")]})
    assert part(
        "T", "words", sentences=("one",), tables={"numbers": table}, pictures={"a.png": "seen"}
    ) == {
        "title": "T",
        "text": "words",
        "sentences": ["one"],
        "tables": [{"caption": "numbers", "rows": [{"a": 1, "b": 2.5}, {"a": 3, "b": None}]}],
        "pictures": [{"file": "a.png", "caption": "seen"}],
    }
    assert part("T") == {"title": "T", "text": "", "sentences": [], "tables": [], "pictures": []}


def test_markdown_table() -> None:
    rows = [["x", 1234, 1.005, None], ["y", 2, -0.5, True]]
    assert markdown_table("abcd", rows, right="b").splitlines() == [
        "| a | b | c | d |",
        "|---|---:|---|---|",
        "| x | 1,234 | 1.00 | – |",
        "| y | 2 | -0.50 | yes |",
    ]
