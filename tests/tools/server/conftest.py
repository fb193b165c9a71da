"""The small store of the tests of kdlib.data, to be verified."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "data"))
from small_store import source, store  # noqa: F401
