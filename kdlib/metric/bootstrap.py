"""EvalResults of several arms, each over several seeds on the same frames, in; means, spreads and 95 % intervals out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdlib.errors import ConfigError
from kdlib.metric.ap import average_precisions, precision_recall
from kdlib.metric.shards import MEAN_TYPES, type_breakdown
from kdlib.metric.waymo_metrics import EvalResult, FrameCounts
from kdlib.types import Float64, Int64

Unit = Literal["segment", "frame"]
METRICS = ("LEVEL_1/mAP", "LEVEL_1/mAPH", "LEVEL_2/mAP", "LEVEL_2/mAPH")
_BLOCK = 100  # resamples scored at once


@dataclass(frozen=True)
class ArmScore:
    """One way of training, over its seeds."""

    name: str
    values: tuple[float, ...]  # the metric per seed, on all frames
    mean: float
    std: float  # over seeds, 0 for one seed
    low: float  # 95 % interval of the mean
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
    unit: Unit
    units: int
    resamples: int
    seed: int

    def arm(self, name: str) -> ArmScore:
        """Return an arm by name."""
        return next(arm for arm in self.arms if arm.name == name)

    def difference(self, first: str, second: str) -> Difference:
        """Return ``first`` minus ``second``, whichever way round it was stored."""
        for d in self.differences:
            if (d.first, d.second) == (first, second):
                return d
            if (d.first, d.second) == (second, first):
                return Difference(first, second, 0.0 - d.mean, 0.0 - d.high, 0.0 - d.low)  # no negative zero
        raise KeyError(f"no difference between '{first}' and '{second}'")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        plain = asdict(self)
        plain["arms"] = [{**arm, "values": list(arm["values"])} for arm in plain["arms"]]
        plain["differences"] = list(plain["differences"])
        return plain


def bootstrap(
    arms: Mapping[str, Sequence[EvalResult]],
    *,
    metric: str = "LEVEL_2/mAPH",
    unit: Unit = "segment",
    resamples: int = 1000,
    seed: int = 0,
) -> BootstrapReport:
    """Return each arm's mean with a 95 % percentile interval, and the paired differences of all arms.

    Every resample draws segments (or frames) with replacement, the same for all arms, and seeds with replacement, the same
    positions for all arms that have equally many: an interval answers both "other streets" and "other random numbers". Frames of
    a segment show the same objects, so resampling single frames understates the spread.

    Args:
        arms: Name -> one result per seed, all on the same frames, with ``frames`` kept; arms are paired in seed order.
        metric: One of :data:`METRICS`.
        unit: What is resampled; a frame's segment is its id up to the last underscore.
        resamples: Number of resamples.
        seed: Of the resampling; equal inputs and seed give equal reports.

    Raises:
        ConfigError: If arms, frames or settings do not allow a comparison.
    """
    if metric not in METRICS:
        raise ConfigError(f"cannot bootstrap '{metric}'; choose one of {', '.join(METRICS)}")
    if unit not in ("segment", "frame"):
        raise ConfigError(f"unit '{unit}' is neither 'segment' nor 'frame'")
    if resamples < 1:
        raise ConfigError(f"resamples must be at least 1, not {resamples}")
    ids = _same_frames(arms)
    group, units = _units(ids, unit)
    rng = np.random.default_rng(seed)
    weight = rng.multinomial(units, np.full(units, 1.0 / units), size=resamples).astype(np.float64)
    drawn = {n: rng.integers(0, n, (resamples, n)) for n in sorted({len(results) for results in arms.values()})}
    means: dict[str, Float64] = {}
    for name, results in arms.items():
        scores = np.stack([_resampled(_counts_of(result), group, weight, metric) for result in results], axis=1)
        means[name] = np.take_along_axis(scores, drawn[len(results)], axis=1).mean(axis=1)
    summaries = tuple(_summarise(name, [result.metrics[metric] for result in arms[name]], means[name]) for name in arms)
    differences = tuple(_compare(a, b, means[a.name], means[b.name]) for b, a in combinations(summaries, 2))
    return BootstrapReport(metric, summaries, differences, unit, units, resamples, seed)


def _summarise(name: str, values: list[float], resampled: Float64) -> ArmScore:
    low, high = np.percentile(resampled, (2.5, 97.5))
    std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return ArmScore(name, tuple(values), float(np.mean(values)), std, float(low), float(high))


def _compare(first: ArmScore, second: ArmScore, resampled_first: Float64, resampled_second: Float64) -> Difference:
    difference = resampled_first - resampled_second
    low, high = np.percentile(difference, (2.5, 97.5))
    return Difference(first.name, second.name, first.mean - second.mean, float(low), float(high))


def _counts_of(result: EvalResult) -> FrameCounts:
    if result.frames is None:
        raise ConfigError("the bootstrap needs the counts of every frame; evaluate with keep_frames=True")
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
                    f"result {i} of arm '{name}' was evaluated on other frames or ground truth than '{first_name}'; "
                    "evaluate all arms on one table"
                )
    if not ids:
        raise ConfigError("the results have no frames; nothing can be resampled")
    return ids


def _units(ids: tuple[Any, ...], unit: Unit) -> tuple[Int64, int]:
    """Return each frame's unit (F,) and the number of units."""
    if unit == "frame":
        return np.arange(len(ids)), len(ids)
    segments = [str(name).rpartition("_")[0] or str(name) for name in ids]
    names = {name: i for i, name in enumerate(dict.fromkeys(segments))}
    return np.array([names[name] for name in segments]), len(names)


def _resampled(frames: FrameCounts, group: Int64, weight: Float64, metric: str) -> Float64:
    """Return the metric of every resample (R,); ``weight`` (R, units) is how often each unit was drawn."""
    level, kind = int(metric[6]), metric.split("/m")[1]
    wanted = [frames.breakdowns.index(type_breakdown(name)) for name in MEAN_TYPES]
    counts = frames.counts
    columns = [_by_unit(a[:, wanted], group, weight.shape[1]) for a in (counts.tp, counts.fp, counts.fn(level), counts.sum_ha)]
    shape = (len(wanted), counts.tp.shape[2])
    scores = []
    for start in range(0, len(weight), _BLOCK):
        block = weight[start : start + _BLOCK]
        tp, fp, fn, sum_ha = ((block @ column).reshape(-1, *shape) for column in columns)
        curve = precision_recall(tp, fp, fn, sum_ha)
        scores.append(
            average_precisions(curve.precision_heading if kind == "APH" else curve.precision, curve.recall).mean(axis=1)
        )
    return np.concatenate(scores)


def _by_unit(values: NDArray[Any], group: Int64, units: int) -> Float64:
    """Return the sums (units, T * C) of each unit's frames."""
    flat = values.reshape(len(values), -1).astype(np.float64)
    sums = np.zeros((units, flat.shape[1]))
    np.add.at(sums, group, flat)
    return sums
