"""Fixtures: small Waymo v2 files written with plain pyarrow, and a store prepared from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdlib import records
from kdlib.data.prepare import prepare
from kdlib.data.segment import STORE_VERSION, write_segment
from kdlib.data.store import INDEX, Store, StoreSplit
from kdlib.types import Frame, FrameLabels

START = 1_600_000_000_000_000
SHAPES = {1: (8, 40), 2: (6, 10)}


def _image_columns(prefix: str, image: np.ndarray) -> dict:
    return {f"{prefix}.values": image.ravel().tolist(), f"{prefix}.shape": list(image.shape)}


def _write(path: Path, rows: list[dict], kinds: dict[str, pa.DataType]) -> None:
    def kind(name: str) -> pa.DataType:
        for ending, found in kinds.items():
            if name.endswith(ending):
                return found
        return pa.float64()

    names = list(kinds) if not rows else list(rows[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.Table.from_pylist(rows, schema=pa.schema([(name, kind(name)) for name in names])), path
    )


def write_waymo(
    folder: Path, segment: str, boxes: list[list[dict]], seed: int = 0, empty: tuple[int, ...] = ()
) -> None:
    """Write ``len(boxes)`` frames of two lasers; frames in ``empty`` have no points."""
    rng = np.random.default_rng([seed, *segment.encode()])
    rows: dict[str, list[dict]] = {
        name: []
        for name in ("lidar", "lidar_pose", "lidar_calibration", "vehicle_pose", "lidar_box")
    }
    for number, frame in enumerate(boxes):
        keys = {
            "key.segment_context_name": segment,
            "key.frame_timestamp_micros": START + 100_000 * number,
        }
        pose = np.eye(4)
        pose[:3, 3] = (1000.0 + number, -2000.0, 5.0)
        rows["vehicle_pose"].append(
            {**keys, "[VehiclePoseComponent].world_from_vehicle.transform": pose.ravel().tolist()}
        )
        for laser, shape in SHAPES.items():
            returns = {}
            for which in (1, 2):
                image = np.full((*shape, 4), -1.0)
                seen = (rng.random(shape) < 0.8 / which) & (number not in empty)
                count = int(seen.sum())
                image[seen] = np.stack(
                    [
                        rng.uniform(1, 70, count),
                        rng.exponential(0.5, count),
                        rng.uniform(0, 1.5, count),
                        rng.choice([-1, 1], count),
                    ],
                    1,
                )
                returns.update(_image_columns(f"[LiDARComponent].range_image_return{which}", image))
            rows["lidar"].append({**keys, "key.laser_name": laser, **returns})
        poses = np.zeros((*SHAPES[1], 6))
        poses[..., 3:] = pose[:3, 3]
        images = _image_columns("[LiDARPoseComponent].range_image_return1", poses)
        rows["lidar_pose"].append({**keys, "key.laser_name": 1, **images})
        rows["lidar_box"] += [{**keys, **_box(box, index)} for index, box in enumerate(frame)]
    for laser in SHAPES:
        transform = np.eye(4)
        transform[2, 3] = 2.0
        prefix = "[LiDARCalibrationComponent]."
        rows["lidar_calibration"].append(
            {
                "key.segment_context_name": segment,
                "key.laser_name": laser,
                f"{prefix}extrinsic.transform": transform.ravel().tolist(),
                f"{prefix}beam_inclination.min": -0.3,
                f"{prefix}beam_inclination.max": 0.05,
                f"{prefix}beam_inclination.values": None,
            }
        )
    kinds = {
        "context_name": pa.string(),
        "timestamp_micros": pa.int64(),
        "laser_name": pa.int8(),
        "object_id": pa.string(),
        "transform": pa.list_(pa.float64(), 16),
        "inclination.values": pa.list_(pa.float64()),
        ".values": pa.list_(pa.float32()),
        ".shape": pa.list_(pa.int32(), 3),
        "].type": pa.int8(),
        "_in_box": pa.int64(),
        ".detection": pa.int8(),
    }
    if not rows["lidar_box"]:
        # only a box of unknown type, which is none
        rows["lidar_box"] = [{**keys, **_box({"type": 0}, 0)}]
    for component, some in rows.items():
        _write(folder / component / f"{segment}.parquet", some, kinds)


def _box(box: dict, index: int) -> dict:
    prefix = "[LiDARBoxComponent]."
    names = (
        "box.center.x",
        "box.center.y",
        "box.center.z",
        "box.size.x",
        "box.size.y",
        "box.size.z",
        "box.heading",
    )
    return {
        "key.laser_object_id": f"object{index}",
        **dict(
            zip(
                (prefix + name for name in names),
                box.get("box", (5.0, 0.0, 1.0, 4.0, 2.0, 1.5, 0.3)),
            )
        ),
        f"{prefix}type": box.get("type", 1),
        f"{prefix}num_lidar_points_in_box": box.get("points", 10),
        **{
            f"{prefix}speed.{axis}": value
            for axis, value in zip("xyz", box.get("speed", (1.0, 0.5, 0.0)))
        },
        f"{prefix}difficulty_level.detection": box.get("difficulty"),
    }


@pytest.fixture(scope="session")
def waymo_writer() -> Callable[..., None]:
    return write_waymo


TRAINING = {
    "a": [[{}, {"type": 3}], [{"type": 2, "points": 0}, {"type": 4}], []],
    "b": [
        [{"box": (15.0, 3.0, 1.0, 4.0, 2.0, 1.5, -3.0)}],
        [{"points": 0}],
        [{"type": 2}],
        [{"type": 3}],
    ],
}


@pytest.fixture(scope="session")
def source(tmp_path_factory) -> Path:
    """Two training segments of 3 and 4 frames, one of validation; some frames without boxes, one
    without points.
    """
    root = tmp_path_factory.mktemp("waymo")
    for name, boxes in TRAINING.items():
        write_waymo(root / "training", name, boxes)
    write_waymo(root / "validation", "c", [[{}], [], [{"type": 2, "difficulty": 2}]], empty=(1,))
    return root


@pytest.fixture(scope="session")
def store(source, tmp_path_factory) -> Store:
    out = tmp_path_factory.mktemp("store") / "store"
    prepare(source, out, progress=False)
    return Store.open(out)


def _crowded_frame(rng: np.random.Generator, segment: str, index: int, boxes: int) -> Frame:
    """Boxes of all classes, some of them in each other, points in and around them."""
    types = rng.integers(1, 5, boxes)
    size = np.array([(4.5, 2.0, 1.7), (0.9, 0.8, 1.8), (0.5, 0.5, 0.8), (1.8, 0.8, 1.7)])[types - 1]
    place = np.c_[rng.uniform(-30, 30, (boxes, 2)), rng.uniform(0, 2, boxes)]
    found = np.c_[place, size, rng.uniform(-np.pi, np.pi, boxes)]
    near = [box[:3] + rng.normal(0, 0.4, (int(rng.integers(0, 40)), 3)) * box[3:6] for box in found]
    points = np.concatenate((rng.uniform((-32, -32, -1), (32, 32, 3), (3000, 3)), *near))
    features = np.c_[
        rng.exponential(0.5, len(points)),
        rng.uniform(0, 1.5, len(points)),
        rng.choice([-1, 1], len(points)),
    ]
    labels = FrameLabels(
        found,
        types,
        tuple(f"o{n}" for n in range(boxes)),
        rng.integers(0, 3, boxes),
        np.array([len(some) for some in near], np.int64),
        np.zeros((boxes, 2)),
    )
    return Frame(
        segment, index, START + index, np.c_[points, features].astype(np.float32), np.eye(4), labels
    )


@pytest.fixture(scope="session")
def crowd() -> Callable[..., StoreSplit]:
    """Write a store of crowded frames: ``crowd(folder, {segment: boxes of each frame})`` gives its
    training split.
    """

    def write(folder: Path, segments: dict[str, list[int]], seed: int = 0) -> StoreSplit:
        contents = {}
        for segment, counts in segments.items():
            rng = np.random.default_rng([seed, *segment.encode()])
            frames = (
                _crowded_frame(rng, segment, index, boxes) for index, boxes in enumerate(counts)
            )
            contents[segment] = write_segment(frames, folder / "training" / segment, "none")[
                "content"
            ]
        records.write_json(
            folder / INDEX,
            {"format": "kdlib-store", "version": STORE_VERSION, "splits": {"training": contents}},
        )
        return Store.open(folder).split("training")

    return write
