"""Times a detector stage by stage, from points to boxes.

The stages are cut where data passes from one child of the model to the next, so their sum is the
whole: ``voxelise`` (up to ``vfe``), ``encoder`` (``vfe`` and the scatter onto the BEV map),
``backbone`` (``backbone_2d``), ``head`` (``dense_head``) and ``decode`` (maps to boxes, with NMS).
A detector of two stages has four more between ``head`` and ``decode``: ``proposals`` (maps to
RoIs), ``keypoints`` (``pfe``), ``points`` (``point_head``) and ``refine`` (``roi_head``). Counting
(:mod:`kdlib.profiling.cost`) is a run of its own: its hooks take time.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from kdlib.errors import KdlibError
from kdlib.models.pvrcnn.two_stage import SECOND_STAGE
from kdlib.profiling.cost import evaluating
from kdlib.profiling.hardware import hardware_card
from kdlib.types import PointBatch

LATENCY_STAGES = ("voxelise", "encoder", "backbone", "head", "decode")
SECOND_STAGES = ("proposals", "keypoints", "points", "refine")
_ENTRANCES = ("vfe", "backbone_2d", "dense_head")  # children whose call ends the stage before it


class LatencyError(KdlibError):
    """A measurement that cannot be made."""


class Clock:
    """Marks moments and says how far apart they were: events in an accelerator's own queue, where
    calls return too early.

    On a CPU a call returns when it is done, so there the host's clock tells the truth.
    """

    def __init__(self, device: torch.device) -> None:
        self._backend: Any = None if device.type == "cpu" else getattr(torch, device.type)

    def mark(self) -> Any:
        """Return a token of this moment in the device's work."""
        if self._backend is None:
            return time.perf_counter()
        event = self._backend.Event(enable_timing=True)
        event.record()
        return event

    def settle(self) -> None:
        """Wait until every marked moment has passed."""
        if self._backend is not None:
            self._backend.synchronize()

    def milliseconds(self, start: Any, end: Any) -> float:
        """Return the time between two marks."""
        return 1000.0 * (end - start) if self._backend is None else float(start.elapsed_time(end))


@contextmanager
def _marking(model: nn.Module, clock: Clock, marks: list[Any]) -> Iterator[None]:
    handles = []
    two = hasattr(model, SECOND_STAGE[0])
    try:
        for name in (*_ENTRANCES, *(SECOND_STAGE if two else ())):
            child = getattr(model, name, None)
            if not isinstance(child, nn.Module):
                raise LatencyError(
                    f"{type(model).__name__} has no part '{name}', so its stages "
                    "cannot be told apart"
                )
            handles.append(child.register_forward_pre_hook(lambda *_: marks.append(clock.mark())))
            # decoding and NMS of the first stage come before the second one's first part
            if two and name == _ENTRANCES[-1]:
                handles.append(child.register_forward_hook(lambda *_: marks.append(clock.mark())))
        yield
    finally:
        for handle in handles:
            handle.remove()


def measure_latency(
    model: Any,
    batches: Sequence[PointBatch],
    *,
    warmup: int = 5,
    repeats: int = 20,
    clock: Clock | None = None,
) -> dict[str, Any]:
    """Time a detector in evaluation mode, from points that are already on its device to boxes.

    Its children separate the stages, and ``detect`` makes boxes of its prediction. Batches, all of
    one size, are used in turn; the times of ``warmup`` passes are dropped. The clock is by default
    device events on an accelerator, the host's on a CPU.

    What is returned are plain JSON values: mean, median and 95th percentile, milliseconds a batch,
    of every stage and of their sum, the settings and the card of the machine.

    Raises:
        LatencyError: If there is nothing to time, batch sizes differ, or the model lacks the parts
            that separate the stages.
    """
    sizes = {batch.batch_size for batch in batches}
    if len(sizes) != 1 or repeats < 1 or warmup < 0:
        raise LatencyError(
            f"needs batches of one size and repeats >= 1, got sizes {sorted(sizes)}, {repeats} "
            f"repeats, {warmup} warm-up"
        )
    stages = (
        *LATENCY_STAGES[:-1],
        *(SECOND_STAGES if hasattr(model, SECOND_STAGE[0]) else ()),
        LATENCY_STAGES[-1],
    )
    device = next(model.parameters()).device
    clock = clock or Clock(device)
    marks: list[Any] = []
    with torch.inference_mode(), evaluating(model), _marking(model, clock, marks):
        times = []
        for points in itertools.islice(itertools.cycle(batches), warmup + repeats):
            marks[:] = [clock.mark()]
            prediction = model(points)
            marks.append(clock.mark())
            model.detect(prediction)
            marks.append(clock.mark())
            clock.settle()
            if len(marks) != len(stages) + 1:
                raise LatencyError(
                    f"the parts {_ENTRANCES} were called {len(marks) - 3} times "
                    "in one pass, expected once each"
                )
            times.append([clock.milliseconds(a, b) for a, b in itertools.pairwise(marks)])
    columns = np.array(times[warmup:]).T  # (stages, repeats)
    return {
        "stages": {name: _summary(column) for name, column in zip(stages, columns)},
        "total": _summary(columns.sum(axis=0)),
        # voxels to boxes: what the published latencies time (spec 10.3)
        "without_voxelise": _summary(columns[1:].sum(axis=0)),
        "batch_size": sizes.pop(),
        "repeats": repeats,
        "warmup": warmup,
        "hardware": hardware_card(device),
    }


def _summary(times: Any) -> dict[str, float]:
    p50, p95 = np.percentile(times, (50, 95))
    return {"mean_ms": float(np.mean(times)), "p50_ms": float(p50), "p95_ms": float(p95)}
