"""Whether a folder holds, or can be given, the data a profile needs."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from kdlib.data.prepare import SPLITS
from kdlib.data.segment import classes_in, is_own
from kdlib.data.store import INDEX, first_manifests
from kdlib.errors import ConfigError, DataError
from kdlib.lab.folders import make_folder
from kdlib.lab.profiles import Profile
from kdlib.simulate.generate import segment_names
from kdlib.waymo.segments import list_segments, segment_files
from kdlib.waymo.simulated import is_simulated


def check_data(profile: Profile, data: Path) -> None:
    """Refuse data that are not there, that are not the profile's, or that cannot be made; the
    folder they are to be made in is.

    Raises:
        ConfigError: The message names the folder and the remedy.
    """
    store, source = data / "store", data / "waymo"
    manifests, names = first_manifests(store), profile.student_model.class_names
    for classes in map(classes_in, manifests.values()):
        if not set(names) <= set(classes):
            raise ConfigError(
                f"{store} has the classes {', '.join(classes)}, the models of profile "
                f"{profile.name} know {', '.join(names)}; add a pair of those classes to "
                "kdlib/zoo.py and a profile of it to kdlib/lab/profiles.py"
            )
    if profile.simulated is None:
        if source.is_dir():
            make_folder(data, f"DATA_ROOT={data}")
        elif not (store / INDEX).is_file():
            raise ConfigError(
                f"{data} holds neither waymo nor store; data/README.md says how to get Waymo; put "
                "it there, or pass the folder that holds one of them as DATA_ROOT"
            )
        return
    others = [store / split for split, manifest in manifests.items() if is_own(manifest)]
    others += [source / split for split in SPLITS if _is_recorded(source / split)]
    if others:
        raise ConfigError(
            f"profile {profile.name} simulates its data, but {others[0]} holds others; leave "
            "DATA_ROOT out or give it another folder, or take a profile of real data"
        )
    for split, (count, seed) in profile.simulated.splits.items():
        more: set[str] = set()
        with suppress(DataError):  # none is there, or one is being written
            more = set(list_segments(source / split)) - set(segment_names(count, seed, split))
        if more:
            raise ConfigError(
                f"{source / split} holds {len(more)} segments that profile {profile.name} does not "
                "simulate, of another profile perhaps; leave DATA_ROOT out or give it another "
                "folder"
            )
    make_folder(data, f"DATA_ROOT={data}")


def _is_recorded(folder: Path) -> bool:
    """Return whether a split's files are Waymo's own; what cannot be read yet was being written."""
    with suppress(DataError):
        return not all(is_simulated(segment_files(folder, name)) for name in list_segments(folder))
    return False
