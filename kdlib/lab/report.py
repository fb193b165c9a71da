"""The report of a finished run: the results and pictures of its notebooks become ``result.json``
and ``report.html``.
"""

from __future__ import annotations

from pathlib import Path

from kdlib import records
from kdlib.lab.page import write_report
from kdlib.lab.profile import Profile
from kdlib.metric.shards import MEAN_TYPES
from kdlib.types import Json

_SUBJECT = "distilling a LiDAR detector"
STUDY_SUBJECT = "what helps a small student"
_TILES = {  # arm -> role
    "teacher": "teacher",
    "strong teacher": "teacher",
    "two-stage teacher": "teacher",
    "first stage alone": "",
    "student alone": "",
    "initialised from the teacher": "",
    "initialisation alone": "",
    "full SparseKD": "student",
    "full SparseKD and own terms": "student",
}
_EVERY_ARM = {
    "scores": "Scores, percent",
    "students": "Trainings",
    "terms": ("Startup report: active terms on the first batch"),
}


def run_results(folder: Path, profile: Profile) -> Json:
    """Return the results of a run's notebooks by name; DataError if a notebook's result is missing
    or damaged.
    """
    return {stage: records.read_json(folder / stage / "result.json") for stage in profile.chain}


def write_run_report(folder: Path, profile: Profile) -> Path:
    """Write ``result.json`` and ``report.html`` of a finished run; DataError if a notebook's result
    is missing or damaged.
    """
    stages = run_results(folder, profile)
    records.write_json(folder / "result.json", {"profile": profile.name, **stages})
    study = profile.study is not None
    # The notebook that compared the arms: of several that did, the first.
    compared = next(values for values in stages.values() if "comparison" in values)
    subject = compared.get("title", STUDY_SUBJECT if study else _SUBJECT)
    parts = [
        _located(part, folder / stage)
        for stage, values in stages.items()
        for part in values["parts"]
    ]
    if "verdicts" not in compared:
        parts += [_every_arm(stage, values) for stage, values in stages.items()]
    return write_report(
        folder / "report.html",
        parts,
        title=subject[0].upper() + subject[1:],
        subtitle=(
            f"Run '{profile.name}': LEVEL_2 mAPH on {compared['evaluation']['frames']} frames "
            "nobody trained on."
        ),
        simulated=bool(compared["simulated"]),
        tiles=[
            {"value": f"{row['LEVEL_2 mAPH']:.1f}", "label": row["arm"], "role": _TILES[row["arm"]]}
            for row in compared.get("arms") or compared["scores"]
            if row["arm"] in _TILES
        ],
        verdicts=compared.get("verdicts", ()),
        card=_card(profile.name, stages, compared),
    )


def _located(part: Json, home: Path) -> Json:
    pictures = [{**picture, "file": str(home / picture["file"])} for picture in part["pictures"]]
    return {**part, "title": f"{home.name[:2]} · {part['title']}", "pictures": pictures}


def _every_arm(stage: str, values: Json) -> Json:
    tables = [{"caption": caption, "rows": values[name]} for name, caption in _EVERY_ARM.items()]
    text = f"Everything `{stage}` trained."
    return {
        "title": f"{stage[:2]} · Arms",
        "text": text,
        "sentences": [],
        "tables": tables,
        "pictures": [],
    }


def _card(profile: str, stages: Json, compared: Json) -> Json:
    """Return what the numbers hold for."""
    made = compared["card"]
    real = "frames of one's own" if compared.get("own data") else "Waymo Open Dataset"
    comparison = compared["comparison"]
    averaged = compared["evaluation"].get("settings", {}).get("mean_over", MEAN_TYPES)
    card = {
        "profile": profile,
        "data": "simulated, in the Waymo file format" if compared["simulated"] else real,
        "dataset fingerprint": stages.get("00_explore_data", {}).get("fingerprint"),
        "training frames": compared.get("frames"),
        "seeds": ", ".join(map(str, compared.get("seeds", ()))),
        "metric": f"LEVEL_2 mAPH over {', '.join(averaged).lower()}",
        "intervals": comparison.get("basis")
        or "95 %, paired bootstrap over {units} {unit}s and seeds".format(**comparison),
        **{
            f"evaluation: {key}": value
            for key, value in compared["evaluation"].items()
            if isinstance(value, (int, float, str))
        },
        **{key: value for key, value in made.items() if isinstance(value, str)},
        **made["versions"],
        **{f"hardware: {key}": value for key, value in made["hardware"].items()},
    }
    return {key: value for key, value in card.items() if value}
