"""Where things lie in a checkout of the project: notebooks, shipped weights, and the folder of a
run.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from kdlib.errors import ConfigError

PROJECT = Path(__file__).resolve().parents[2]
NOTEBOOKS = PROJECT / "notebooks"
WEIGHTS = PROJECT / "data" / "weights"


def run_folder(profile: str, out: Path | None = None) -> Path:
    """Return the folder of a run: the one given, or ``reports/runs/<profile>``."""
    return (out or PROJECT / "reports" / "runs" / profile).resolve()


def data_folder(name: str, root: str = "") -> Path:
    """Return the folder of a run's data: the one given, or ``data/<name>``."""
    return Path(root).resolve() if root else PROJECT / "data" / name


def portable(run: Path, path: Path) -> str:
    """Return a path as a run's results name it: from the run's folder on where it lies inside, or
    from the project's, so that no result names a machine and a run folder can be moved.
    """
    for base in (run, PROJECT):
        if path.is_relative_to(base):
            return str(path.relative_to(base))
    return str(path)


def located(run: Path, text: str) -> Path:
    """Return the path a run's result names: in the run's folder or in the project's.

    Older results name files of the run from the project's folder on, or whole; where such a folder
    is gone, it was moved, and the end of the path tells the file in its new place.
    """
    whole = PROJECT / text
    ends = (run.joinpath(*whole.parts[-count:]) for count in range(len(whole.parts) - 1, 1, -1))
    places = (run / text, whole, *ends)
    return next((place for place in places if place.is_file()), whole)


def make_folder(folder: Path, name: str) -> None:
    """Make a folder that is to be written to; ConfigError, under the name it was given by, if that
    cannot be.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"{name} cannot be written to ({error.strerror}: {error.filename or folder}); name "
            "another folder"
        ) from error


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
