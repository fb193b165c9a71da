"""A number of things to do enters, a progress bar leaves: one line that moves on a terminal, now and then a new line in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, TextIO

from tqdm.auto import tqdm


class _Lines:
    """Lets a bar write lines one below the other instead of over each other."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        if text.strip():
            self._stream.write(text.strip() + "\n")

    def flush(self) -> None:
        self._stream.flush()


def progress_bar(total: int, title: str, unit: str, show: bool) -> Any:
    """Return a tqdm bar that redraws every 2 seconds on a terminal or in a notebook, and every 30 in a log."""
    if sys.stderr.isatty() or "ipykernel" in sys.modules:
        return tqdm(total=total, desc=title, unit=unit, mininterval=2, disable=not show)
    return tqdm(total=total, desc=title, unit=unit, mininterval=30, ncols=100, file=_Lines(sys.stderr), disable=not show)


def watched(count: int, title: str, unit: str, show: bool) -> Iterator[int]:
    """Yield 0 to ``count`` - 1 under a progress bar."""
    with progress_bar(count, title, unit, show) as bar:
        for number in range(count):
            yield number
            bar.update()
