"""The bench of speed: ratios from given times, references that answer as kdlib does, a table with
every row.
"""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from kdlib import zoo
from kdlib.config import CLASS_NAMES, GridConfig, HeadConfig
from kdlib.errors import ConfigError
from kdlib.models.build import build
from kdlib.models.geometry.nms import rotated_nms
from kdlib.models.sparse.voxelize import voxelize
from kdlib.models.targets import assign_targets
from kdlib.tools.bench import operators, speed, timing
from kdlib.tools.bench.crowd import crowded_boxes
from kdlib.tools.bench.measurements import Measurement, times_faster
from kdlib.tools.bench.operators import Disagreement, bench_nms, bench_targets, bench_voxels
from kdlib.tools.bench.references import loop_targets, matrix_nms, shapely_nms, wheel_voxels
from kdlib.tools.bench.settings import Setting, bench_settings, contiguous, verdict
from kdlib.tools.bench.speed import OVERHEAD, bench_speed
from kdlib.tools.bench.steps import (
    PAIR,
    bench_steps,
    demo_store,
    step_lines,
    training_batches,
    training_frames,
)
from kdlib.tools.bench.timing import median_times
from kdlib.types import PointBatch

GRID = GridConfig((-8.0, -6.0, -2.0, 8.0, 6.0, 4.0), (0.5, 0.5, 6.0), 3)


class Ticks:
    """A clock that moves one second a mark."""

    def __init__(self) -> None:
        self.now = 0

    def mark(self) -> int:
        self.now += 1
        return self.now

    def settle(self) -> None:
        """Nothing runs."""

    def milliseconds(self, start: int, end: int) -> float:
        return 1000.0 * (end - start)


def test_a_ratio_is_that_of_the_medians():
    ours, theirs = (
        Measurement("nms_ms", "ours", 2.0, "ms"),
        Measurement("nms_reference_ms", "a loop", 30.0, "ms"),
    )
    *both, times = times_faster("nms", ours, theirs, at_least=20.0)
    assert both == [ours, theirs] and (times.key, times.value, times.met) == (
        "nms_times",
        15.0,
        False,
    )
    assert (
        times_faster("nms", ours, Measurement("nms_reference_ms", "a loop", None, "ms"))[-1].value
        is None
    )


def test_distillation_is_compared_with_its_parts():
    rows = {line.key: line for line in step_lines(100.0, 220.0, 100.0, 4, OVERHEAD)}
    assert rows["distillation_ratio"].value == pytest.approx(1.1) and rows["distillation_ratio"].met
    assert rows["plain_samples_per_s"].value == pytest.approx(40.0)
    assert rows["distilled_samples_per_s"].value == pytest.approx(4000 / 220)


