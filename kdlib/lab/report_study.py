"""The results and pictures of ablations, or of a teacher of two stages, in; ``result.json`` and ``report.html`` out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdlib import records
from kdlib.lab import profiles
from kdlib.lab.page import Cover, Picture, Section, Tile, write_report
from kdlib.lab.report import collect, table_of

_TILES = {  # arm -> role
    "strong teacher": "teacher",
    "initialisation alone": "",
    "first stage alone": "",
    "two-stage teacher": "teacher",
    "full SparseKD": "student",
}


def _cover(results: dict[str, Any], profile: str) -> Cover:
    first = next(iter(results.values()))
    evaluation, seeds = first["evaluation"], ", ".join(map(str, first["seeds"]))
    tiles = [
        Tile(f"{row['LEVEL_2 mAPH']:.1f}", row["arm"], _TILES[row["arm"]]) for row in first["scores"] if row["arm"] in _TILES
    ]
    card = {
        "profile": profile,
        "data": "simulated, in the Waymo file format" if first["simulated"] else "Waymo Open Dataset",
        "metric": "LEVEL_2 mAPH over vehicle, pedestrian, cyclist",
        "intervals": "95 %, paired bootstrap over {units} {unit}s and seeds".format(**first["comparison"]),
        **{f"evaluation: {key}": value for key, value in evaluation.items() if isinstance(value, (int, float, str))},
        **{key: value for key, value in first["card"].items() if isinstance(value, str)},
        **first["card"]["versions"],
    }
    subtitle = f"Run '{profile}': {first['frames']} training frames, seeds {seeds}, {evaluation['frames']} validation frames."
    title = first.get("title", "what helps a small student")
    return Cover(
        title=title[0].upper() + title[1:], subtitle=subtitle, simulated=first["simulated"], tiles=tuple(tiles), card=card
    )


def _sections(folder: Path, results: dict[str, Any]) -> list[Section]:
    found = []
    for stage, values in results.items():
        for part in values["parts"]:
            pictures = tuple(Picture(folder / stage / one["file"], one["caption"]) for one in part["pictures"])
            tables = tuple(table_of(one["rows"], one["caption"]) for one in part["tables"])
            text = "\n\n".join([part["text"], *part["sentences"]])
            found.append(Section(f"{stage[:2]} · {part['title']}", text, pictures, tables))
    for stage, values in results.items():
        tables = (
            table_of(values["scores"], "Scores, percent"),
            table_of(values["students"], "Trainings"),
            table_of(values["terms"], "Startup report: active terms on the first batch"),
        )
        found.append(Section(f"{stage[:2]} · Arms", f"Everything `{stage}` trained.", (), tables))
    return found


def write_study_report(folder: Path, profile: str) -> Path:
    """Write ``result.json`` and ``report.html`` of a finished study.

    Raises:
        DataError: If a notebook's result is missing or damaged.
    """
    results = collect(folder, profiles.profile(profile).chain)
    records.write_json(folder / "result.json", {"profile": profile, **results})
    return write_report(folder / "report.html", _sections(folder, results), cover=_cover(results, profile))
