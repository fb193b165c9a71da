"""A prepared store enters; what is damaged or missing leaves, and whether it is the whole dataset, a part of it, or simulated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdlib import records
from kdlib.data.cluster import worker_count
from kdlib.data.object_bank import ObjectBank, bank_path, verify_bank
from kdlib.data.progress import progress_bar
from kdlib.data.segment import damage, is_outdated, read_manifest
from kdlib.data.store import INDEX, Store, fingerprint, read_index
from kdlib.errors import DataError
from kdlib.waymo.segments import list_segments

INTERVAL = 5
"""Every fifth frame: the "20 %" of the published tables."""

PUBLISHED: Mapping[str, tuple[int, int]] = {"training": (798, 158_081), "validation": (202, 39_987)}
"""Segments and frames of the Waymo Open Dataset, Perception (spec section 0)."""

POINTS_A_SECOND = 2_000_000
"""What one core prepares, roughly; to say how long a remedy takes."""

KINDS: Mapping[str, str] = {
    "full": "the full split of the Waymo Open Dataset",
    "part": "a part of the Waymo Open Dataset's split",
    "simulated": "SIMULATED data, not the Waymo Open Dataset",
    "uncounted": "a split whose published number of frames is not known",
    "unknown": "of an older kdlib, which did not note whether they are simulated",
    "other": "NOT the split of the published numbers, it has other counts",
}


@dataclass(frozen=True)
class SplitCheck:
    """What a split of the store is."""

    segments: int
    frames: int
    frames_at_5: int  # of every fifth one
    simulated: bool
    kind: str  # a key of KINDS
    shortest: tuple[str, int]  # segment and its frames; a whole one has 198 to 200

    def __str__(self) -> str:
        counts = f"{self.segments:,} segments, {self.frames:,} frames, {self.frames_at_5:,} at interval {INTERVAL}"
        return f"{counts}: {KINDS[self.kind]} (shortest: {self.shortest[0]}, {self.shortest[1]} frames)"


@dataclass(frozen=True)
class VerifyReport:
    """What is wrong with a store, and what it is."""

    store: str
    fingerprint: str
    bytes_read: int
    splits: Mapping[str, SplitCheck]
    damaged: tuple[str, ...]  # sentences; none for a sound store
    outdated: str = ""  # a sentence, if an older kdlib left too few checksums to tell

    @property
    def sound(self) -> bool:
        """Whether nothing is damaged or missing, and checksums cover everything."""
        return not (self.damaged or self.outdated)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "sound": self.sound}

    def __str__(self) -> str:
        lines = [f"{self.store} (fingerprint {self.fingerprint})"]
        lines += [f"  {name}: {check}" for name, check in self.splits.items()]
        lines += [f"damaged: {sentence}" for sentence in self.damaged]
        lines += [f"outdated: {self.outdated}"] if self.outdated else []
        if self.sound:
            lines.append(f"sound: every checksum was computed again, over {self.bytes_read / 1e9:,.2f} GB")
        return "\n".join(lines)


def verify(path: Path, source: Path | None = None, workers: int = 0, progress: bool = True) -> VerifyReport:
    """Compute every checksum of a store again and compare its counts with the dataset's.

    Args:
        path: Folder of the store.
        source: Waymo files it was prepared from, to find segments it lacks; None to leave that out.
        workers: Threads; 0 means all cores.
        progress: Show a progress bar.

    Raises:
        DataError: If there is no store, or none of this version.
    """
    path = Path(path)
    contents = read_index(path)  # not Store.open: a damaged segment must not hide the others
    folders = [(path / split / name, content) for split, some in contents.items() for name, content in some.items()]
    damaged: list[str] = []
    threads = worker_count(workers, len(folders))
    with ThreadPoolExecutor(threads) as pool, progress_bar(len(folders), "verify", "segment", progress) as bar:
        for found in pool.map(lambda one: damage(*one), folders):
            damaged += found
            bar.update()
    if not damaged:
        damaged += _beyond_segments(Store.open(path))
    if source is not None:
        damaged += _absent(source, contents)
    checks = {split: _check(split, path / split, some) for split, some in contents.items()}
    if not damaged:
        damaged += [f"{path / name}: {check}" for name, check in checks.items() if check.kind == "other"]
    size = sum(file.stat().st_size for folder, _ in folders if folder.is_dir() for file in folder.iterdir())
    outdated = _outdated(path, source, [folder for folder, _ in folders])
    return VerifyReport(str(path), fingerprint(contents), size, checks, tuple(damaged), outdated)


def _outdated(path: Path, source: Path | None, folders: Sequence[Path]) -> str:
    """Say how many segments have manifests without a checksum, and what to do."""
    points = []
    for folder in folders:
        try:
            manifest = read_manifest(folder)
        except DataError:  # damaged, as has been said
            continue
        if is_outdated(manifest):
            points.append(manifest["points"])
    if not points:
        return ""
    seconds = max(1, round(sum(points) / len(points) / POINTS_A_SECOND))
    command = f"python -m kdlib prepare {source or 'SRC'} {path}"
    return (
        f"{len(points)} of {len(folders)} segments were prepared by an older kdlib, without a checksum of their manifests; "
        f"run '{command}' once more: it prepares them anew, about {seconds} s a segment and core"
    )


def _beyond_segments(store: Store) -> Iterator[str]:
    """Check the index's own hash and the object banks."""
    if records.read_json(store.path / INDEX).get("fingerprint") != store.fingerprint:
        yield f"{store.path / INDEX} is not what was written; delete it and prepare again"
    for name in store.contents:
        split = store.split(name)
        bank = bank_path(split)
        if bank.is_file():
            found = verify_bank(bank)
            yield from found
            if not found:
                try:
                    ObjectBank.open(bank, split.fingerprint)
                except DataError as error:
                    yield str(error)


def _absent(source: Path, contents: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    for split, some in contents.items():
        if (Path(source) / split).is_dir():
            lacking = sorted(set(list_segments(Path(source) / split)) - set(some))
            if lacking:
                yield f"split {split} lacks {len(lacking)} segments of {source} (the first: {lacking[0]}); prepare again"


def _check(split: str, folder: Path, segments: Mapping[str, str]) -> SplitCheck:
    """Count from the manifests; segments whose manifest is damaged have been named, and count as no frames."""
    frames: dict[str, int] = {}
    simulated = outdated = False
    for name in sorted(segments):
        try:
            manifest = read_manifest(folder / name)
        except DataError:
            continue
        frames[name] = manifest["frames"]
        simulated = simulated or bool(manifest.get("simulated"))
        outdated = outdated or is_outdated(manifest)
    total, wanted = sum(frames.values()), PUBLISHED.get(split)
    if simulated:
        kind = "simulated"
    elif outdated:
        kind = "unknown"
    elif wanted is None:
        kind = "uncounted"
    elif len(segments) < wanted[0]:
        kind = "part"
    else:
        kind = "full" if (len(segments), total) == wanted else "other"
    shortest = min(frames.items(), key=lambda item: item[1], default=("none", 0))
    return SplitCheck(len(segments), total, -(-total // INTERVAL), simulated, kind, shortest)
