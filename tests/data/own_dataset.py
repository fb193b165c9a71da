"""A dataset of one's own: KITTI-like scans, a text file of boxes beside each, a folder a drive."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kdlib.data.own import own_frame, store_frames
from kdlib.data.scans import read_scan
from kdlib.types import Frame

CLASSES = ("Car", "Pedestrian")  # all that are labelled


def frames(folder: Path) -> Iterator[Frame]:
    """Yield every drive's frames; a line of text: class x y z length width height heading."""
    for drive in sorted(path for path in folder.iterdir() if path.is_dir()):
        for number, path in enumerate(sorted(drive.glob("*.bin"))):
            lines = [line.split() for line in path.with_suffix(".txt").read_text().splitlines()]
            boxes = [[float(value) for value in line[1:]] for line in lines]
            scan = read_scan(path, layout="kitti")
            names = [line[0] for line in lines]
            yield own_frame(drive.name, number, scan.points, boxes, names, class_names=CLASSES)


def convert(folder: Path, out: Path) -> None:
    """Store training and validation drives."""
    for split in ("training", "validation"):
        store_frames(frames(folder / split), out / "store", split)
