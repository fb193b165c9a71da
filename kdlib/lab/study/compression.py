"""What students of two shapes and their teacher cost, and their cost-performance ratios."""

from __future__ import annotations

import pandas as pd

from kdlib.lab.comparison import METRIC
from kdlib.lab.costs import COSTS, measure_roles, ratio_row
from kdlib.lab.gain import in_percent
from kdlib.lab.parts import part
from kdlib.lab.study.answers import ChapterComparison
from kdlib.lab.study.trainings import arm_teacher
from kdlib.lab.trained import TrainedWeights
from kdlib.types import Json
from kdlib.viz import palette
from kdlib.viz.curves import CostPoint


def shape_costs(compared: ChapterComparison, repeats: int) -> pd.DataFrame:
    """Return what the teacher and each student shape cost, on the run's own frames and this
    machine.
    """
    chapter = compared.chapter
    # Suppression's share of the latency depends on the boxes found, so every shape is timed with
    # trained weights.
    models = {"teacher": arm_teacher(chapter.run, "strong")}
    for name, arm in chapter.arms.items():
        models[arm.student.name] = TrainedWeights(
            arm.student, compared.students[name, chapter.seeds[0]].weights
        )
    return measure_roles(chapter.run, models, repeats)[["role", "model", *COSTS, "latency p95 ms"]]


def shape_ratios(compared: ChapterComparison, costs: pd.DataFrame) -> pd.DataFrame:
    """Return the cost-performance ratio of every arm, by each cost."""
    full, rows = compared.teachers["strong"].metrics[METRIC], []
    for name, arm in compared.chapter.arms.items():
        ratios = ratio_row(compared.mean(name, METRIC), full, costs, arm.student.name)
        rows.append({"arm": compared.titles[name], "student": arm.student.name, **ratios})
    return pd.DataFrame(rows).round(3)


def shape_points(compared: ChapterComparison, costs: pd.DataFrame) -> list[CostPoint]:
    """Return score over latency of the teacher and of both shapes, initialised and distilled."""
    own = costs.set_index("role")["latency p50 ms"]
    teacher = palette.role("teacher").color
    points = [
        CostPoint(
            "teacher",
            own["teacher"],
            100 * compared.teachers["strong"].metrics[METRIC],
            color=teacher,
        )
    ]
    shown = compared.chapter.question("shape").arms
    for score in (arm for arm in compared.report.arms if arm.name in shown):
        arm = compared.chapter.arms[score.name]
        color = palette.SERIES[0] if arm.kd is None else palette.role("student").color
        points.append(
            CostPoint(compared.titles[arm.name], own[arm.student.name], *in_percent(score), color)
        )
    return points


def cost_part(costs: pd.DataFrame, ratios: pd.DataFrame) -> Json:
    """Return both tables as a chapter of the report."""
    text = (
        "The ratio is the share of the teacher's score a student keeps over the share of its "
        "cost it keeps: 1 for the teacher "
        "itself. The definition is ours."
    )
    tables = {
        "Costs a frame, on this run's own frames": costs,
        "Cost-performance ratios (CPR)": ratios,
    }
    return part("What the two shapes cost", text, tables=tables)
