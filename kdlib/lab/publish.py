"""A finished run for the repository: its numbers, pictures and tables under ``reports/`` and in the
READMEs.
"""

from __future__ import annotations

from pathlib import Path

from kdlib import records
from kdlib.errors import ConfigError
from kdlib.lab import profile_files
from kdlib.lab.folders import PROJECT
from kdlib.lab.page import packed_png, render_page
from kdlib.lab.parts import markdown_table
from kdlib.lab.profile import MAIN_LINE
from kdlib.lab.report import STUDY_SUBJECT, run_results
from kdlib.types import Json

BEGIN, END = (
    ("<!-- results of reports/{profile}/result.json, written by python -m kdlib publish -->"),
    "<!-- end of results -->",
)
HEADINGS = {
    "11_ablate_signals": "Which signal helps, and from what budget on",
    "12_ablate_initialisation": "Where the student starts",
    "13_ablate_teacher_batchnorm": "The teacher's batch norm",
    "14_compress_by_width_or_resolution": "By width or by resolution",
    "07_cross_stage": "Both stages, and the student they taught",
}


def publish_run(folder: Path, project: Path = PROJECT) -> Path:
    """Copy a finished run's numbers and pictures to ``reports/<profile>``, its tables into pages.

    The main line's headline table goes into the READMEs that have a place for it (the page of the
    reports must have one, the main README may), with those pictures that the page of the reports
    shows. Ablations get a page of their own, ``<profile>.md``.

    Returned is the folder under ``reports``, or of a run of ablations the page there; DataError if
    the run is not finished.
    """
    records.read_json(folder / "result.json")  # a finished run has one
    chosen = profile_files.of_run(folder)
    profile = chosen.name
    results = {"profile": profile, **run_results(folder, chosen)}
    home = project / "reports" / profile
    main_line = chosen.chain == MAIN_LINE
    shown = (project / "reports" / "README.md").read_text() if main_line else ""
    pages = _with_table(results, project) if main_line else {}
    for stage in chosen.chain:
        for part in results[stage]["parts"]:
            for picture in part["pictures"]:
                name = f"{stage[:2]}_{picture['file']}"  # beside those of the other notebooks
                if not main_line or f"({profile}/{name})" in shown:
                    records.write_bytes(
                        home / name,
                        packed_png(folder / stage / picture["file"], colors=128, widest=1400)[0],
                    )
    if not main_line:
        records.write_json(home / "study.json", results)
        records.write_bytes(home.with_suffix(".md"), study_page(results).encode())
        return home.with_suffix(".md")
    records.write_json(home / "result.json", results)
    for readme, text in pages.items():
        records.write_bytes(readme, text.encode())
    return home


def _with_table(results: Json, project: Path) -> dict[Path, str]:
    """Return the READMEs that have a place for a run, with its table there."""
    profile, pages = results["profile"], {}
    for readme in (project / "README.md", project / "reports" / "README.md"):
        text = readme.read_text()
        if readme.parent != project or BEGIN.format(profile=profile) in text:
            pages[readme] = with_results(text, results_table(results), profile, str(readme))
    return pages


def results_table(results: Json) -> str:
    """Return the headline table and the verdicts of a run of the main line as Markdown."""
    evaluation = results["03_evaluate"]
    costs = {row["role"]: row for row in results["05_measure_cost"]["costs"]}
    simulated = evaluation["simulated"]
    header = (
        "simulated data" if simulated else "these data",
        "LEVEL_2 mAPH",
        "95 % interval",
        "std over seeds",
        "G MACs",
        "parameters",
        "ms a frame",
    )
    rows = []
    for arm in evaluation["arms"]:
        cost = costs["teacher" if arm["arm"] == "teacher" else "student"]
        measured = arm["95 % low"] is not None
        interval = f"{arm['95 % low']:.2f} to {arm['95 % high']:.2f}" if measured else None
        counted = cost["G MACs"], cost["parameters"], round(cost["latency p50 ms"])
        rows.append([arm["arm"], arm["LEVEL_2 mAPH"], interval, arm["std over seeds"], *counted])
    return render_page(
        "lab/results.md.jinja",
        header=header,
        rows=rows,
        trained=results["02_distill_student"],
        frames=evaluation["evaluation"]["frames"],
        simulated=simulated,
        basis=evaluation["comparison"].get("basis", ""),
        hardware=results["05_measure_cost"]["hardware"],
        verdicts=[
            [verdict["wish"], verdict["result"], verdict["met"]]
            for verdict in evaluation["verdicts"]
        ],
        table=markdown_table,
    )


def with_results(text: str, table: str, profile: str, name: str) -> str:
    """Return a document with the table between the two marks of its profile; ConfigError if a mark
    is missing.
    """
    opening = BEGIN.format(profile=profile)
    head, begin, rest = text.partition(opening)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ConfigError(f"{name} needs the lines '{opening}' and '{END}' around its results")
    return f"{head}{opening}\n{table}\n{END}{tail}"


def study_page(results: Json) -> str:
    """Return the page of a study from a run's ``result.json``: what was run, then each notebook's
    sentences, tables, pictures.
    """
    stages = {name: values for name, values in results.items() if name != "profile"}
    page = render_page(
        "lab/study.md.jinja",
        profile=results["profile"],
        subject=STUDY_SUBJECT,
        headings=HEADINGS,
        stages=stages,
        first=next(iter(stages.values())),
        table=lambda rows: markdown_table(rows[0], [row.values() for row in rows]),
    )
    return page.rstrip() + "\n"
