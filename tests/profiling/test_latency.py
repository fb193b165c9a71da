"""Stage times against a clock that is turned by hand."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kdlib import zoo
from kdlib.models.build import build
from kdlib.profiling import latency
from kdlib.profiling.latency import Clock, LatencyError, measure_latency
from kdlib.types import PointBatch


class HandClock:
    """Stands still unless a part of the model turns it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.settled = 0
        self.measured_at: list[int] = []

    def mark(self) -> float:
        return self.now

    def settle(self) -> None:
        self.settled += 1

    def milliseconds(self, start: float, end: float) -> float:
        self.measured_at.append(self.settled)
        return end - start


class Part(nn.Module):
    def __init__(self, clock: HandClock, cost: float) -> None:
        super().__init__()
        self.clock, self.cost = clock, cost

    def forward(self, value: float) -> float:
        self.clock.now += self.cost
        return value


class Toy(nn.Module):
    """Takes 1 ms to voxelise, 2 + 0.5 to encode and scatter, 4 and 8 in the backbone and head, 16
    to decode; slower each turn.
    """

    def __init__(self, clock: HandClock) -> None:
        super().__init__()
        self.clock, self.turn, self.was_training = clock, 0, []
        self.vfe, self.backbone_2d, self.dense_head = Part(clock, 2), Part(clock, 4), Part(clock, 8)
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, points: PointBatch) -> float:
        self.was_training.append(self.training)
        self.turn += 1
        self.clock.now += 1 + 100 * self.turn
        value = self.vfe(0.0)
        self.clock.now += 0.5
        return self.dense_head(self.backbone_2d(value))

    def detect(self, prediction: float) -> list[None]:
        self.clock.now += 16
        return []


def scan(size: int = 1) -> PointBatch:
    return PointBatch(
        torch.rand(200, 5), torch.zeros(200, dtype=torch.int64), size, ("a_000",) * size
    )


def test_stages_are_told_apart_and_warm_up_is_not_timed() -> None:
    clock = HandClock()
    model = Toy(clock).train()
    report = measure_latency(model, [scan()], warmup=2, repeats=3, clock=clock)
    alike = {"encoder": 2.5, "backbone": 4.0, "head": 8.0, "decode": 16.0}
    assert report["stages"] == {
        "voxelise": {"mean_ms": 401.0, "p50_ms": 401.0, "p95_ms": pytest.approx(491.0)},
        **{name: dict.fromkeys(("mean_ms", "p50_ms", "p95_ms"), ms) for name, ms in alike.items()},
    }
    assert report["total"] == {"mean_ms": 431.5, "p50_ms": 431.5, "p95_ms": pytest.approx(521.5)}
    assert report["without_voxelise"]["mean_ms"] == 30.5
    assert model.was_training == [False] * 5 and model.training
    assert not model.vfe._forward_pre_hooks


def test_nothing_is_read_before_the_device_has_settled() -> None:
    clock = HandClock()
    measure_latency(Toy(clock), [scan()], warmup=0, repeats=3, clock=clock)
    assert clock.measured_at == [turn for turn in (1, 2, 3) for _ in latency.LATENCY_STAGES]


def test_batches_are_used_in_turn() -> None:
    clock, seen = HandClock(), []
    model = Toy(clock)
    model.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    a, b = scan(), scan()
    measure_latency(model, [a, b], warmup=1, repeats=2, clock=clock)
    assert [batch is a for batch in seen] == [True, False, True]


def test_what_cannot_be_timed_is_refused() -> None:
    clock = HandClock()
    for batches, repeats in (([], 1), ([scan(1), scan(2)], 1), ([scan()], 0)):
        with pytest.raises(LatencyError, match="batches of one size"):
            measure_latency(Toy(clock), batches, repeats=repeats, clock=clock)
    with pytest.raises(LatencyError, match="no part 'vfe'"):
        measure_latency(nn.Linear(1, 1), [scan()], clock=clock)
    twice = Toy(clock)
    twice.dense_head = nn.Sequential(twice.vfe, twice.dense_head)
    with pytest.raises(LatencyError, match="expected once each"):
        measure_latency(twice, [scan()], clock=clock)
    assert not twice.vfe._forward_pre_hooks


def test_a_detector_on_this_machine() -> None:
    model = build(zoo.CP_PILLAR_DEMO_V064)
    points = scan()
    report = measure_latency(model, [points], warmup=1, repeats=2)
    assert all(ms > 0 for stage in report["stages"].values() for ms in stage.values())
    values = json.loads(json.dumps(report))
    assert values["repeats"] == 2 and values["warmup"] == 1
    assert values["hardware"]["device"] == values["hardware"]["cpu"]


def test_each_device_gets_its_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Clock(torch.device("cpu"))
    assert host.milliseconds(host.mark(), host.mark()) >= 0
    calls: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            calls.append("record")

        def elapsed_time(self, end: Event) -> float:
            return 7.0

    backend = SimpleNamespace(Event=Event, synchronize=lambda: calls.append("synchronize"))
    monkeypatch.setattr(torch, "cuda", backend)
    clock = Clock(torch.device("cuda"))
    start, end = clock.mark(), clock.mark()
    clock.settle()
    assert clock.milliseconds(start, end) == 7.0
    assert calls == ["record", "record", "synchronize"]
