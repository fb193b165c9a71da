"""Where things lie in a checkout of the project: notebooks, shipped weights, and the folder of a
run.
"""

from __future__ import annotations

from pathlib import Path

from kdlib.errors import ConfigError

PROJECT = Path(__file__).resolve().parents[2]
NOTEBOOKS = PROJECT / "notebooks"
WEIGHTS = PROJECT / "data" / "weights"


def run_folder(profile: str, out: Path | None = None) -> Path:
    """Return the folder of a run: the one given, or ``reports/runs/<profile>``."""
    return (out or PROJECT / "reports" / "runs" / profile).resolve()


def check_checkout(what: str) -> None:
    """Refuse to work in one checkout of the project with the package of another.

    Raises:
        ConfigError: If the current folder lies in another one; ``what`` was called there.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "kdlib" / "__init__.py").is_file() and (folder / "notebooks").is_dir():
            if folder.resolve() != PROJECT:
                raise ConfigError(
                    f"{what} lies in {folder}, but kdlib comes from {PROJECT}; install that "
                    f"checkout first, with 'pip install -e {folder}', or set PYTHONPATH={folder}"
                )
            return
