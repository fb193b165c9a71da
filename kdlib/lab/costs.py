"""Tables of what models cost: parameters, multiply-accumulates in two conventions, activations,
latency, ratios.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from kdlib import zoo
from kdlib.config import ModelConfig
from kdlib.data.collate import collate
from kdlib.errors import ConfigError
from kdlib.lab.comparison import arm_color
from kdlib.lab.pipeline import Run, chosen_teacher, trained_students
from kdlib.lab.profile import ARMS
from kdlib.lab.trained import TrainedWeights
from kdlib.models.build import build
from kdlib.models.weights import load_weights
from kdlib.profiling import published
from kdlib.profiling.cost import measure_cost
from kdlib.profiling.latency import measure_latency
from kdlib.profiling.model_profile import dense_report, ghost
from kdlib.types import Json, PointBatch
from kdlib.viz.curves import CostPoint

COSTS = ("G MACs", "M acts", "parameters", "latency p50 ms")


def cpr(score: float, teacher_score: float, cost: float, teacher_cost: float) -> float:
    """Return the cost-performance ratio of a student: the share of the teacher's score kept over
    the share of its cost kept.

    1 for the teacher itself; 2 keeps twice as much of the score as of the cost, in any unit. The
    specification does not say how the paper computes its ratio of that name: this definition is
    ours. ConfigError if costs or teacher's score are not positive.
    """
    if min(teacher_score, cost, teacher_cost) <= 0:
        raise ConfigError(
            "a ratio needs positive costs and a teacher that scores: "
            f"{teacher_score=}, {cost=}, {teacher_cost=}"
        )
    return (score / teacher_score) / (cost / teacher_cost)


def frames_for(run: Run, model: ModelConfig, count: int) -> list[PointBatch]:
    """Return validation frames, spread over the split, one to a batch."""
    data = run.frames(model)
    chosen = np.linspace(0, len(data) - 1, min(count, len(data))).astype(int)
    return [collate([data[int(index)]]).points for index in chosen]


def measure_model(trained: TrainedWeights, frames: list[PointBatch], repeats: int) -> Json:
    """Return one row: parameters, cost per frame averaged over the frames, latency on this machine.

    Latency depends on the weights through the number of boxes that suppression sees, so they are
    loaded.
    """
    network = build(trained.model).eval()
    load_weights(trained.weights, network)
    costs = [measure_cost(network, frame) for frame in frames]
    macs, published_macs, acts = np.mean(
        [(cost.macs, cost.published_macs, cost.acts) for cost in costs], axis=0
    ).tolist()
    latency = measure_latency(network, frames, warmup=3, repeats=repeats)
    return {
        "model": trained.model.name,
        "parameters": costs[0].parameters,
        "G MACs": macs / 1e9,
        "G MACs (published convention)": published_macs / 1e9,
        "M acts": acts / 1e6,
        "latency p50 ms": latency["total"]["p50_ms"],
        "latency p95 ms": latency["total"]["p95_ms"],
        **{f"{stage} ms": times["p50_ms"] for stage, times in latency["stages"].items()},
    }


def measure_roles(run: Run, models: Mapping[str, TrainedWeights], repeats: int) -> pd.DataFrame:
    """Return a row of costs for each role's model, on the run's own frames and this machine."""
    costs = {
        role: measure_model(model, frames_for(run, model.model, repeats), repeats)
        for role, model in models.items()
    }
    return pd.DataFrame([{"role": role, **cost} for role, cost in costs.items()]).round(3)


def measure_run(run: Run, repeats: int) -> pd.DataFrame:
    """Return the costs of the run's teacher and student."""
    *_, student = trained_students(run).values()
    return measure_roles(run, {"teacher": chosen_teacher(run), "student": student}, repeats)


def family_table() -> pd.DataFrame:
    """Return the published models: dense cost counted here in both conventions, beside the
    published cells.

    The published numbers also hold the encoder, whose share depends on the voxels of real Waymo
    frames (spec 10.2).
    """
    rows = []
    for name, figures in published.PUBLISHED_MODELS.items():
        network = ghost(zoo.model(name))
        cost = dense_report(network)
        rows.append(
            {
                "model": name,
                "parameters": sum(p.numel() for p in network.parameters()),
                "dense G MACs": cost.macs / 1e9,
                "dense G, published convention": cost.published_macs / 1e9,
                "dense M acts": cost.acts / 1e6,
                "published G": figures.giga_flops,
                "published M acts": figures.mega_acts,
                "published ms (GTX 1060)": figures.latency_ms["GTX 1060"],
                "published LEVEL_2 mAPH on Waymo": figures.level_2_maph,
            }
        )
    return pd.DataFrame(rows).round(3)


def ratio_row(
    score: float, teacher_score: float, costs: pd.DataFrame, role: str
) -> dict[str, float]:
    """Return the share of the teacher's score that a student keeps, and its cost-performance ratio
    by each of ``COSTS``; NaN, a dash in tables, where the teacher scores nothing.
    """
    if not teacher_score > 0:
        names = ("share of mAPH kept", *(f"CPR, {cost}" for cost in COSTS))
        return dict.fromkeys(names, float("nan"))
    own, whole = (costs.set_index("role").loc[name] for name in (role, "teacher"))
    by_cost = {f"CPR, {cost}": cpr(score, teacher_score, own[cost], whole[cost]) for cost in COSTS}
    return {"share of mAPH kept": score / teacher_score, **by_cost}


def ratio_table(run: Run, costs: pd.DataFrame) -> pd.DataFrame:
    """Return the cost-performance ratio of every student arm of a run, by each cost that was
    measured.
    """
    scores = {row["arm"]: row["LEVEL_2 mAPH"] for row in run.result("03_evaluate")["arms"]}
    full = scores.pop("teacher")
    return pd.DataFrame(
        [{"arm": arm, **ratio_row(score, full, costs, "student")} for arm, score in scores.items()]
    ).round(3)


def cost_reading(costs: pd.DataFrame, ratios: pd.DataFrame) -> str:
    """Say in words what the student saves, and what it keeps of the teacher's score."""
    student, teacher = (costs.set_index("role").loc[role] for role in ("student", "teacher"))
    macs, time = (student[name] / teacher[name] for name in ("G MACs", "latency p50 ms"))
    said = (
        f"The student needs {macs:.0%} of the teacher's multiply-accumulates and, on this machine, "
        f"{time:.0%} of its time: {student['latency p50 ms']:.0f} ms a frame instead of "
        f"{teacher['latency p50 ms']:.0f}."
    )
    kept = ratios.dropna(subset=["share of mAPH kept"]).sort_values("share of mAPH kept")
    if not len(kept):
        return f"{said} The teacher scores nothing, so there is nothing to keep."
    return f"{said} It keeps most with '{kept['arm'].iloc[-1]}': " + (
        f"{kept['share of mAPH kept'].iloc[-1]:.0%} of the teacher's LEVEL_2 mAPH."
    )


def accuracy_points(run: Run, costs: pd.DataFrame) -> list[CostPoint]:
    """Return LEVEL_2 mAPH over cost of the teacher and every arm of the student, in its colour."""
    cost = costs.set_index("role")["G MACs"]
    arms = {title: arm for arm, title in ARMS.items()}
    return [
        CostPoint(
            row["arm"],
            cost["teacher" if row["arm"] == "teacher" else "student"],
            row["LEVEL_2 mAPH"],
            row["95 % low"],
            row["95 % high"],
            arm_color(arms.get(row["arm"], row["arm"])),
        )
        for row in run.result("03_evaluate")["arms"]
    ]
