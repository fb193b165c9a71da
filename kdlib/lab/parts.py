"""The parts a notebook hands over for report and published page (title, text, tables, pictures),
and tables as Markdown.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from kdlib import records
from kdlib.types import Json

Words = Mapping[str, str]  # what people read, by name: titles of arms, captions of pictures


def part(
    title: str,
    text: str = "",
    *,
    sentences: Sequence[str] = (),
    tables: Mapping[str, pd.DataFrame] | None = None,
    pictures: Words | None = None,
) -> Json:
    """Return one chapter of a run's report, as plain JSON values for a notebook's result.

    In ``text`` a blank line begins a paragraph and backticks mark code; tables go by their caption;
    pictures are captions by file in the notebook's folder: a .png, or the .json of a plotly figure.
    """
    return {
        "title": title,
        "text": text,
        "sentences": list(sentences),
        "tables": [
            {"caption": caption, "rows": records.table_rows(table)}
            for caption, table in (tables or {}).items()
        ],
        "pictures": [
            {"file": file, "caption": caption} for file, caption in (pictures or {}).items()
        ],
    }


def cell_text(value: Any) -> str:
    """Return a cell as every table shows it: two decimals, thousands apart, a dash for what is
    missing.
    """
    if value is None or value != value:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def markdown_table(
    header: Iterable[str], rows: Iterable[Iterable[Any]], right: Collection[str] = ()
) -> str:
    """Return a table as Markdown; columns named in ``right`` are set right."""
    names = list(header)
    rule = "|".join("---:" if name in right else "---" for name in names)
    lines = [f"| {' | '.join(map(cell_text, row))} |" for row in rows]
    return "\n".join([f"| {' | '.join(names)} |", f"|{rule}|", *lines])
