"""The errors a user can mend: one clear sentence naming the file, the value and the remedy."""

from __future__ import annotations


class KdlibError(ValueError):
    """Bad input; the command line prints the message alone and exits with 2."""

    exit_code = 2

    def _render_traceback_(self) -> list[str]:
        # What IPython asks an exception for: a notebook shows the sentence alone, too.
        return [f"{type(self).__name__}: {self}"]


class DataError(KdlibError):
    """A file or table that cannot be what it claims to be."""


class ConfigError(KdlibError):
    """A setting, name or combination that does not exist."""
