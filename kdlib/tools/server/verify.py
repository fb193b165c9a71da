"""Computes every checksum of a prepared store again, and says whether it is the whole dataset, a
part of it, simulated, or of one's own frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdlib import records
from kdlib.data.cluster import worker_count
from kdlib.data.object_bank import bank_path, verify_bank
from kdlib.data.prepare import Manifest
from kdlib.data.progress import watched
from kdlib.data.segment import MANIFEST, is_own, read_manifest
from kdlib.data.store import INDEX, Store, fingerprint, read_index
from kdlib.errors import DataError
from kdlib.waymo.segments import list_segments

INTERVAL = 5
"""Every fifth frame: the "20 %" of the published tables."""

PUBLISHED: Mapping[str, tuple[int, int]] = {"training": (798, 158_081), "validation": (202, 39_987)}
"""Segments and frames of the Waymo Open Dataset, Perception (spec section 0)."""

_KINDS: Mapping[str, str] = {
    "full": "the full split of the Waymo Open Dataset",
    "part": "a part of the Waymo Open Dataset's split",
    "simulated": "SIMULATED data, not the Waymo Open Dataset",
    "own": "frames of one's own",
    "uncounted": "a split whose published number of frames is not known",
    "other": "NOT the split of the published numbers, it has other counts",
}


@dataclass(frozen=True)
class SplitCheck:
    """What a split of the store is."""

    segments: int
    frames: int
    frames_at_5: int  # of every fifth one
    kind: str  # a key of _KINDS
    shortest: tuple[str, int]  # segment and its frames; a whole one of Waymo has 198 to 200
    out_of_reach: int = 0  # points left out

    def __str__(self) -> str:
        counts = (
            f"{self.segments:,} segments, {self.frames:,} frames, {self.frames_at_5:,} at "
            f"interval {INTERVAL}"
        )
        out = f", {self.out_of_reach:,} points beyond +-80 m left out" if self.out_of_reach else ""
        return (
            f"{counts}: {_KINDS[self.kind]} (shortest: {self.shortest[0]}, {self.shortest[1]} "
            f"frames{out})"
        )


@dataclass(frozen=True)
class VerifyReport:
    """What is wrong with a store, and what it is."""

    store: str
    fingerprint: str
    bytes_read: int
    splits: Mapping[str, SplitCheck]
    damaged: tuple[str, ...]  # sentences; none for a sound store

    @property
    def sound(self) -> bool:
        """Whether nothing is damaged or missing."""
        return not self.damaged

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "sound": self.sound}

    def __str__(self) -> str:
        lines = [f"{self.store} (fingerprint {self.fingerprint})"]
        lines += [f"  {name}: {check}" for name, check in self.splits.items()]
        lines += [f"damaged: {sentence}" for sentence in self.damaged]
        if self.sound:
            lines.append(
                f"sound: every checksum was computed again, over {self.bytes_read / 1e9:,.2f} GB"
            )
        return "\n".join(lines)


def verify(
    path: Path, source: Path | None = None, workers: int = 0, progress: bool = True
) -> VerifyReport:
    """Compute every checksum of a store again and compare its counts with the dataset's.

    With the Waymo files it was prepared from as ``source``, also name segments it lacks.
    ``workers`` are threads, 0 means all cores.

    Raises:
        DataError: If there is no store, or none of this version.
    """
    contents = read_index(path)  # not Store.open: a damaged segment must not hide the others
    folders = {
        path / split / segment: content
        for split, segments in contents.items()
        for segment, content in segments.items()
    }
    manifests: dict[str, dict[str, Manifest]] = {split: {} for split in contents}
    damaged: list[str] = []
    with ThreadPoolExecutor(worker_count(workers, len(folders))) as pool:
        results = pool.map(_read_segment, folders, folders.values())
        for folder, (manifest, sentences) in zip(
            folders, watched(results, len(folders), "verify", "segment", progress)
        ):
            damaged += sentences
            if manifest is not None:
                manifests[folder.parent.name][folder.name] = manifest
    if not damaged:
        damaged += _beyond_segments(Store.open(path))
    if source is not None:
        damaged += _absent(source, contents)
    checks = {split: _check(split, len(contents[split]), read) for split, read in manifests.items()}
    if not damaged:
        damaged += [
            f"{path / name}: {check}" for name, check in checks.items() if check.kind == "other"
        ]
    size = sum(file.stat().st_size for folder in folders for file in folder.glob("*"))
    return VerifyReport(str(path), fingerprint(contents), size, checks, tuple(damaged))


def _read_segment(folder: Path, content: str) -> tuple[Manifest | None, list[str]]:
    """Read a whole segment; return its manifest and one sentence for each thing that is not as it
    was written.
    """
    try:
        manifest = read_manifest(folder)
    except DataError as error:
        return None, [str(error)]
    again = "store its frames again" if is_own(manifest) else "prepare again"
    remedy = f"delete {folder} and {again}"
    if manifest["content"] != content or "checksum" not in manifest:
        return manifest, [f"{folder / MANIFEST} is not what was written; {remedy}"]
    try:
        changed = [
            name
            for name, record in manifest["files"].items()
            if records.sha256(folder / name) != record["sha256"]
        ]
    except OSError as error:
        return manifest, [
            (f"{error.filename or folder} cannot be read ({error.strerror or error}); {remedy}")
        ]
    return manifest, [f"{folder / name} is not what was written; {remedy}" for name in changed]


def _beyond_segments(store: Store) -> Iterator[str]:
    """Check the index's own hash and the object banks."""
    if records.read_json(store.path / INDEX).get("fingerprint") != store.fingerprint:
        yield f"{store.path / INDEX} is not what was written; delete it and prepare again"
    for split in map(store.split, store.contents):
        if bank_path(split).is_file():
            yield from verify_bank(bank_path(split), split.fingerprint)


def _absent(source: Path, contents: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    for split, segments in contents.items():
        if (source / split).is_dir() and (
            lacking := sorted(set(list_segments(source / split)) - set(segments))
        ):
            yield (
                f"split {split} lacks {len(lacking)} segments of {source} (the first: "
                f"{lacking[0]}); prepare again"
            )


def _check(split: str, segments: int, manifests: Mapping[str, Manifest]) -> SplitCheck:
    """Count from the manifests; segments whose manifest is damaged have been named, and count as no
    frames.
    """
    frames = {name: manifest["frames"] for name, manifest in sorted(manifests.items())}
    total, published = sum(frames.values()), PUBLISHED.get(split)
    if any(manifest.get("simulated") for manifest in manifests.values()):
        kind = "simulated"
    elif any(map(is_own, manifests.values())):
        kind = "own"
    elif published is None:
        kind = "uncounted"
    elif segments < published[0]:
        kind = "part"
    else:
        kind = "full" if (segments, total) == published else "other"
    shortest = min(frames.items(), key=lambda item: item[1], default=("none", 0))
    lost = sum(manifest.get("points_out_of_reach", 0) for manifest in manifests.values())
    return SplitCheck(segments, total, -(-total // INTERVAL), kind, shortest, lost)
