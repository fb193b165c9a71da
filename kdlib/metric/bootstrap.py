"""Paired bootstrap over segments and seeds: mean, spread and 95 % interval of every arm, and of
what one wins over another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from kdlib.config import to_dict
from kdlib.errors import ConfigError
from kdlib.metric.ap import average_precisions, precision_recall
from kdlib.metric.shards import LEVELS, type_breakdown
from kdlib.metric.waymo_metrics import EvalResult, FrameCounts
from kdlib.types import Float64, Int64, Json

# what can be resampled
METRICS = {f"LEVEL_{level}/m{kind}": (level, kind) for level in LEVELS for kind in ("AP", "APH")}
_BLOCK = 100  # resamples scored at once


@dataclass(frozen=True)
class ArmScore:
    """One way of training, over its seeds."""

    name: str
    values: tuple[float, ...]  # the metric per seed, on all frames
    mean: float
    std: float  # over seeds, NaN for one seed
    low: float  # 95 % interval of the mean, NaN where there is one segment
    high: float


@dataclass(frozen=True)
class Difference:
    """``first`` minus ``second``, both resampled together."""

    first: str
    second: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class BootstrapReport:
    """All arms and their pairwise differences."""

    metric: str
    arms: tuple[ArmScore, ...]
    differences: tuple[Difference, ...]
    units: int  # how many there are of what is resampled
    resamples: int
    seed: int
    unit: str = "segment"

    def arm(self, name: str) -> ArmScore:
        """Return an arm by name."""
        return next(arm for arm in self.arms if arm.name == name)

    def difference(self, first: str, second: str) -> Difference:
        """Return ``first`` minus ``second``, whichever way round it was stored."""
        for d in self.differences:
            if (d.first, d.second) == (first, second):
                return d
            if (d.first, d.second) == (second, first):
                # no negative zero
                return Difference(first, second, 0.0 - d.mean, 0.0 - d.high, 0.0 - d.low)
        raise KeyError(f"no difference between '{first}' and '{second}'")

    @property
    def basis(self) -> str:
        """What the intervals rest on, in words."""
        seeds = max(len(arm.values) for arm in self.arms)
        if self.units < 2:
            return f"one {self.unit}: no interval"
        over = f"95 %, paired bootstrap over {self.units} {self.unit}s"
        return f"{over} and {seeds} seeds" if seeds > 1 else f"{over} alone: one seed"

    def to_dict(self) -> Json:
        """Return plain JSON values: NaN, which JSON lacks, becomes None."""
        values = to_dict(self)
        for row in (*values["arms"], *values["differences"]):
            row |= {name: None for name, value in row.items() if value != value}
        return {**values, "basis": self.basis}


def bootstrap(
    arms: Mapping[str, Sequence[EvalResult]],
    *,
    metric: str = "LEVEL_2/mAPH",
    resamples: int = 1000,
    seed: int = 0,
) -> BootstrapReport:
    """Return each arm's mean with a 95 % percentile interval, and the paired differences of all
    arms.

    Every resample draws segments with replacement, the same for all arms, and seeds with
    replacement, the same positions for all arms that have equally many: an interval answers both
    "other streets" and "other random numbers". Frames of a segment show the same objects, so
    resampling single frames would understate the spread. One segment says nothing about others:
    there is no interval then, its limits are NaN.

    Args:
        arms: Name -> one result per seed, all on the same frames, with ``frames`` kept; arms are
            paired in seed order. A frame's segment is its id up to the last underscore.
        metric: One of :data:`METRICS`.
        resamples: Number of resamples.
        seed: Of the resampling; equal inputs and seed give equal reports.

    Raises:
        ConfigError: If arms, frames or settings do not allow a comparison.
    """
    if metric not in METRICS:
        raise ConfigError(f"cannot bootstrap '{metric}'; choose one of {', '.join(METRICS)}")
    if resamples < 1:
        raise ConfigError(f"resamples must be at least 1, not {resamples}")
    names = [str(name).rpartition("_")[0] or str(name) for name in _same_frames(arms)]
    segments = {name: i for i, name in enumerate(dict.fromkeys(names))}
    group, units = np.array([segments[name] for name in names]), len(segments)
    rng = np.random.default_rng(seed)
    weight = rng.multinomial(units, np.full(units, 1.0 / units), size=resamples).astype(np.float64)
    drawn = {
        n: rng.integers(0, n, (resamples, n))
        for n in sorted({len(results) for results in arms.values()})
    }
    means = {}
    scores = []
    for name, results in arms.items():
        resampled = np.stack(
            [_resampled(result, group, weight, metric) for result in results], axis=1
        )
        means[name] = np.take_along_axis(resampled, drawn[len(results)], axis=1).mean(axis=1)
        values = [result.metrics[metric] for result in results]
        std = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        limits = _interval(means[name], units)
        scores.append(ArmScore(name, tuple(values), float(np.mean(values)), std, *limits))
    differences = tuple(
        Difference(
            a.name, b.name, a.mean - b.mean, *_interval(means[a.name] - means[b.name], units)
        )
        for b, a in combinations(scores, 2)
    )
    return BootstrapReport(metric, tuple(scores), differences, units, resamples, seed)


def _interval(resampled: Float64, units: int) -> tuple[float, float]:
    if units < 2:
        return math.nan, math.nan
    low, high = np.percentile(resampled, (2.5, 97.5)).tolist()
    return low, high


def _counts_of(result: EvalResult) -> FrameCounts:
    if result.frames is None:
        raise ConfigError(
            "the bootstrap needs the counts of every frame; evaluate with keep_frames=True"
        )
    return result.frames


def _same_frames(arms: Mapping[str, Sequence[EvalResult]]) -> tuple[Any, ...]:
    """Check that all results are on the same frames and ground truth, and return the frame ids."""
    if not arms or not all(arms.values()):
        raise ConfigError("the bootstrap needs at least one arm with at least one result each")
    first_name, first = next((name, results[0]) for name, results in arms.items())
    ids = _counts_of(first).frame_ids
    for name, results in arms.items():
        for i, result in enumerate(results):
            same_truth = result.card.get("truth_fingerprint") == first.card.get("truth_fingerprint")
            if _counts_of(result).frame_ids != ids or not same_truth:
                raise ConfigError(
                    f"result {i} of arm '{name}' was evaluated on other frames or ground truth "
                    f"than '{first_name}'; "
                    "evaluate all arms on one table"
                )
    if not ids:
        raise ConfigError("the results have no frames; nothing can be resampled")
    return ids


def _resampled(result: EvalResult, group: Int64, weight: Float64, metric: str) -> Float64:
    """Return the metric of every resample (R,); ``weight`` (R, units) is how often each unit was
    drawn.
    """
    level, kind = METRICS[metric]
    frames = _counts_of(result)
    rows = [frames.breakdowns.index(type_breakdown(name)) for name in result.mean_over]
    counts = frames.counts
    shape = (len(rows), counts.tp.shape[2])
    columns = [
        column[:, rows].reshape(len(group), -1)
        for column in (counts.tp, counts.fp, counts.fn(level), counts.sum_ha)
    ]
    sums = np.zeros((len(columns), weight.shape[1], shape[0] * shape[1]))  # of every unit's frames
    for total, column in zip(sums, columns):
        np.add.at(total, group, column.astype(np.float64))
    scores = []
    for start in range(0, len(weight), _BLOCK):
        block = weight[start : start + _BLOCK]
        curve = precision_recall(*((block @ column).reshape(-1, *shape) for column in sums))
        precision = curve.precision_heading if kind == "APH" else curve.precision
        scores.append(average_precisions(precision, curve.recall).mean(axis=1))
    return np.concatenate(scores)
