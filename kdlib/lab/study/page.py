"""The results of a finished study in; its page for the repository out, as Markdown with pictures and the numbers behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdlib import records
from kdlib.lab import profiles
from kdlib.lab.report import collect

HEADINGS = {
    "11_ablate_signals": "Which signal helps, and from what budget on",
    "12_ablate_initialisation": "Where the student starts",
    "13_ablate_teacher_batchnorm": "The teacher's batch norm",
    "14_compress_by_width_or_resolution": "By width or by resolution",
    "07_cross_stage": "Both stages, and the student they taught",
}
_READING = """\
How to read it: {reading} Intervals are paired
bootstrap intervals of 95 % over {units} validation {unit}s and the seeds: both arms get the same draw. Where an interval includes
0, the sentence says that no difference is shown, which does not mean that there is none. {caution}"""
_ABLATION = "a row compares an arm with its own base, same student, data, seeds and number of samples."
_MANY = """\
Many rows are compared, so one in twenty
may leave 0 out by chance. Weights of single signals are not tuned: each starts at the value of the published logit term."""


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return equal records as a Markdown table; the keys are the header."""
    header = list(rows[0])
    lines = [header, ["---"] * len(header), *([_cell(row[key]) for key in header] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def study_page(results: Mapping[str, Any]) -> str:
    """Return the page of a study: what was run, then each notebook's sentences, tables and pictures.

    Args:
        results: ``profile`` and the result of every notebook by name, as in the run's ``result.json``.
    """
    profile = results["profile"]
    stages = {name: values for name, values in results.items() if name != "profile"}
    title = next(iter(stages.values())).get("title", "what helps a small student")
    lines = [f"# The {profile.replace('_', ' ')}: {title}", "", *_opening(profile, stages), ""]
    for stage, values in stages.items():
        lines += [f"## {HEADINGS[stage]}", "", f"Notebook `{stage}`.", ""]
        for part in values["parts"]:
            lines += [f"### {part['title']}", "", part["text"], ""]
            lines += [*(f"- {sentence}" for sentence in part["sentences"]), ""] if part["sentences"] else []
            for table in part["tables"]:
                lines += [f"{table['caption']}:", "", markdown_table(table["rows"]), ""]
            for one in part["pictures"]:
                lines += [f"![{one['caption']}]({profile}/{picture_name(stage, one['file'])})", ""]
        lines += ["### Scores of all arms", "", markdown_table(values["scores"]), ""]
    lines += ["## What was trained", ""]
    for stage, values in stages.items():
        lines += [f"`{stage}`:", "", markdown_table(values["students"]), ""]
    lines += ["## Active terms on the first batch", ""]
    for stage, values in stages.items():
        lines += [f"`{stage}`:", "", markdown_table(values["terms"]), ""]
    return "\n".join(lines).rstrip() + "\n"


def _opening(profile: str, stages: Mapping[str, Any]) -> list[str]:
    first = next(iter(stages.values()))
    hardware, evaluation = first["card"]["hardware"], first["evaluation"]
    data = "Everything here is **simulated**; it says nothing about Waymo." if first["simulated"] else "Measured on Waymo."
    seeds = ", ".join(map(str, first["seeds"]))
    return [
        f"{data} Seeds {seeds}; {first['frames']} training frames; {evaluation['frames']} validation frames of other segments. "
        f"Trained on {hardware['cpu']}, {hardware['cores']} cores.",
        "",
        _READING.format(reading=first.get("reading", _ABLATION), caution=first.get("caution", _MANY), **first["comparison"]),
        "",
        "```bash",
        f"python -m kdlib run {profile}",
        f"python -m kdlib publish reports/runs/{profile}  # writes this page",
        "```",
        "",
        f"The numbers are in [{profile}/study.json]({profile}/study.json).",
    ]


def picture_name(stage: str, file: str) -> str:
    """Return what a notebook's picture is called beside those of the others."""
    return f"{stage[:2]}_{file}"


def publish_study(folder: Path, project: Path, shrink: Callable[[Path], bytes]) -> Path:
    """Write a finished study to ``reports/<profile>.md``, its pictures and numbers to ``reports/<profile>``.

    Args:
        folder: Of the run.
        project: Whose ``reports`` to write to.
        shrink: Turns the path of a picture into PNG bytes fit for git.

    Returns:
        The page.

    Raises:
        DataError: If the run is not finished.
    """
    profile = str(records.read_json(folder / "result.json")["profile"])
    results: dict[str, Any] = {"profile": profile, **collect(folder, profiles.profile(profile).chain)}
    home = project / "reports" / profile
    for stage, values in results.items():
        for part in values["parts"] if stage != "profile" else ():
            for one in part["pictures"]:
                records.write_bytes(home / picture_name(stage, one["file"]), shrink(folder / stage / one["file"]))
    records.write_json(home / "study.json", results)
    page = home.with_suffix(".md")
    records.write_bytes(page, study_page(results).encode())
    return page
