"""Where things lie in a checkout of the project: notebooks, shipped weights, and the folder of a
run.
"""

from __future__ import annotations

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
NOTEBOOKS = PROJECT / "notebooks"
WEIGHTS = PROJECT / "data" / "weights"


def run_folder(profile: str, out: Path | None = None) -> Path:
    """Return the folder of a run: the one given, or ``reports/runs/<profile>``."""
    return (out or PROJECT / "reports" / "runs" / profile).resolve()
