"""A progress bar: one line that moves on a terminal or in a notebook, now and then a new line in a
log.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO, TypeVar

from tqdm.auto import tqdm

_T = TypeVar("_T")


class _Lines:
    """Lets a bar write lines one below the other instead of over each other."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        if text.strip():
            self._stream.write(text.strip() + "\n")

    def flush(self) -> None:
        self._stream.flush()


def watched(items: Iterable[_T], total: int, title: str, unit: str, show: bool) -> Iterable[_T]:
    """Return the items under a bar that redraws every 2 seconds on a terminal or in a notebook, and
    every 30 in a log.
    """
    options: dict[str, Any] = {"mininterval": 2}
    if not sys.stderr.isatty() and "ipykernel" not in sys.modules:
        options = {"mininterval": 30, "ncols": 100, "file": _Lines(sys.stderr)}
    return tqdm(items, total=total, desc=title, unit=unit, disable=not show, **options)  # type: ignore[no-any-return]
