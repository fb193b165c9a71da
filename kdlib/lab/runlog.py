"""The log of a run's driver: whole lines on the screen and, each with its time, in ``run.log``."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

LOG = "run.log"


class RunLog:
    """A text stream: notebooks print into it by pieces, whole lines come out."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._rest = file, ""

    def write(self, text: str) -> int:
        """Take some text; of a line that overwrites itself by carriage returns, what stood there
        last is kept.
        """
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            line = line.rstrip("\r").rpartition("\r")[2]
            print(line, flush=True)
            print(time.strftime("%Y-%m-%d %H:%M:%S"), line, file=self._file, flush=True)
        return len(text)

    def note(self, text: str) -> None:
        """Write a line for later readers only, which the screen gets from somebody else."""
        print(time.strftime("%Y-%m-%d %H:%M:%S"), text, file=self._file, flush=True)

    def fileno(self) -> int:
        """Return the file's number: what a kernel itself says goes there, not to the screen."""
        return self._file.fileno()

    def flush(self) -> None:
        """Do nothing: whole lines are out, a part of one waits for its rest."""


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[RunLog]:
    """Open the log of a run folder, to be added to."""
    with (folder / LOG).open("a") as file:
        yield RunLog(file)
