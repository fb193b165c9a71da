"""Films a segment of a finished run: the teacher's boxes left, the student's right, ground truth in
both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdlib import records
from kdlib.data.store import StoreSplit
from kdlib.errors import ConfigError
from kdlib.lab import pipeline, profile_files
from kdlib.lab.folders import data_folder
from kdlib.models.detector import AnchorDetector, CenterPoint
from kdlib.tools.scans.film import Film, Shot, film
from kdlib.tools.scans.trained import STUDENTS, find_weights, load_detector
from kdlib.tools.scans.view import detect
from kdlib.types import Bool, Float32, Sample
from kdlib.viz.layers import BoxLayer, layer

_OVERLAP = 0.2  # as in kdlib.tools.scans.view: doubles of low score clutter a picture


@dataclass(frozen=True)
class Flown:
    """Where the film is, and what it shows."""

    path: Path
    segment: str
    film: Film

    def __str__(self) -> str:
        width, height = self.film.size
        drawn = f" {self.film.info.note}" if self.film.info.note else ""
        kilobytes = len(self.film.gif) // 1000
        return (
            f"{self.path}: {self.film.images} pictures of {width} x {height}, {kilobytes:,} "
            f"kB, segment {self.segment}.{drawn}"
        )


def fly(
    run: Path,
    out: Path,
    *,
    data: Path | None = None,
    segment: str | None = None,
    arm: str | None = None,
    score: float = 0.3,
    images: int = 40,
    **options: Any,
) -> Flown:
    """Film one validation segment of a run whose notebooks 01 and 02 have finished; the run is only
    read.

    ``data`` is the folder with the run's ``store``, by default the profile's own. The segment is
    named by the beginning of its name, by default it is the one with most objects in sight; the
    student by its arm, by default the one with most of the recipe. Boxes of at least ``score`` are
    drawn; ``options`` go to :func:`kdlib.tools.scans.film.film`.

    Raises:
        ConfigError: If the run, the segment or the ending is none.
        DataError: If the store is missing or damaged.
        FilmError: If the pictures do not fit into the limit.
    """
    if out.suffix != ".gif":
        raise ConfigError(f"{out}: films are written as .gif, not '{out.suffix}'")
    if not (run / STUDENTS / "result.json").is_file():
        raise ConfigError(
            f"{run} is no folder of a run with students; run notebook {STUDENTS} first"
        )
    profile = profile_files.of_run(run)
    teacher, student = find_weights(str(run), arm="teacher"), find_weights(str(run), arm=arm)
    opened = pipeline.Run(profile, run, data.resolve() if data else data_folder(profile.folder))
    split, names = opened.evaluated, student.model.class_names
    reach = float(max(map(abs, student.model.grid.point_range[3:5])))
    in_sight = np.isin(split.types, split.class_types(names)) & (split.num_points > 0)
    in_sight &= (np.abs(split.boxes[:, :2]) <= reach).all(axis=1)
    chosen = _segment(split, segment, in_sight)
    numbers = np.flatnonzero(split.segment_of == chosen)[:images]
    networks = [load_detector(weights, score, _OVERLAP) for weights in (teacher, student)]
    shots = [
        Shot(
            *_panels(split, number, networks, in_sight, score, reach),
            title=f"sweep {position} of {len(numbers)}",
        )
        for position, number in enumerate(numbers.tolist(), 1)
    ]
    roles = ("teacher", "distilled student" if arm in (None, "full") else f"student, {arm}")
    left, right = (
        f"{role}: {network.config.name}, "
        f"{sum(value.numel() for value in network.parameters()) / 1000:,.0f} k parameters"
        for role, network in zip(roles, networks)
    )
    real = "own data" if split.own else "Waymo"
    source = "simulated data" if profile.simulated is not None else real
    footer = f"{source}, boxes of score {score:g} and above"
    done = film(shots, (left, right), footer=footer, reach=1.05 * reach, images=images, **options)
    records.write_bytes(out, done.gif)
    return Flown(out, split.segments[chosen], done)


def _segment(split: StoreSplit, beginning: str | None, in_sight: Bool) -> int:
    """Return the position of the segment asked for, or of the one with most boxes in sight in every
    fifth frame.
    """
    if beginning is None:
        frames = np.repeat(np.arange(len(split)), np.diff(split.first_box))[in_sight]
        frames = frames[split.index[frames] % 5 == 0]
        return int(np.bincount(split.segment_of[frames], minlength=len(split.segments)).argmax())
    fitting = [number for number, name in enumerate(split.segments) if name.startswith(beginning)]
    if len(fitting) != 1:
        raise ConfigError(
            f"'{beginning}' begins the names of {len(fitting)} segments of "
            f"{len(split.segments)}, for example {split.segments[0]}"
        )
    return fitting[0]


def _panels(
    split: StoreSplit,
    number: int,
    networks: Sequence[CenterPoint | AnchorDetector],
    in_sight: Bool,
    score: float,
    reach: float,
) -> tuple[Float32, Sequence[BoxLayer], Sequence[BoxLayer]]:
    """Return the points around a frame's vehicle, and the layers of the left and the right
    panel.
    """
    points, names, rows = (
        split.points(number)[:, :5],
        networks[0].config.class_names,
        split.box_rows(number),
    )
    seen = in_sight[rows]
    labels = np.array(
        [split.class_types(names).index(kind) + 1 for kind in split.types[rows][seen]], np.int64
    )
    truth = layer("truth", split.boxes[rows][seen], labels, class_names=names)
    panels = []
    for role, network in zip(("teacher", "student"), networks):
        detections = detect(network, Sample.unlabelled(split.frame_id(number), points), score)
        inside = (detections.boxes[:, :2].abs() <= reach).all(dim=1)
        drawn = (
            values[inside].numpy()
            for values in (detections.boxes, detections.labels, detections.scores)
        )
        panels.append((truth, layer(role, *drawn, class_names=names)))
    near = (np.abs(points[:, :2]) < 1.3 * reach).all(axis=1)
    return points[near], panels[0], panels[1]
