"""Says, before anything is written, whether the data in a folder are those of a profile."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from kdlib.data.prepare import SPLITS
from kdlib.data.segment import classes_in, is_own
from kdlib.data.store import INDEX, first_manifests
from kdlib.errors import ConfigError, DataError
from kdlib.lab.folders import make_folder
from kdlib.lab.profile import Profile
from kdlib.simulate.generate import segment_names
from kdlib.types import WAYMO_TYPES, Json
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
    made = [tuple(WAYMO_TYPES)] if profile.simulated is not None else []
    for classes in (*map(classes_in, manifests.values()), *made):
        if not set(names) <= set(classes):
            raise ConfigError(
                f"{store} has the classes {', '.join(classes)}, the models of profile "
                f"{profile.name} know {', '.join(names)}; in a TOML file of your own, above "
                "own_small, write under [detector]: classes = "
                f"{json.dumps(classes, ensure_ascii=False)}, or some of these"
            )
    if profile.simulated is None:
        _check_splits(profile, data, manifests)
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


def _check_splits(profile: Profile, data: Path, manifests: Mapping[str, Json]) -> None:
    """Check that there are data, and of a finished store that both splits are there."""
    store = data / "store"
    if (data / "waymo").is_dir():
        make_folder(data, f"DATA_ROOT={data}")
        return
    if not (store / INDEX).is_file():
        raise ConfigError(
            f"{data} holds neither waymo nor store; the README says how frames of your own become "
            "a store, data/README.md how to get Waymo: put it there, or name the folder that holds "
            "one of them as DATA_ROOT, or as data in a TOML file"
        )
    for setting in ("training_split", "validation_split"):
        split = getattr(profile, setting)
        if split not in manifests:
            raise ConfigError(
                f"{store} has no split '{split}', it has: {', '.join(manifests) or 'none'}; store "
                f"some drives under that name, or name another split, as {setting} in a TOML file "
                f"or --set {setting}=SPLIT"
            )


def _is_recorded(folder: Path) -> bool:
    """Return whether a split's files are Waymo's own; what cannot be read yet was being written."""
    with suppress(DataError):
        return not all(is_simulated(segment_files(folder, name)) for name in list_segments(folder))
    return False
