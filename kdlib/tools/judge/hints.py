"""What two tables of boxes hold, and where they differ in form: simple changes of the predictions,
each scored with the metric itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import TypeVar

import numpy as np
from scipy.spatial import cKDTree

from kdlib.metric.objects import EvalBoxes, FrameBoxes, Predictions
from kdlib.metric.shards import Classes
from kdlib.metric.waymo_metrics import evaluate_boxes
from kdlib.types import Float64, Int64

_MOST_BOXES = 3000  # of both sides, on which changes are tried
_BLOCK = 10  # consecutive frames that are taken or left out together
_RISE = 0.05  # of mAPH that makes a change worth a word, and by this factor:
_FACTOR = 1.25
_POOR = 0.3  # mAPH below which two changes at once are tried, too, where none alone gives
_GOOD = 0.5
_NOTHING = 0.005  # mAP below which hardly a box is right
_TURNED = 0.2  # of mAP by which scores the other way round are better
_WORLD = 1e5  # metres, beyond which no box of a vehicle frame lies
_SURE = 20  # boxes near a label, whose common shift is no accident, if it is as long as this:
_SHIFT = 0.15  # metres
_TWINS = 0.5  # metres between centres of boxes that one object has several of
_NEAR = 2.0  # metres between centres, seen from above, of what may be one object

_Boxes = TypeVar("_Boxes", bound=FrameBoxes)

_UP = np.array((0, 0, 1, 0, 0, 0, 0))
_SIZES = np.array((0, 0, 0, 1, 1, 1, 0))
_HEADING = np.array((0, 0, 0, 0, 0, 0, 1))


def _in_radians(box: Float64) -> Float64:
    """Return boxes whose headings are degrees with radians, others as they are."""
    degrees = np.abs(box[:, 6]).max(initial=0) > 2 * np.pi
    return box * (np.pi / 180) ** _HEADING if degrees else box


_CHANGES: Mapping[str, Callable[[Float64], Float64]] = {  # of boxes (N, 7)
    "z is raised by half the height": lambda box: box + np.outer(box[:, 5] / 2, _UP),
    "z is lowered by half the height": lambda box: box - np.outer(box[:, 5] / 2, _UP),
    "length and width are swapped": lambda box: box[:, [0, 1, 2, 4, 3, 5, 6]],
    "length and height are swapped": lambda box: box[:, [0, 1, 2, 5, 4, 3, 6]],
    "width and height are swapped": lambda box: box[:, [0, 1, 2, 3, 5, 4, 6]],
    "sizes are read as width, height, length": lambda box: box[:, [0, 1, 2, 5, 3, 4, 6]],
    "sizes are read as height, length, width": lambda box: box[:, [0, 1, 2, 4, 5, 3, 6]],
    "sizes are doubled": lambda box: box * (1 + _SIZES),
    "sizes are halved": lambda box: box * (1 - 0.5 * _SIZES),
    "headings in degrees become radians": _in_radians,
    "headings are turned by pi": lambda box: box + np.pi * _HEADING,
    "headings are turned by pi / 2": lambda box: box + np.pi / 2 * _HEADING,
    "headings are turned by -pi / 2": lambda box: box - np.pi / 2 * _HEADING,
    "headings change their sign": lambda box: box * (1 - 2 * _HEADING),
    "headings are read as KITTI's rotation_y": lambda box: (
        box * (1 - 2 * _HEADING) - np.pi / 2 * _HEADING
    ),
    "length and width are swapped and headings turned by pi / 2": lambda box: (
        box[:, [0, 1, 2, 4, 3, 5, 6]] + np.pi / 2 * _HEADING
    ),
    "length and width are swapped and headings turned by -pi / 2": lambda box: (
        box[:, [0, 1, 2, 4, 3, 5, 6]] - np.pi / 2 * _HEADING
    ),
    "boxes are read as KITTI's: bottom, height, width, length, rotation_y": lambda box: (
        (box + np.outer(box[:, 3] / 2, _UP))[:, [0, 1, 2, 5, 4, 3, 6]] * (1 - 2 * _HEADING)
        - np.pi / 2 * _HEADING
    ),
    "x and y are turned by -90 degrees, with the headings": lambda box: (
        box[:, [1, 0, 2, 3, 4, 5, 6]] * (1, -1, 1, 1, 1, 1, 1) - np.pi / 2 * _HEADING
    ),
    "x and y are turned by 90 degrees, with the headings": lambda box: (
        box[:, [1, 0, 2, 3, 4, 5, 6]] * (-1, 1, 1, 1, 1, 1, 1) + np.pi / 2 * _HEADING
    ),
    "x and y are turned by 180 degrees, with the headings": lambda box: (
        box * (-1, -1, 1, 1, 1, 1, 1) + np.pi * _HEADING
    ),
    "x and y are swapped, with the headings": lambda box: (
        box[:, [1, 0, 2, 3, 4, 5, 6]] * (1 - 2 * _HEADING) + np.pi / 2 * _HEADING
    ),
    "x changes its sign, and the headings with it": lambda box: (
        box * (-1, 1, 1, 1, 1, 1, -1) + np.pi * _HEADING
    ),
    "headings are read as clockwise from y": lambda box: (
        box * (1 - 2 * _HEADING) + np.pi / 2 * _HEADING
    ),
    "y and the headings change their sign": lambda box: box * (1, -1, 1, 1, 1, 1, -1),
    "feet become metres": lambda box: box * 0.3048 ** (1 - _HEADING),
    "millimetres become metres": lambda box: box / 1000.0 ** (1 - _HEADING),
    "centimetres become metres": lambda box: box / 100.0 ** (1 - _HEADING),
}


def count_boxes(boxes: EvalBoxes, classes: Classes) -> str:
    """Return a line for each side: its boxes by class, and the frames that have one."""
    names = _names(classes)
    lines = [f"{'boxes':14}{'frames':>9}" + "".join(f"{name:>12}" for name in names[1:])]
    for title, side in (("predictions", boxes.predictions), ("ground truth", boxes.truth)):
        numbers = np.bincount(side.kind, minlength=len(names))
        cells = "".join(f"{number:12,}" for number in numbers[1:])
        unknown = f", {numbers[0]:,} of type 0" if numbers[0] else ""
        lines.append(f"{title:14}{len(np.unique(side.frame)):9,}{cells}{unknown}")
    return "\n".join(lines)


def find_hints(boxes: EvalBoxes, classes: Classes) -> list[str]:
    """Return a sentence for every difference in form between predictions and ground truth, and one
    for the simple changes of the predictions that would lift the score a lot.
    """
    part, names = _part(boxes), _names(classes)
    hints = [*_missing_frames(boxes), *_missing_classes(boxes, names), *_doubles(part)]
    hints += _no_boxes(boxes)
    if not len(part.predictions.kind) or not len(part.truth.kind):
        return hints
    hints += _odd_scores(part, classes)
    form = _poor_form(part, classes, "", pairs=True) or [
        hint
        for kind in range(1, len(names))
        for hint in _poor_form(_of_type(part, kind), classes, f" of {names[kind]}", pairs=False)
    ]
    hints += form or _nothing_right(part, classes)
    types = _types_meant(part)
    if types and not any("types are read" in hint for hint in hints):
        hints.append(
            f"predicted boxes of type {_listed(types, 'lie on', names)} of the labels; types are "
            f"{', '.join(f'{kind} {name}' for kind, name in enumerate(names) if kind)}"
        )
    return hints


def _poor_form(boxes: EvalBoxes, classes: Classes, whose: str, pairs: bool) -> list[str]:
    """Return the sentence on changes that lift the score of boxes a lot, or on headings."""
    if not len(boxes.predictions.kind) or not len(boxes.truth.kind):
        return []
    changes, before, after = _best_changes(boxes, classes, pairs)
    tried = f"LEVEL_2 mAPH{whose} on {boxes.frames} frames"
    if changes:
        return [
            f"{tried} rises from {100 * before:.1f} to {100 * after:.1f} when "
            f"{', and '.join(changes)}: do the tables differ in form?"
        ]
    aligned = _score(boxes, classes, "mAP")
    if aligned - before > _POOR:
        return [f"{tried} is {100 * before:.1f}, mAP {100 * aligned:.1f}: the headings disagree"]
    return []


def _nothing_right(boxes: EvalBoxes, classes: Classes) -> list[str]:
    """Return the sentence on boxes of which hardly any is right, and no change says why."""
    score = _score(boxes, classes, "mAP")
    if score >= _NOTHING:
        return []
    near, count = len(_neighbours(boxes)[0]), len(boxes.predictions.kind)
    return [
        f"LEVEL_2 mAP on {boxes.frames} frames is {100 * score:.1f}, and no simple change helps: "
        f"{near:,} of {count:,} predicted boxes lie within {_NEAR:g} m of a label; draw a frame of "
        "both tables, do they hold the same frames in one coordinate system?"
    ]


def _names(classes: Classes) -> tuple[str, ...]:
    """Return what types 0, 1, ... are."""
    return ("unknown", *map(str.lower, classes.names))


def _missing_frames(boxes: EvalBoxes) -> Iterator[str]:
    labelled, predicted = np.unique(boxes.truth.frame), np.unique(boxes.predictions.frame)
    without = len(np.setdiff1d(labelled, predicted))
    if without > 0.1 * len(labelled) and len(predicted):
        yield (
            f"{without:,} of the {len(labelled):,} frames with labels have no predicted box; was "
            "the detector run on all of them?"
        )


def _missing_classes(boxes: EvalBoxes, names: Sequence[str]) -> Iterator[str]:
    ours, theirs = (
        np.bincount(side.kind, minlength=len(names)) for side in (boxes.predictions, boxes.truth)
    )
    for kind, name in enumerate(names):
        if kind == 0 and (ours[0] or theirs[0]):
            yield (
                f"type 0 is 'unknown' and counts nowhere: {ours[0]:,} predictions and "
                f"{theirs[0]:,} labels have it; types begin at 1, {names[1]}"
            )
        elif ours[kind] and not theirs[kind] and theirs.any():
            yield f"no {name} (type {kind}) is labelled, but {ours[kind]:,} are predicted"
        elif theirs[kind] and not ours[kind] and ours.any() and name != "sign":
            yield f"no {name} (type {kind}) is predicted, but {theirs[kind]:,} are labelled"


def _no_boxes(boxes: EvalBoxes) -> Iterator[str]:
    for title, side in (("predicted", boxes.predictions), ("labelled", boxes.truth)):
        empty = int((side.box[:, 3:6] <= 0).any(axis=1).sum())
        far = int((np.abs(side.box[:, :3]) > _WORLD).any(axis=1).sum())
        if empty:
            yield (
                f"{empty:,} of {len(side.kind):,} {title} boxes have a length, width or height "
                "of 0 or less and match nothing"
            )
        if far:
            yield (
                f"{far:,} of {len(side.kind):,} {title} boxes lie more than {_WORLD / 1000:,.0f} "
                "km away; positions are metres in the vehicle frame"
            )


def _doubles(boxes: EvalBoxes) -> Iterator[str]:
    for title, side in (("predicted", boxes.predictions), ("labelled", boxes.truth)):
        again = len(side.kind) - len(_once(side).kind)
        if again > 0.01 * len(side.kind):
            yield (
                f"{again:,} of {len(side.kind):,} {title} boxes, on {boxes.frames} frames, stand "
                "there twice; keep one"
            )


def _odd_scores(boxes: EvalBoxes, classes: Classes) -> Iterator[str]:
    """Yield the sentence on scores that rank nothing, or the wrong way round."""
    ours, before = boxes.predictions, _score(boxes, classes, "mAP")
    if len(ours.score) > 1 and ours.score.min() == ours.score.max() and before < _GOOD:
        yield (
            f"every predicted score is {ours.score[0]:g}; the metric ranks boxes by score, so "
            "write the detector's own"
        )
    turned = replace(boxes, predictions=replace(ours, score=1 - ours.score))
    after = _score(turned, classes, "mAP")
    if after > before + _TURNED:
        yield (
            f"LEVEL_2 mAP on {boxes.frames} frames rises from {100 * before:.1f} to "
            f"{100 * after:.1f} when scores are read as 1 - score: is a high score a sure one?"
        )


def _best_of_twins(ours: Predictions) -> Predictions:
    """Return the predictions without those that have a better one of their type close by."""
    places = np.column_stack((ours.box[:, :2], 1e6 * ours.frame, 1e3 * ours.kind))
    pairs = cKDTree(places.astype(np.float64)).query_pairs(_TWINS, output_type="ndarray")
    first, second = pairs.T
    worse = np.where(ours.score[first] < ours.score[second], first, second)
    return ours.take(np.setdiff1d(np.arange(len(ours.kind)), worse))


def _once(side: _Boxes) -> _Boxes:
    """Return the boxes without those that repeat another one of their frame and type."""
    rows = np.column_stack((side.frame, side.kind, np.rint(1000.0 * side.box)))
    return side.take(np.sort(np.unique(rows, axis=0, return_index=True)[1]))


def _part(boxes: EvalBoxes) -> EvalBoxes:
    """Return some of the frames, in blocks all over, where the boxes are many."""
    every = -(-(len(boxes.predictions.kind) + len(boxes.truth.kind)) // _MOST_BOXES)
    if every <= 1:
        return boxes
    chosen = np.arange(boxes.frames)
    chosen = chosen[chosen // _BLOCK % every == 0]

    def of(side: _Boxes) -> _Boxes:
        side = side.take(np.isin(side.frame, chosen))
        return replace(side, frame=np.searchsorted(chosen, side.frame))

    return EvalBoxes(of(boxes.predictions), of(boxes.truth), len(chosen))


def _neighbours(boxes: EvalBoxes) -> tuple[Int64, Int64]:
    """Return predictions and, of each, the nearest label of its frame, seen from above."""
    ours, theirs = (
        np.column_stack((side.box[:, :2], side.frame * 1e6)).astype(np.float64)
        for side in (boxes.predictions, boxes.truth)
    )
    distance, label = cKDTree(theirs).query(ours, distance_upper_bound=_NEAR)
    near = np.flatnonzero(np.isfinite(distance))
    return near, label[near]


def _types_meant(boxes: EvalBoxes) -> dict[int, int]:
    """Return the predicted types that lie on labels of another one, most of them, and which."""
    near, label = _neighbours(boxes)
    kinds, labels = boxes.predictions.kind, boxes.truth.kind[label]
    meant = {}
    for kind in np.unique(kinds[near]).tolist():
        count = np.bincount(labels[kinds[near] == kind])
        most = int(count.argmax())
        if most != kind and count[most] >= max(5, 0.8 * count.sum(), 0.5 * (kinds == kind).sum()):
            meant[kind] = most
    return meant


def _best_changes(
    boxes: EvalBoxes, classes: Classes, pairs: bool
) -> tuple[list[str], float, float]:
    """Return the changes that lift the score a lot, one after the other, and it before and after;
    ``pairs`` also tries two at once, where no single one does.
    """

    def scored(changes: Iterator[tuple[str, EvalBoxes]]) -> dict[str, tuple[EvalBoxes, float]]:
        return {name: (changed, _score(changed, classes)) for name, changed in changes}

    before = score = _score(boxes, classes)
    said: list[str] = []
    once = replace(boxes, predictions=_once(boxes.predictions))
    if len(once.predictions.kind) < len(boxes.predictions.kind):
        boxes, score = once, _score(once, classes)
        said += ["each box is taken once"] * _lifts(before, score)
    for _ in range(3):
        tried = scored(_changed(boxes, classes))
        if pairs and score < _POOR and max(after for _, after in tried.values()) < _GOOD:
            tried |= scored(_changed_twice(boxes))
        name = max(tried, key=lambda name: tried[name][1], default="")
        if not name or not _lifts(score, tried[name][1]):
            break
        said.append(name)
        boxes, score = tried[name]
    return said, before, score


def _lifts(before: float, after: float) -> bool:
    return after >= max(before + _RISE, before * _FACTOR) or after >= max(0.01, 5 * before)


def _score(boxes: EvalBoxes, classes: Classes, kind: str = "mAPH") -> float:
    frames = tuple(range(boxes.frames))
    result = evaluate_boxes(boxes, frames, classes=classes, ranges=False, keep_frames=False)
    return result.metrics[f"LEVEL_2/{kind}"]


def _of_type(boxes: EvalBoxes, kind: int) -> EvalBoxes:
    ours, theirs = boxes.predictions, boxes.truth
    return EvalBoxes(ours.take(ours.kind == kind), theirs.take(theirs.kind == kind), boxes.frames)


def _listed(types: Mapping[int, int], verb: str, names: Sequence[str]) -> str:
    return ", ".join(f"{kind} {verb} {meant} ({names[meant]})" for kind, meant in types.items())


def _changed(boxes: EvalBoxes, classes: Classes) -> Iterator[tuple[str, EvalBoxes]]:
    ours, theirs = boxes.predictions, boxes.truth
    for name, change in _CHANGES.items():
        yield name, _reshaped(boxes, change)
    radians = replace(theirs, box=_in_radians(theirs.box.astype(np.float64)).astype(np.float32))
    yield "the labels' headings in degrees become radians", replace(boxes, truth=radians)
    types = _types_meant(boxes)
    if types:
        meant = np.array([types.get(kind, kind) for kind in range(1 + len(classes.names))])
        of_them = replace(boxes, predictions=replace(ours, kind=meant[ours.kind]))
        yield f"predicted types are read so: {_listed(types, 'as', _names(classes))}", of_them
    near, label = _neighbours(boxes)
    if len(near):
        x, y, z = np.median(theirs.box[label, :3] - ours.box[near, :3], axis=0)
        shift = np.array((x, y, z, 0, 0, 0, 0), np.float32)
        if len(near) >= _SURE and np.linalg.norm(shift) > _SHIFT:
            moved = replace(ours, box=ours.box + shift)
            yield (
                f"boxes are moved by x {x:+.2f}, y {y:+.2f}, z {z:+.2f} m",
                replace(boxes, predictions=moved),
            )
    for step in (-1, 1):
        later = replace(ours, frame=ours.frame + step)
        inside = (later.frame >= 0) & (later.frame < boxes.frames)
        yield (
            f"boxes belong {step:+d} frame further",
            replace(boxes, predictions=later.take(inside)),
        )
    best = replace(boxes, predictions=_best_of_twins(ours))
    yield f"of boxes of a class within {_TWINS:g} m of each other the best is kept (NMS)", best
    labels = theirs.take(np.isin(theirs.frame, ours.frame))
    yield "frames without a prediction are left out", replace(boxes, truth=labels)


def _changed_twice(boxes: EvalBoxes) -> Iterator[tuple[str, EvalBoxes]]:
    for first, second in product(list(_CHANGES)[:2], list(_CHANGES)[2:]):  # bottoms, and what else
        twice = _reshaped(_reshaped(boxes, _CHANGES[first]), _CHANGES[second])
        yield f"{first} and {second}", twice


def _reshaped(boxes: EvalBoxes, change: Callable[[Float64], Float64]) -> EvalBoxes:
    box = change(boxes.predictions.box.astype(np.float64)).astype(np.float32)
    return replace(boxes, predictions=replace(boxes.predictions, box=box))
