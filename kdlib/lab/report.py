"""The results and pictures of a run's stages in; one ``result.json`` and one self-contained ``report.html`` out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdlib import records
from kdlib.lab.page import Cover, Picture, Section, Table, Tile, Verdict, write_report
from kdlib.lab.profiles import MAIN_LINE as STAGES
from kdlib.viz.linked import viewer


def table_of(records: Sequence[dict[str, Any]], caption: str = "", strong: tuple[int, ...] = ()) -> Table:
    """Return a table of equal records; the keys are the header."""
    header = tuple(records[0])
    return Table(header, tuple(tuple(row[key] for key in header) for row in records), caption=caption, strong=strong)


def collect(folder: Path, stages: Sequence[str] = STAGES) -> dict[str, Any]:
    """Return the results of a run's stages by stage name."""
    return {stage: records.read_json(folder / stage / "result.json") for stage in stages}


def _picture(folder: Path, stage: str, name: str, caption: str) -> tuple[Picture, ...]:
    path = folder / stage / name
    return (Picture(path, caption),) if path.is_file() else ()


def _scene(folder: Path) -> tuple[Picture, ...]:
    path = folder / "04_visualize_3d" / "scene.json"
    if not path.is_file():
        return ()
    import plotly.io

    return (Picture(plotly.io.from_json(path.read_text()), "Drag to turn, scroll to zoom, click the legend to switch a layer."),)


def _hardest(results: dict[str, Any], order: str) -> str:
    return str(results[STAGES[4]].get("hardest", {}).get(order, ""))


def _linked(folder: Path) -> str:
    """Return the two linked 3D views as markup, nothing where notebook 04 left none."""
    path = folder / "04_visualize_3d" / "pair.json"
    return viewer(path.read_text()) if path.is_file() else ""


def _budget(results: dict[str, Any]) -> str:
    budget, seeds = results["02_distill_student"]["budget"], {row["seed"] for row in results["02_distill_student"]["students"]}
    return (
        f"All arms share one budget: {budget['frames']} training frames, {budget['epochs']} epochs, {budget['steps']} steps "
        f"({budget['samples']} samples), {len(seeds)} seeds."
    )


def _cover(results: dict[str, Any], profile: str) -> Cover:
    evaluation, simulated = results["03_evaluate"], bool(results["03_evaluate"]["simulated"])
    roles = {"teacher": "teacher", "full SparseKD": "student"}
    tiles = [Tile(f"{row['LEVEL_2 mAPH']:.1f}", row["arm"], roles.get(row["arm"], "")) for row in evaluation["arms"]]
    card = {
        "profile": profile,
        "data": "simulated, in the Waymo file format" if simulated else "Waymo Open Dataset",
        "metric": "LEVEL_2 mAPH over vehicle, pedestrian, cyclist",
        "dataset fingerprint": results["00_explore_data"]["fingerprint"],
        **{
            f"evaluation: {key}": value for key, value in evaluation["evaluation"].items() if isinstance(value, (int, float, str))
        },
        **{key: value for key, value in evaluation["card"].items() if isinstance(value, str)},
        **evaluation["card"]["versions"],
        **{f"hardware: {key}": value for key, value in results["05_measure_cost"]["hardware"].items() if value is not None},
    }
    verdicts = tuple(Verdict(v["wish"], v["result"], v["met"]) for v in evaluation["verdicts"])
    return Cover(
        subtitle=f"Run '{profile}': LEVEL_2 mAPH on frames nobody trained on. {_budget(results)}",
        simulated=simulated,
        tiles=tuple(tiles),
        verdicts=verdicts,
        card=card,
    )


def _sections(folder: Path, results: dict[str, Any]) -> list[Section]:
    data, teacher, evaluation, cost = (results[STAGES[i]] for i in (0, 1, 3, 5))
    bold = tuple(i for i, row in enumerate(evaluation["arms"]) if row["arm"] == "full SparseKD")
    return [
        Section(
            "What distillation gained",
            f"{_budget(results)} Intervals are paired bootstrap intervals over segments and seeds.",
            _picture(folder, STAGES[3], "arms.png", "Mean, 95 % interval, single seeds.")
            + _picture(folder, STAGES[3], "change.png", "What the recipe's last part, distillation, changed.")
            + _picture(folder, STAGES[3], "precision_recall.png", "First seed of each arm."),
            (
                table_of(evaluation["arms"], "LEVEL_2 mAPH, percent", bold),
                table_of(evaluation["differences"], "Paired differences, points"),
            ),
        ),
        Section(
            "Teacher and student on one frame",
            f"Frame `{results[STAGES[4]]['frame']}`, boxes above a score of {results[STAGES[4]]['threshold']}.",
            _picture(folder, STAGES[4], "comparison.png", "From above.")
            + _picture(folder, STAGES[4], "browser.png", "Teacher and distilled student, matched with the truth.")
            + _picture(folder, STAGES[4], "maps.png", "Heat maps, pivotal positions, features, and where distillation acts.")
            + _picture(folder, STAGES[4], "hurt.png", _hardest(results, "hurt"))
            + _picture(folder, STAGES[4], "scene.png", f"Rendered with {results[STAGES[4]]['renderer']}.")
            + _scene(folder),
            html=_linked(folder),
        ),
        Section(
            "The teacher",
            f"Origin: {teacher['origin']}. {teacher['steps']} steps were trained in this run.",
            _picture(folder, STAGES[1], "training.png", "Loss of the teacher's training in this run."),
            (table_of(teacher["scores"], "Waymo metric, percent"),),
        ),
        Section(
            "The students' training",
            "",
            _picture(folder, STAGES[2], "pivotal.png", "Weight of logit distillation on one training frame.")
            + _picture(folder, STAGES[2], "training.png", "Loss by step, first seed. The full recipe's loss has more terms."),
            (table_of(results[STAGES[2]]["terms"], "Active terms of the full recipe on one batch"),),
        ),
        Section(
            "What it costs",
            "Multiply-accumulates per frame, counted; latency measured on the machine named below.",
            _picture(folder, STAGES[5], "accuracy_cost.png", "Up and left is better."),
            (
                table_of(cost["costs"], "This run's models"),
                table_of(
                    cost["family"],
                    "The published family at full size; the published columns are from Waymo and the paper's hardware",
                ),
            ),
        ),
        Section(
            "The data",
            "",
            _picture(folder, STAGES[0], "bev.png", "One validation frame from above.")
            + _picture(folder, STAGES[0], "scene.png", "The same frame in space."),
            (table_of(data["overview"]), table_of(data["difficulty"], "Validation boxes by level")),
        ),
    ]


def write_run_report(folder: Path, profile: str) -> Path:
    """Write ``result.json`` and ``report.html`` of a finished run.

    Raises:
        DataError: If a stage's result is missing or damaged.
    """
    results = collect(folder)
    records.write_json(folder / "result.json", {"profile": profile, **results})
    return write_report(folder / "report.html", _sections(folder, results), cover=_cover(results, profile))
