"""Manifests of a store's segments enter, the report of a call of prepare leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kdlib.types import WAYMO_TYPES


@dataclass(frozen=True)
class SplitReport:
    """What a split of the store holds."""

    segments: int
    reused: int  # of those, segments an earlier call had finished
    elsewhere: int  # of those, segments the source does not have (any more)
    simulated: bool
    frames: int
    points: int
    points_out_of_reach: int  # beyond +-80 m, left out
    boxes: Mapping[str, int]  # by class, boxes without points included

    @staticmethod
    def of(manifests: Sequence[Mapping[str, Any]], in_source: int, reused: int) -> SplitReport:
        """Add up the manifests of a split, at least one."""
        return SplitReport(
            segments=len(manifests),
            reused=reused,
            elsewhere=len(manifests) - in_source,
            simulated=bool(manifests[0].get("simulated")),
            **{name: sum(manifest[name] for manifest in manifests) for name in ("frames", "points", "points_out_of_reach")},
            boxes={name: sum(manifest["boxes"][name] for manifest in manifests) for name in WAYMO_TYPES},
        )


@dataclass(frozen=True)
class PrepareReport:
    """What a call of :func:`~kdlib.data.prepare.prepare` made."""

    store: str
    fingerprint: str  # of the whole store
    seconds: float
    frames_per_second: float | None  # of those prepared in this call, all workers together, object bank left out
    workers: int
    peak_memory: int  # bytes, of the largest process
    bytes_per_point: int
    missing_splits: tuple[str, ...]  # asked for, but the source has no such folder
    splits: Mapping[str, SplitReport]
    object_bank: str | None  # path

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.store} (fingerprint {self.fingerprint}), {self.seconds:.1f} s"]
        for name, split in self.splits.items():
            boxes = ", ".join(f"{count:,} {kind}" for kind, count in split.boxes.items())
            counts = f"{split.frames:,} frames, {split.points:,} points"
            what = "simulated segments" if split.simulated else "segments"
            lines += [f"  {name}: {split.segments} {what} ({split.reused} kept), {counts}", f"    boxes: {boxes}"]
            if split.elsewhere:
                lines.append(f"    {split.elsewhere} of the segments are of earlier calls, the source does not have them")
            if split.points_out_of_reach:
                lines.append(f"    {split.points_out_of_reach:,} points beyond +-80 m left out")
        lines += [f"  {name}: the source has no such folder" for name in self.missing_splits]
        lines += [f"  objects to paste: {self.object_bank}"] if self.object_bank else []
        return "\n".join(lines)