def test_work_is_taken_in_turns_after_a_warm_up(monkeypatch):
    seen = []
    monkeypatch.setattr(timing, "Clock", lambda device: Ticks())
    times = median_times(
        {"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, rounds=2, warmup=1
    )
    assert seen == ["a", "b"] * 3
    assert times == {"a": 1000.0, "b": 1000.0}


@pytest.mark.parametrize("iou, pre, post", [(0.7, 300, 300), (0.2, 200, 50), (0.05, 300, 300)])
def test_plain_suppressions_keep_the_same_boxes(iou, pre, post):
    pytest.importorskip("shapely", reason="the loop over polygons needs shapely")
    boxes, scores = crowded_boxes(300, objects=30)
    kept = rotated_nms(boxes, scores, iou, pre, post)
    assert torch.equal(kept, shapely_nms(boxes, scores, iou, pre, post))
    assert torch.equal(kept, matrix_nms(boxes, scores, iou, pre, post))


@pytest.mark.parametrize("heads", [(CLASS_NAMES,), (("Vehicle", "Cyclist"), ("Pedestrian",))])
def test_a_loop_over_boxes_assigns_the_same_targets(heads):
    boxes = torch.stack([crowded_boxes(40, seed, objects=40, half=9.0)[0] for seed in range(3)])
    boxes[0, 3, 4], boxes[1, 5, 0] = 0.0, float("nan")
    labels = torch.randint(0, 4, (3, 40), generator=torch.Generator().manual_seed(1))
    head = HeadConfig(heads=heads)
    for ours, theirs in zip(
        assign_targets(boxes, labels, grid=GRID, head=head),
        loop_targets(boxes, labels, grid=GRID, head=head),
    ):
        for name in ("heatmap", "boxes", "indices", "mask"):
            torch.testing.assert_close(
                getattr(ours, name), getattr(theirs, name), rtol=0, atol=1e-6
            )


def test_the_wheel_makes_the_same_voxels():
    pytest.importorskip(
        "spconv.pytorch", reason="needs spconv's wheel for processors: pip install spconv==2.3.8"
    )
    points = _points()
    ours, theirs = voxelize(points, GRID), wheel_voxels(GRID, 5)(points)
    for name in ("features", "coords", "num_points"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


def _points() -> PointBatch:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(4000, 5, generator=generator) * torch.tensor(
        [20.0, 16.0, 7.0, 1.0, 1.0]
    ) - torch.tensor([10.0, 8, 3, 0, 0])
    return PointBatch(values, torch.arange(2).repeat_interleave(2000), 2, ("a", "b"))


def test_what_is_not_installed_is_left_out_with_a_sentence(monkeypatch):
    def no_wheel(*_, **__):
        raise ConfigError("spconv's wheel is not installed")

    monkeypatch.setattr(operators, "wheel_voxels", no_wheel)
    (ours, _, times), notes = bench_voxels(_points(), 1, ["cp_pillar_demo_v0.64"])
    assert ours.value and times.value is None
    assert notes == ["not compared with spconv's wheel: spconv's wheel is not installed"]
    monkeypatch.setattr(operators, "shapely_nms", no_wheel)
    lines, notes = bench_nms(1, 50)
    values = {line.key: line.value for line in lines}
    assert (
        values["nms_times"] is None
        and values["nms_matrix_times"]
        and ("not compared with a shapely loop") in notes[0]
    )


def test_times_of_different_answers_are_not_compared(monkeypatch):
    monkeypatch.setattr(
        operators,
        "loop_targets",
        lambda boxes, *args, **kwargs: assign_targets(boxes + 1, *args, **kwargs),
    )
    with pytest.raises(Disagreement, match="different answers"):
        bench_targets(1, frames=1, labels=4)


def test_contiguous_maps_give_the_same_answers():
    model = build(zoo.model("cp_pillar_demo_v0.64")).eval()
    with torch.no_grad():
        before = model(_points()).heads[0].heatmap
        contiguous(model)
        after = model(_points()).heads[0].heatmap
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-5)


def test_a_setting_that_fails_is_left_out_with_a_sentence():
    def fail(_):
        raise RuntimeError("no C++ compiler\nand more")

    with demo_store(frames=2) as store:
        data = training_batches(training_frames(store, PAIR), count=1, size=1)
    found, notes = bench_settings(
        PAIR, data, 1, settings=[Setting("compile", "torch.compile", on=fail)]
    )
    assert not found and notes == [
        ("torch.compile could not be measured: RuntimeError no C++ compiler")
    ]


@pytest.mark.parametrize(
    "on, words", [(50.0, "wins, 2.00"), (100.0, "makes no difference"), (200.0, "loses, 0.50")]
)
def test_a_setting_is_judged_by_its_ratio(on, words):
    assert words in verdict("step: bf16", 100.0 / on)


@pytest.fixture(scope="module")
def outcome():
    return bench_speed(
        rounds=1, compile_too=False, boxes=60, sweeps=1, grids=["cp_pillar_demo_v0.64"]
    )


def test_the_table_is_complete(outcome):
    values = outcome.to_dict()
    assert json.loads(json.dumps(values)) == values
    assert set(values["targets"]) == {
        "nms_times",
        "targets_times",
        "distillation_ratio",
        "loader_ahead",
    }
    numbers = values["numbers"]
    assert numbers["nms_matrix_times"] > 0 and numbers["voxels_cp_pillar_demo_v0.64_ms"] > 0
    for work in ("student_step", "teacher_pass", "student_inference"):
        for setting in ("bf16", "channels_last"):
            on, off = (numbers[f"{setting}_{work}_{state}_ms"] for state in ("on", "off"))
            assert numbers[f"{setting}_{work}_times"] == pytest.approx(off / on)
    parts = numbers["plain_step_ms"] + numbers["teacher_ms"]
    assert numbers["distillation_ratio"] == pytest.approx(numbers["distillation_step_ms"] / parts)
    assert numbers["loader_ahead"] == pytest.approx(numbers["plain_step_ms"] / numbers["loader_ms"])
    assert {
        f"cp_pillar_demo_{stage}_ms"
        for stage in ("voxelise", "encoder", "backbone", "head", "decode")
    } <= set(numbers)
    assert "distillation step" in outcome.text()


def test_the_page_has_every_row_and_the_card(outcome):
    made = outcome.page("python -m kdlib bench")
    assert all(f"`{line.key}`" in made for line in outcome.lines)
    assert outcome.hardware["cpu"] in made and "**simulated**" in made and "threads" in made


def test_bench_alone_is_the_bench_of_speed(outcome, monkeypatch, tmp_path):
    from kdlib.cli import app

    monkeypatch.setattr(speed, "bench_speed", lambda *args, **kwargs: outcome)
    done = CliRunner().invoke(app, ["bench", "--json", "--out", str(tmp_path / "bench.md")])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["bench"] == "speed"
    assert json.loads((tmp_path / "bench.json").read_text())["bench"] == "speed"
    assert "`nms_times`" in (tmp_path / "bench.md").read_text()


def test_training_is_measured_on_the_device_named():
    outcome = bench_steps(device="cpu", rounds=1, batch=1, compile_too=False)
    for how in ("fp32", "bf16"):
        ratio = outcome[f"{how}_distillation_step_ms"] / (
            outcome[f"{how}_plain_step_ms"] + outcome[f"{how}_teacher_ms"]
        )
        assert outcome[f"{how}_distillation_ratio"] == pytest.approx(ratio)
        assert outcome[f"{how}_plain_samples_per_s"] == pytest.approx(
            1000 / outcome[f"{how}_plain_step_ms"]
        )
    assert not any("peak" in line.key for line in outcome.lines), "a processor counts no memory"
    with pytest.raises(ConfigError, match="is not there"):
        bench_steps(device="xla:7")
