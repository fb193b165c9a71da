"""The table of costs and latencies: numbers agree with each other, published cells stand where they
belong.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kdlib.errors import ConfigError
from kdlib.profiling import published
from kdlib.profiling.latency import LATENCY_STAGES, SECOND_STAGES
from kdlib.tools.bench.models import bench_models, costs_page, costs_text

REPORTS = Path(__file__).resolve().parents[3] / "reports"


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    names = ("cp_voxel_xxs", "cp_pillar_demo_v0.64", "pv_rcnn_pp_demo")
    return bench_models(names, "cpu", frames=1, repeats=2, warmup=0)


def test_numbers_agree_with_each_other(measured: dict[str, Any]) -> None:
    assert json.loads(json.dumps(measured)) == measured
    assert (
        measured["simulated"] is True and measured["hardware"]["threads"] == torch.get_num_threads()
    )
    voxel, pillar, refining = measured["models"]
    assert voxel["cost"]["params"] == 1_012_643 and pillar["cost"]["params"] == 329_123
    for row in (voxel, pillar, refining):
        assert set(row["latency"]) == {"fp32", "mixed"} and row["peak_memory"] is None, (
            "no accelerator to ask"
        )
        for report in row["latency"].values():
            assert report["repeats"] == 2
            assert all(stage["p50_ms"] > 0 for stage in report["stages"].values())
            assert report["total"]["p95_ms"] >= report["total"]["p50_ms"] > 0


def test_table_has_published_cells_and_reasons(measured: dict[str, Any]) -> None:
    text = costs_text(measured)
    row = next(
        line for line in text.splitlines() if line.startswith("| `cp_voxel_xxs` | 1,012,643")
    )
    assert (
        "| 6.53 | **12.0** |" in row and "| 18.5 | **33.1** |" in row and "real Waymo frames" in row
    )
    assert "**simulated**" in text and "1.83x" in text, "129.12 / 70.44 on the GTX 1060"


def test_a_second_stage_is_timed_part_by_part(measured: dict[str, Any]) -> None:
    refining = measured["models"][2]
    for report in refining["latency"].values():
        stages = report["stages"]
        assert list(stages) == [*LATENCY_STAGES[:-1], *SECOND_STAGES, LATENCY_STAGES[-1]]
        assert sum(stage["mean_ms"] for stage in stages.values()) == pytest.approx(
            report["total"]["mean_ms"]
        )
    assert (
        "`pv_rcnn_pp_demo` has a second stage between head and decode; of its fp32 p50, in "
        "ms: proposals "
    ) in costs_text(measured)
    assert not {"keypoints", "refine"} & set(measured["models"][0]["latency"]["fp32"]["stages"])


def test_speeds_are_multiples_of_pointpillar(measured: dict[str, Any]) -> None:
    voxel, pillar, _ = measured["models"]
    renamed = {**measured, "models": [voxel, {**pillar, "model": "pointpillar"}]}
    ratio = (
        pillar["latency"]["fp32"]["total"]["p50_ms"] / voxel["latency"]["fp32"]["total"]["p50_ms"]
    )
    line = next(
        line
        for line in costs_text(renamed).splitlines()
        if line.startswith("| `cp_voxel_xxs`") and "1.83x" in line
    )
    assert f"| {ratio:.2f}x |" in line


def test_cost_performance_ratios_need_the_teacher_in_the_table(measured: dict[str, Any]) -> None:
    assert "Cost-performance" not in costs_text(measured)
    voxel, pillar, _ = measured["models"]
    text = costs_text({**measured, "models": [voxel, {**pillar, "model": "cp_voxel"}]})
    row = next(
        line for line in text.splitlines() if line.startswith("| `cp_voxel_xxs` with SparseKD")
    )
    kept = 59.28 / 64.29
    counted = kept / (voxel["cost"]["macs"] / pillar["cost"]["macs"])
    assert row == (
        f"| `cp_voxel_xxs` with SparseKD | {100 * kept:.1f} % | {kept * 114.8 / 12.0:.2f} | "
        f"{kept * 101.9 / 33.1:.2f} "
        f"| {kept * 125.70 / 70.44:.2f} | {counted:.2f} |"
    )


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="device 'nowhere' is not there"):
        bench_models(("cp_voxel_xxs",), "nowhere")


def test_the_committed_page_is_that_of_its_numbers() -> None:
    values = json.loads((REPORTS / "costs.json").read_text())
    assert (REPORTS / "costs.md").read_text() == costs_page(values)
    assert [row["model"] for row in values["models"]] == [
        *published.PUBLISHED_MODELS,
        *published.PUBLISHED_CROSS_STAGE,
    ]
