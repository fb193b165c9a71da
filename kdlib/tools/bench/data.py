"""Simulated frames in; what converting, preparing and loading them costs, beside Waymo's own code on the same frames, out."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdlib.config import ObjectSamplingConfig
from kdlib.errors import KdlibError
from kdlib.tools.bench import stages
from kdlib.tools.bench.table import Line, Outcome
from kdlib.tools.judge.official import OfficialError, find_python, run_child

OFFICIAL = Path(__file__).with_name("official_child.py")
AGREEMENT = 1e-2  # metres between the mean points of a frame: the official float32 at world coordinates of some kilometres
# What must be faster. From file to points the two v2 paths share Arrow's Parquet decoder, which takes most of ours.
CONVERSIONS = ("v1_read", "v2_convert")
ALONE = 0.8  # share of a core below which wall clock times say more about others
SEGMENTS = 2  # prepared and loaded; the first one is converted
OBJECTS = ObjectSamplingConfig().counts  # drawn for each frame
FASTER, POINT_BYTES, WORKER_MB = 10.0, 9.0, 1000.0  # targets

_Effort = Mapping[str, float]  # rounds and seconds, at least


@dataclass(frozen=True)
class _Segment:
    """One segment on disk."""

    form: str  # "v1" or "v2"
    folder: Path  # <root>/<split>
    name: str
    frames: int


def bench_data(
    frames: int = 10,
    rounds: int = 3,
    scale: str = "full",
    keep: Path | None = None,
    python: str | Path | None = None,
    seconds: float = 2.0,
) -> Outcome:
    """Measure everything on the same simulated frames, one process after the other.

    Args:
        frames: Frames of each of two simulated segments; one of them is converted.
        rounds: Repetitions of each measurement, at least; the median counts.
        scale: "full" has Waymo's resolution.
        keep: Folder for the simulated files and the store, used again next time; None takes a temporary one.
        python: A Python with the official package; see :func:`kdlib.tools.judge.official.find_python`. Without any, what needs it
            is left out and said to be.
        seconds: kdlib's own measurements are repeated at least so long: they are short, and others work on the machine too.

    Raises:
        ConfigError: If ``frames`` or ``scale`` is out of range.
        KdlibError: If a measurement fails, or the official code finds other points.
    """
    from kdlib.profiling.hardware import hardware_card
    from kdlib.simulate import simulate

    lines: list[Line] = []
    notes: list[str] = []
    effort = {"rounds": rounds, "seconds": seconds}
    with _folder(keep) as root:
        segments = []
        for form in ("v1", "v2"):
            # Objects return to where they were seen: only those of another street find free places there.
            count = 1 if form == "v1" else SEGMENTS
            name, *_ = simulate(root / form, count, frames, 1, scale, workers=1, progress=False, format=form)
            segments.append(_Segment(form, root / form / "training", name, frames))
        for segment in segments:
            lines += _conversion(segment, effort, python, notes)
        lines += _prepare(segments[1], root / "store", effort)
        lines += _loader(root / "store", effort)
    facts = {"frames": frames, "rounds": rounds, "scale": scale, "simulated": True}
    return Outcome("data", tuple(lines), facts, tuple(dict.fromkeys(notes)), hardware_card().to_dict())


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        yield Path(keep)
        return
    with tempfile.TemporaryDirectory(prefix="kdlib-bench-") as folder:
        yield Path(folder)


def _conversion(segment: _Segment, effort: _Effort, python: str | Path | None, notes: list[str]) -> list[Line]:
    """Measure kdlib before and after the official code, so that a machine that slows down meanwhile favours neither."""
    request = {"folder": str(segment.folder), "segment": segment.name, **effort}
    names = ("read", "convert") if segment.form == "v2" else ("read",)
    before = {name: stages.run(name, request) for name in names}
    official = _official(segment, int(effort["rounds"]), python, notes)
    after = {name: stages.run(name, request) for name in names}
    if official is not None:
        _check_agreement(before["read"]["frames"], official["frames"], segment)
        notes.append(f"official: {official['version']}, all cores; kdlib: one thread")
    lines = []
    for name in names:
        ours = tuple([*before[name][clock], *after[name][clock]] for clock in ("seconds", "processor"))
        lines += _compared(f"{segment.form}_{name}", segment, ours, _spent(official, name))
        share = sum(ours[1]) / sum(ours[0])
        if share < ALONE:
            notes.append(f"others work on this machine: {segment.form} {name} had {share:.0%} of a core, so trust processor time")
    return lines


def _spent(official: Mapping[str, Any] | None, name: str) -> tuple[list[float], ...] | None:
    """Return the official seconds of each round, on the wall clock and of all processors; reading includes converting."""
    if official is None:
        return None
    parts = ("read", "convert") if name == "read" else ("convert",)
    return tuple([sum(spent[part][clock] for part in parts) for spent in official["seconds"]] for clock in (0, 1))


def _compared(
    key: str, segment: _Segment, ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]] | None
) -> list[Line]:
    def ms(seconds: Sequence[float]) -> float:
        return 1000 * statistics.median(seconds) / segment.frames

    title = f"{segment.form} {'file' if key.endswith('read') else 'range images'} to points"
    official, ratio, processor = None, None, None
    if theirs is not None:
        official = ms(theirs[0])
        ratio, processor = official / ms(ours[0]), ms(theirs[1]) / ms(ours[1])
    return [
        Line(f"{key}_official_ms", f"{title}, official", official, "ms/frame"),
        Line(f"{key}_ms", f"{title}, kdlib", ms(ours[0]), "ms/frame"),
        Line(f"{key}_ratio", f"{title}, times faster", ratio, "x", at_least=FASTER if key in CONVERSIONS else None),
        Line(f"{key}_processor_ratio", f"{title}, times less processor time", processor, "x"),
    ]


def _official(segment: _Segment, rounds: int, python: str | Path | None, notes: list[str]) -> dict[str, Any] | None:
    """Return what the official child measured; None without an official Python."""
    try:
        interpreter = find_python(python)
    except OfficialError as error:
        if python:
            raise
        notes.append(f"not measured, ratios included: {error}")
        return None
    with tempfile.TemporaryDirectory(prefix="kdlib-bench-") as folder:
        result = Path(folder) / "official.json"
        run_child(interpreter, OFFICIAL, [segment.form, str(segment.folder), segment.name, str(rounds), str(result)])
        found: dict[str, Any] = json.loads(result.read_text())
    return found


def _check_agreement(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], segment: _Segment) -> None:
    """Two times may be compared only if the same work was done."""
    place = f"{segment.form} segment {segment.name}"
    if len(ours) != len(theirs):
        raise KdlibError(f"{place}: {len(ours)} frames, the official code finds {len(theirs)}; these times cannot be compared")
    for number, (a, b) in enumerate(zip(ours, theirs)):
        apart = max(abs(x - y) for x, y in zip(a["sum"], b["sum"])) / max(a["points"], 1)
        if a["points"] != b["points"] or apart > AGREEMENT:
            raise KdlibError(
                f"{place}, frame {number}: {a['points']} points, the official code finds {b['points']}, their means "
                f"{apart:.3g} m apart; these times cannot be compared"
            )


def _prepare(segment: _Segment, out: Path, effort: _Effort) -> list[Line]:
    found = stages.run("prepare", {"source": str(segment.folder.parent), "out": str(out), **effort})
    rate = SEGMENTS * segment.frames / statistics.median(found["seconds"])
    return [
        Line("prepare_fps", "prepare", rate, "frames/s per core"),
        Line("bytes_per_point", "prepared store", found["bytes"] / found["points"], "bytes per point", at_most=POINT_BYTES),
        Line("prepare_peak_mb", "prepare, peak memory", found["peak_bytes"] / 1e6, "MB per worker", at_most=WORKER_MB),
    ]


def _loader(store: Path, effort: _Effort) -> list[Line]:
    lines = []
    for key, title, objects in (("augmented", "augmented", ()), ("objects", "augmented, objects pasted", OBJECTS)):
        found = stages.run("load", {"store": str(store), "objects": objects, **effort})
        rate, peak = found["frames"] / statistics.median(found["seconds"]), found["peak_bytes"] / 1e6
        lines.append(Line(f"loader_{key}_fps", f"loader, {title}", rate, "frames/s per core"))
        if objects:
            lines.append(Line("objects_pasted", f"loader, objects pasted of {sum(objects)} drawn", found["pasted"], "per frame"))
        lines.append(Line(f"loader_{key}_peak_mb", f"loader, {title}, peak memory", peak, "MB per worker", at_most=WORKER_MB))
    return lines
