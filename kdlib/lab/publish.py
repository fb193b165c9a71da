"""A finished run in; its ``result.json``, pictures and tables under ``reports/`` and in the READMEs out."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image

from kdlib import records
from kdlib.errors import ConfigError
from kdlib.lab.execute import PROJECT
from kdlib.lab.profiles import ABLATIONS, CROSS_STAGE
from kdlib.lab.report import collect
from kdlib.lab.study.page import publish_study
from kdlib.viz.canvas import write_bytes

BEGIN, END = "<!-- results of reports/{profile}/result.json, written by python -m kdlib publish -->", "<!-- end of results -->"
PICTURES = {
    "00_explore_data": ("bev.png", "scene.png"),
    "02_distill_student": ("pivotal.png", "training.png"),
    "03_evaluate": ("arms.png", "change.png", "precision_recall.png"),
    "04_visualize_3d": ("comparison.png", "scene.png"),
    "05_measure_cost": ("accuracy_cost.png",),
}
_WIDTH = 1400  # pixels, at most
_COLORS = 128


def results_table(result: dict[str, Any]) -> str:
    """Return the headline table and the verdicts of a run as Markdown."""
    evaluation, budget = result["03_evaluate"], result["02_distill_student"]["budget"]
    costs = {row["role"]: row for row in result["05_measure_cost"]["costs"]}
    lines = [
        "| simulated data | LEVEL_2 mAPH | 95 % interval | std over seeds | G MACs | parameters | ms a frame |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in evaluation["arms"]:
        cost = costs["teacher" if row["arm"] == "teacher" else "student"]
        spread = "–" if row["std over seeds"] is None else f"{row['std over seeds']:.2f}"
        lines.append(
            f"| {row['arm']} | {row['LEVEL_2 mAPH']:.2f} | {row['95 % low']:.2f} to {row['95 % high']:.2f} | {spread} "
            f"| {cost['G MACs']:.2f} | {cost['parameters']:,} | {cost['latency p50 ms']:.0f} |"
        )
    hardware, metric = result["05_measure_cost"]["hardware"], evaluation["evaluation"]
    seeds = sorted({row["seed"] for row in result["02_distill_student"]["students"]})
    lines += [
        "",
        f"Students: seeds {', '.join(map(str, seeds))}; {budget['frames']} training frames, {budget['epochs']} epochs, "
        f"{budget['steps']} steps each. Evaluation: {metric['frames']} frames of simulated segments nobody trained on, objects "
        f"within the models' range. Latency: {hardware['cpu']}, {hardware['cores']} cores, no GPU.",
        "",
        "| wanted | measured | met |",
        "|---|---|---|",
        *(f"| {v['wish']} | {v['result']} | {'yes' if v['met'] else 'no'} |" for v in evaluation["verdicts"]),
    ]
    return "\n".join(lines)


def with_results(text: str, table: str, profile: str, name: str) -> str:
    """Return a document with the table between the two marks of its profile.

    Raises:
        ConfigError: If a mark is missing.
    """
    opening = BEGIN.format(profile=profile)
    head, begin, rest = text.partition(opening)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ConfigError(f"{name} needs the lines '{opening}' and '{END}' around its results")
    return f"{head}{opening}\n{table}\n{END}{tail}"


def publish(folder: Path, project: Path = PROJECT) -> Path:
    """Copy a finished run's numbers to ``reports/<profile>``, its table into the READMEs that have a place for it.

    The page of the reports must have one, the main README may. Pictures come along if the page of the reports shows them.

    Returns:
        The folder under ``reports``; of a run of ablations the page there.

    Raises:
        DataError: If the run is not finished.
    """
    if any((folder / name / "result.json").is_file() for name in (ABLATIONS[0], CROSS_STAGE[0])):
        return publish_study(folder, project, _small)
    results = {"profile": folder.name, **collect(folder)}
    results["profile"] = results["03_evaluate"]["profile"]
    out = project / "reports" / str(results["profile"])
    shown = (project / "reports" / "README.md").read_text()
    for stage, names in PICTURES.items():
        for name in names:
            if f"({out.name}/{stage[:2]}_{name})" in shown:
                write_bytes(out / f"{stage[:2]}_{name}", _small(folder / stage / name))
    records.write_json(out / "result.json", results)
    table = results_table(results)
    for readme in (project / "README.md", project / "reports" / "README.md"):
        text = readme.read_text()
        if readme.parent != project or BEGIN.format(profile=results["profile"]) in text:
            write_bytes(readme, with_results(text, table, str(results["profile"]), str(readme)).encode())
    return out


def _small(path: Path) -> bytes:
    """Return a PNG fit for git: of limited width, with a palette."""
    with Image.open(path) as image:
        picture = image.convert("RGB")
    if picture.width > _WIDTH:
        picture = picture.resize((_WIDTH, round(picture.height * _WIDTH / picture.width)), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.quantize(_COLORS, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
    return stream.getvalue()
