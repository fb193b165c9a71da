"""The errors a user can mend: one clear sentence naming the file, the value and the remedy."""

from __future__ import annotations


class KdlibError(ValueError):
    """Bad input; the command line prints the message alone and exits with 2."""


class DataError(KdlibError):
    """A file or table that cannot be what it claims to be."""


class ConfigError(KdlibError):
    """A setting, name or combination that does not exist."""
