"""Detects in a scan of one's own: a table of boxes, and a picture of points and boxes in a window
or a PNG.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from kdlib.data.collate import collate
from kdlib.data.scans import Scan, read_scan
from kdlib.errors import ConfigError, DataError
from kdlib.lab.trained import TrainedWeights
from kdlib.models.detector import AnchorDetector, CenterPoint
from kdlib.tools.scans.trained import find_weights, load_detector, trained_on
from kdlib.types import Detections, Float32, Float64, Sample
from kdlib.viz import palette, scene3d
from kdlib.viz.layers import BoxLayer, count_inside
from kdlib.viz.perspective import Camera

# metres ahead or behind, and beside: what a sensor sees there is the vehicle that carries it
_OWN = (2.5, 1.1)
_OFFSETS = (0.0, -0.08, 0.08, -0.16, 0.16)  # metres around a height that nobody gave
_BETTER = 1.05  # times the sum of the best scores, for another height to be taken
_FEW = 5  # points of a box, below which it is a guess
_BEST = 10  # boxes that tell a height, and that the camera looks at
_COLORS = (
    palette.SERIES[1],
    palette.SERIES[2],
    palette.SERIES[3],
    palette.SERIES[7],
    palette.SERIES[0],
)


@dataclass(frozen=True)
class Viewed:
    """What was seen in a scan, and how it was shown."""

    scan: Scan
    trained: TrainedWeights
    points: Float32  # (N, 5) what the network saw
    boxes: Float64  # (K, 7), best first
    scores: Float64  # (K,)
    classes: tuple[str, ...]  # K names
    notes: tuple[str, ...]  # every assumption, then where the picture is and why there

    def rows(self) -> list[dict[str, Any]]:
        """Return a record for every box: metres, degrees, and the points inside it."""
        inside = count_inside(self.points, self.boxes)
        return [
            {
                "class": kind,
                "score": round(float(score), 3),
                **{
                    name: round(float(value), 2)
                    for name, value in zip(("x", "y", "z", "length", "width", "height"), box)
                },
                "heading": round(math.degrees(box[6]), 1),
                "distance": round(float(np.hypot(box[0], box[1])), 1),
                "points": int(count),
                "seen": "hardly" if count < _FEW else "",
            }
            for kind, score, box, count in zip(self.classes, self.scores, self.boxes, inside)
        ]

    def counted(self) -> str:
        """Return how many boxes of each class there are, and how many hold hardly a point."""
        numbers = Counter(self.classes)
        names = [name for name in self.trained.model.class_names if numbers[name]]
        words = ", ".join(f"{numbers[name]} {name}" for name in names) or "no box"
        few = int((count_inside(self.points, self.boxes) < _FEW).sum())
        return words + (f"; {few} of them, in grey, hold fewer than {_FEW} points" if few else "")

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        facts = {
            "scan": self.scan.name,
            "layout": self.scan.layout,
            "points": len(self.points),
            "model": self.trained.model.name,
        }
        return {**facts, "notes": list(self.notes), "boxes": self.rows()}

    def __str__(self) -> str:
        table = (
            pd.DataFrame(self.rows()).to_string(index=False)
            if self.classes
            else "no box reaches the score"
        )
        return "\n".join((*(f"- {note}" for note in self.notes), "", table))


def view(
    scan: Path,
    model: str,
    *,
    weights: Path | None = None,
    arm: str | None = None,
    layout: str | None = None,
    height: float | None = None,
    scale: float = 1.0,
    score: float = 0.3,
    overlap: float = 0.2,
    out: Path | None = None,
    window: bool | None = None,
    size: tuple[int, int] = (1600, 900),
    worker: Sequence[str] = scene3d.WORKER,
) -> Viewed:
    """Detect in a scan, a file of points of any kind, and show points and boxes.

    ``model``, ``weights`` and ``arm`` are for :func:`kdlib.tools.scans.trained.find_weights`;
    ``layout``, ``height`` and ``scale`` for :func:`kdlib.data.scans.read_scan`. Boxes of at least
    ``score`` are kept; of two that overlap by more than ``overlap`` (IoU in the BEV) the better
    one: the published 0.7 suits the metric, which forgives a double of low score; a picture does
    not. There is a window if ``window`` asks for one or, where it is None, if there is a display
    and no ``out``; else a PNG of ``size`` pixels, by default ``SCAN_boxes.png`` in the working
    directory.

    Raises:
        ConfigError: If the value of an option cannot be one, or there is no such model, layout or
            file of weights.
        DataError: If the scan or the weights cannot be read.
    """
    for name, share in (("score", score), ("overlap", overlap)):
        if not 0 <= share <= 1:
            raise ConfigError(f"--{name} is a share between 0 and 1, not {share:g}")
    if out is not None and (out.suffix.lower() != ".png" or out.is_dir()):
        raise ConfigError(f"--out is the picture to write, a file .png, not '{out}'")
    trained, read = find_weights(model, weights, arm), read_scan(scan, layout, height, scale)
    own = (np.abs(read.points[:, :2]) <= _OWN).all(axis=1)
    points = read.points[~own]
    network = load_detector(trained, score, overlap)
    tried = (0.0,) if height is not None else _OFFSETS
    points, detections, about_height = best_height(network, read, points, score, tried)
    classes = tuple(trained.model.class_names[int(label) - 1] for label in detections.labels)
    boxes, scores = (
        values.numpy().astype(np.float64) for values in (detections.boxes, detections.scores)
    )
    notes = [*read.assumptions, *about_height]
    if own.any():
        within = f"within {_OWN[0]:g} m ahead or behind and {_OWN[1]:g} m beside"
        notes.append(f"{int(own.sum()):,} points {within} are its own vehicle and left out.")
    data = trained_on(trained)
    taught = f", trained on {data}" if data else ""
    reach = float(max(trained.model.grid.point_range[3:5]))
    notes.append(
        f"Model: {trained.origin}{taught}. It sees {reach:g} m around; boxes of score "
        f"{score:g} and above."
    )
    near = int((np.abs(points[:, :2]) <= reach).all(axis=1).sum())
    if near <= 0.1 * len(points):
        notes.append(
            f"Only {near:,} of {len(points):,} points lie so near: are they in metres (--scale), "
            "around the sensor?"
        )
    seen = Viewed(read, trained, points, boxes, scores, classes, ())
    notes.append(f"{seen.counted()}.")
    return replace(seen, notes=(*notes, *_show(seen, reach, score, out, window, size, worker)))


def best_height(
    network: CenterPoint | AnchorDetector,
    scan: Scan,
    points: Float32,
    score: float,
    offsets: Sequence[float],
) -> tuple[Float32, Detections, list[str]]:
    """Return points and detections at the height, of some around the one that was found, at which
    the network is surest, and what to say of it. Networks were taught with the road at exactly 0,
    and a hand's breadth may halve a score.
    """
    answers = {}
    for offset in offsets:
        raised = points + np.array((0, 0, offset, 0, 0), np.float32)
        answers[offset] = raised, detect(network, Sample.unlabelled(scan.name, raised), score)
    sums = {offset: float(found.scores[:_BEST].sum()) for offset, (_, found) in answers.items()}
    best = max(sums, key=lambda offset: sums[offset])
    first = offsets[0]
    if sums[best] <= _BETTER * sums[first]:
        best = first
    said = []
    if len(offsets) > 1:
        said = [
            f"Heights {min(offsets):+.2f} to {max(offsets):+.2f} m around that were tried: "
            f"{best:+.2f} m is taken, where the best scores add up to {sums[best]:.1f}, "
            f"not {sums[first]:.1f} (--height {scan.raised + best:.2f})."
            if best != first
            else f"Heights {min(offsets):+.2f} to {max(offsets):+.2f} m around that were tried: "
            f"none makes the network clearly surer (--height {scan.raised:.2f})."
        ]
    return *answers[best], said


def detect(network: CenterPoint | AnchorDetector, sample: Sample, score: float) -> Detections:
    """Return the boxes of one frame at or above a score, best first.

    Raises:
        DataError: If the network answers NaN or infinity.
    """
    with torch.inference_mode():
        prediction = network(collate([sample]).points)
        heads = [value for head in prediction.heads for value in vars(head).values()]
        answers = [prediction.bev, *(value for value in heads if isinstance(value, torch.Tensor))]
        if not all(answer.isfinite().all() for answer in answers):
            raise DataError(
                f"the network answers NaN or infinity to {sample.frame_id}, though its weights are "
                "finite: they overflow; take an earlier checkpoint"
            )
        detections = network.detect(prediction)[0]
    sure = detections.scores >= score
    return Detections(detections.boxes[sure], detections.scores[sure], detections.labels[sure])


def _show(
    seen: Viewed,
    reach: float,
    score: float,
    out: Path | None,
    window: bool | None,
    size: tuple[int, int],
    worker: Sequence[str],
) -> list[str]:
    """Show the scene; return the sentences that say where, and why there."""
    names, said = seen.trained.model.class_names, list[str]()
    labels = np.array([names.index(kind) + 1 for kind in seen.classes], int)
    boxes = BoxLayer("", seen.boxes, labels, seen.scores, class_names=names)
    few = count_inside(seen.points, seen.boxes) < _FEW
    layers = [  # one for each class that was found, each in its own colour
        replace(
            boxes.part((labels == label) & ~few),
            name=names[label - 1],
            color=_COLORS[(label - 1) % len(_COLORS)],
        )
        for label in sorted(set(labels[~few].tolist()))
    ]
    if few.any():
        layers.append(
            replace(boxes.part(few), name=f"fewer than {_FEW} points", color=palette.FAINT)
        )
    points = seen.points[np.abs(seen.points[:, :2]).max(axis=1) < 1.6 * reach]
    camera = _camera(seen, points, reach)
    if window or (window is None and out is None):
        if scene3d.has_display():
            info = scene3d.open_window(
                points, layers, title=seen.scan.name, camera=camera, worker=worker
            )
            said.append(info.note or "Shown in a window.")
            if out is None and not info.note:
                return said
        else:
            said.append(f"{scene3d.NO_DISPLAY}: a picture instead of a window.")
    path, data = (
        out or Path(f"{seen.scan.name}_boxes.png"),
        trained_on(seen.trained).partition(",")[0],
    )
    taught = f", trained on {data}" if data else ""
    caption = (
        f"{seen.scan.name}: {len(seen.points):,} points. "
        f"{seen.trained.model.name}{taught}; score {score:g} and above: {seen.counted()}"
    )
    info = scene3d.render_scene(
        points, layers, path, size=size, camera=camera, caption=caption, worker=worker
    )
    return [*said, *([info.note] if info.note else []), f"Picture: {path}"]


def _camera(seen: Viewed, points: Float32, reach: float) -> Camera:
    """Return a view of the best boxes; of the scene where there is none."""
    best = seen.boxes[seen.scores >= 0.5 * seen.scores.max(initial=0)][:_BEST, :2]
    if len(best):
        middle = (best.min(axis=0) + best.max(axis=0)) / 2
        around = float(np.abs(best - middle).max()) + 4.0  # metres, and room for the boxes
        return Camera.above(1.45 * max(around, 12.0)).at(*middle.tolist())
    # a scan all around is looked at from above
    all_around = len(points) and float(np.mean(points[:, 0] < 0)) > 0.2
    return (Camera.above if all_around else Camera.behind)(min(reach, 45.0))
