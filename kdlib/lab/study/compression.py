"""Scored students of two shapes in; what they and their teacher cost, and their cost-performance ratios, out."""

from __future__ import annotations

from typing import Any

import pandas as pd

from kdlib import records
from kdlib.lab.comparison import METRIC
from kdlib.lab.costs import cpr, frames_for, measure_model
from kdlib.lab.study.answers import Scores
from kdlib.viz import palette
from kdlib.viz.curves import CostPoint

COSTS = ("G MACs", "M acts", "parameters", "latency p50 ms")


def cost_table(scores: Scores, repeats: int) -> pd.DataFrame:
    """Return what the teacher and each student shape cost, on the run's own frames and this machine."""
    run, chapter, teacher = scores.chapter.run, scores.chapter, scores.trained.teachers["strong"]
    # Suppression's share of the latency depends on the boxes found, so every shape is timed with trained weights.
    models = {"teacher": (teacher.model, teacher.weights)}
    for name, arm in chapter.arms.items():
        models[arm.student.name] = (arm.student, scores.trained.results[name, chapter.seeds[0]].weights)
    rows = [
        {"role": role, **measure_model(model, weights, frames_for(run, model, repeats), repeats)}
        for role, (model, weights) in models.items()
    ]
    return pd.DataFrame(rows)[["role", "model", *COSTS, "latency p95 ms"]].round(3)


def ratio_table(scores: Scores, costs: pd.DataFrame) -> pd.DataFrame:
    """Return the cost-performance ratio of every arm, by each cost."""
    by_role, full_score = costs.set_index("role"), scores.teachers["strong"].metrics[METRIC]
    rows = []
    for name, arm in scores.chapter.arms.items():
        score, own = scores.mean(name, METRIC), by_role.loc[arm.student.name]
        ratios = {f"CPR, {cost}": cpr(score, full_score, float(own[cost]), float(by_role.loc["teacher"][cost])) for cost in COSTS}
        rows.append({"arm": arm.title, "student": arm.student.name, "share of mAPH kept": score / full_score, **ratios})
    return pd.DataFrame(rows).round(3)


def accuracy_points(scores: Scores, costs: pd.DataFrame, cost: str = "latency p50 ms") -> list[CostPoint]:
    """Return score over cost of the teacher and of both shapes, initialised and distilled."""
    own = {row["role"]: float(row[cost]) for row in records.table_rows(costs)}
    teacher = palette.role("teacher").color
    points = [CostPoint("teacher", own["teacher"], 100 * scores.teachers["strong"].metrics[METRIC], color=teacher)]
    shown = {name for question in scores.chapter.questions if question.name == "shape" for name in question.arms}
    for one in (arm for arm in scores.report.arms if arm.name in shown):
        arm = scores.chapter.arms[one.name]
        color = palette.SERIES[0] if arm.kd is None else palette.role("student").color
        points.append(CostPoint(arm.title, own[arm.student.name], 100 * one.mean, 100 * one.low, 100 * one.high, color))
    return points


def part(costs: pd.DataFrame, ratios: pd.DataFrame) -> dict[str, Any]:
    """Return both tables as a chapter of the report."""
    return {
        "title": "What the two shapes cost",
        "text": "The ratio is the share of the teacher's score a student keeps over the share of its cost it keeps: 1 for the "
        "teacher itself. The definition is ours.",
        "sentences": [],
        "tables": [
            {"caption": "Costs a frame, on this run's own frames", "rows": records.table_rows(costs)},
            {"caption": "Cost-performance ratios (CPR)", "rows": records.table_rows(ratios)},
        ],
        "pictures": [],
    }
