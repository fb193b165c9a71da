"""A finished run in, a film of one of its segments out: the teacher's boxes left, the student's right, ground truth in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdlib import records
from kdlib.data.store import StoreSplit, class_types
from kdlib.errors import ConfigError
from kdlib.lab import pipeline, profiles
from kdlib.lab.folders import PROJECT
from kdlib.models.detector import AnchorDetector, CenterPoint
from kdlib.tools.scans.film import Film, Shot, film
from kdlib.tools.scans.trained import STUDENTS, Trained, find
from kdlib.tools.scans.view import detect
from kdlib.types import Sample
from kdlib.viz import scene3d
from kdlib.viz.canvas import write_bytes
from kdlib.viz.layers import BoxLayer, layer

_OVERLAP = 0.2  # as in kdlib.tools.scans.view: doubles of low score clutter a picture


@dataclass(frozen=True)
class Flown:
    """Where the film is, and what it shows."""

    path: Path
    segment: str
    film: Film

    def text(self) -> str:
        """Return a sentence or two for people."""
        width, height = self.film.size
        drawn = f" {self.film.info.note}" if self.film.info.note else ""
        kilobytes = len(self.film.gif) // 1000
        return f"{self.path}: {self.film.images} pictures of {width} x {height}, {kilobytes:,} kB, segment {self.segment}.{drawn}"


def fly(
    run: Path,
    out: Path,
    *,
    data: Path | None = None,
    segment: str | None = None,
    arm: str | None = None,
    score: float = 0.3,
    images: int = 40,
    panel: tuple[int, int] = (420, 320),
    limit: int = 1_500_000,
    worker: Sequence[str] = scene3d.WORKER,
) -> Flown:
    """Film one validation segment of a run; the run is only read.

    Args:
        run: Folder of a run whose notebooks 01 and 02 have finished.
        out: The ``.gif``.
        data: Folder with the run's ``store``; by default the profile's own.
        segment: Its name or the beginning of it; by default the one with most objects in sight.
        arm: Which student; by default the one with most of the recipe.
        score: Boxes at or above it are drawn.
        images: Pictures in the film.
        panel: Width and height of each of the two panels, pixels.
        limit: Bytes the file may have.
        worker: Command of the renderer, a process of its own.

    Raises:
        ConfigError: If the run, the segment or the ending is none.
        DataError: If the store is missing or damaged.
        FilmError: If the pictures do not fit into the limit.
    """
    if out.suffix != ".gif":
        raise ConfigError(f"{out}: films are written as .gif, not '{out.suffix}'")
    if not (run / STUDENTS / "result.json").is_file():
        raise ConfigError(f"{run} is no folder of a run with students; run notebook {STUDENTS} first")
    profile = profiles.profile(records.read_json(run / STUDENTS / "result.json")["profile"])
    teacher, student = find(str(run), arm="teacher"), find(str(run), arm=arm)
    opened = pipeline.Run(profile, run, data.resolve() if data else PROJECT / "data" / (profile.data or profile.name))
    split = opened.store.split("validation")
    reach = float(student.model.grid.point_range[3])
    names = student.model.class_names
    numbers = _numbers(split, segment, reach, names)[:images]
    networks = [one.detector(score, _OVERLAP) for one in (teacher, student)]
    shots = [
        _shot(split, int(number), networks, score, reach, f"sweep {k + 1} of {len(numbers)}") for k, number in enumerate(numbers)
    ]
    simulated = "simulated data" if profile.simulated is not None else "Waymo"
    done = film(
        shots,
        (_caption("teacher", teacher), _caption("distilled student" if arm in (None, "full") else f"student, {arm}", student)),
        footer=f"{simulated}, boxes of score {score:g} and above",
        reach=1.05 * reach,
        images=images,
        panel=panel,
        limit=limit,
        worker=worker,
    )
    write_bytes(out, done.gif)
    return Flown(out, split.frame_id(int(numbers[0])).rpartition("_")[0], done)


def _caption(role: str, trained: Trained) -> str:
    parameters = sum(value.numel() for value in trained.detector().parameters())
    return f"{role}: {trained.model.name}, {parameters / 1000:,.0f} k parameters"


def _numbers(split: StoreSplit, segment: str | None, reach: float, names: tuple[str, ...]) -> NDArray[np.int64]:
    """Return the frames of the segment asked for, or of the one with most objects within reach."""
    own: dict[str, list[int]] = {}
    for number, name in enumerate(split.frame_ids()):
        own.setdefault(name.rpartition("_")[0], []).append(number)
    if segment is not None:
        found = [name for name in own if name.startswith(segment)]
        if len(found) != 1:
            raise ConfigError(
                f"'{segment}' begins the names of {len(found)} segments of {len(own)}, for example {next(iter(own))}"
            )
        return np.array(own[found[0]])
    seen = {name: sum(len(_truth(split, number, reach, names)) for number in rows[::5]) for name, rows in own.items()}
    return np.array(own[max(seen, key=lambda name: seen[name])])


def _truth(split: StoreSplit, number: int, reach: float, names: tuple[str, ...]) -> BoxLayer:
    labels = split.labels(number)
    positions = np.zeros(256, np.int64)
    positions[list(class_types(names))] = np.arange(1, len(names) + 1)
    kinds = positions[labels.types]
    kept = (kinds > 0) & (labels.num_points > 0) & (np.abs(labels.boxes[:, :2]) <= reach).all(axis=1)
    return layer("truth", labels.boxes[kept], kinds[kept], class_names=names)


def _shot(
    split: StoreSplit, number: int, networks: Sequence[CenterPoint | AnchorDetector], score: float, reach: float, title: str
) -> Shot:
    points = split.points(number)[:, :5]
    names = networks[0].config.class_names
    truth = _truth(split, number, reach, names)
    sample = Sample(split.frame_id(number), points, np.zeros((0, 7), np.float32), np.zeros(0, np.int64))
    panels = []
    for role, network in zip(("teacher", "student"), networks):
        found = detect(network, sample, score)
        inside = (found.boxes[:, :2].abs() <= reach).all(dim=1)
        kept = (values[inside].numpy() for values in (found.boxes, found.labels, found.scores))
        panels.append((truth, layer(role, *kept, class_names=names)))
    near = (np.abs(points[:, :2]) < 1.3 * reach).all(axis=1)
    return Shot(points[near], panels[0], panels[1], title)
