"""Simulated segments read back by a second, independent implementation of spec section 4."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdlib.simulate import simulate

BOX = "[LiDARBoxComponent]."
NUMBERS = ("center.x", "center.y", "center.z", "size.x", "size.y", "size.z", "heading")


@dataclass(frozen=True)
class ReadFrame:
    """One frame as the reference sees it."""

    timestamp: int
    points: np.ndarray  # (N, 3) vehicle frame
    features: np.ndarray  # (N, 3) intensity, elongation, zone
    laser: np.ndarray  # (N,)
    second: np.ndarray  # (N,) bool
    rows: list[dict]  # lidar_box
    boxes: np.ndarray  # (M, 7)
    pose: np.ndarray


@dataclass(frozen=True)
class ReadSegment:
    """The tables and the frames of one segment."""

    folder: Path
    name: str
    tables: dict[str, pa.Table]
    frames: list[ReadFrame]


def turns(angles):
    """Rz Ry Rx of (..., 3), the slow way."""
    result = np.empty((*angles.shape[:-1], 3, 3))
    for place in np.ndindex(angles.shape[:-1]):
        roll, pitch, yaw = angles[place]
        x = np.array([[1, 0, 0], [0, np.cos(roll), -np.sin(roll)], [0, np.sin(roll), np.cos(roll)]])
        y = np.array(
            [[np.cos(pitch), 0, np.sin(pitch)], [0, 1, 0], [-np.sin(pitch), 0, np.cos(pitch)]]
        )
        z = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
        result[place] = z @ y @ x
    return result


def convert(image, calibration, pixel_pose, frame_pose):
    """Range image to vehicle points, steps 1 to 6 as written in the spec, float64, every pixel."""
    height, width = image.shape[:2]
    extrinsic, table, low, high = calibration
    if table is not None:
        inclination = np.array([table[height - 1 - r] for r in range(height)])
    else:
        inclination = np.array(
            [low + ((height - 1 - r) + 0.5) / height * (high - low) for r in range(height)]
        )
    yaw = np.arctan2(extrinsic[1, 0], extrinsic[0, 0])
    azimuth = np.array([np.pi * (2 * (width - c - 0.5) / width - 1) - yaw for c in range(width)])
    distance = image[..., 0].astype(np.float64)
    inclination = inclination[:, None]
    laser = np.stack(
        [
            distance * np.cos(azimuth) * np.cos(inclination),
            distance * np.sin(azimuth) * np.cos(inclination),
            distance * np.sin(inclination),
        ],
        -1,
    )
    points = laser @ extrinsic[:3, :3].T + extrinsic[:3, 3]
    if pixel_pose is not None:
        columns = pixel_pose[0].astype(np.float64)
        assert (pixel_pose == pixel_pose[:1]).all()  # a column fires at once
        points = np.einsum("cij,rcj->rci", turns(columns[:, :3]), points) + columns[:, 3:]
        homogeneous = np.concatenate([points, np.ones((*points.shape[:2], 1))], -1)
        points = (homogeneous @ np.linalg.inv(frame_pose).T)[..., :3]
    return points[distance > 0]


def read(folder, name):
    """Read a segment by column names alone."""
    components = ("lidar", "lidar_pose", "lidar_calibration", "lidar_box", "vehicle_pose", "stats")
    tables = {
        component: pq.read_table(folder / component / f"{name}.parquet") for component in components
    }
    calibrations = {}
    for row in tables["lidar_calibration"].to_pylist():
        prefix = "[LiDARCalibrationComponent]."
        extrinsic = np.array(row[f"{prefix}extrinsic.transform"]).reshape(4, 4)
        beams = [row[f"{prefix}beam_inclination.{part}"] for part in ("values", "min", "max")]
        calibrations[row["key.laser_name"]] = (extrinsic, *beams)
    poses = {
        row["key.frame_timestamp_micros"]: np.array(
            row["[VehiclePoseComponent].world_from_vehicle.transform"]
        ).reshape(4, 4)
        for row in tables["vehicle_pose"].to_pylist()
    }

    def image(table, row, column):
        return np.array(table[f"{column}.values"][row].values).reshape(
            table[f"{column}.shape"][row].as_py()
        )

    times = tables["lidar_pose"]["key.frame_timestamp_micros"].to_pylist()
    pixel = {
        t: image(tables["lidar_pose"], i, "[LiDARPoseComponent].range_image_return1")
        for i, t in enumerate(times)
    }
    found = {time: [] for time in poses}
    lidar = tables["lidar"]
    for row, (time, laser) in enumerate(
        zip(lidar["key.frame_timestamp_micros"].to_pylist(), lidar["key.laser_name"].to_pylist())
    ):
        for echo in (1, 2):
            values = image(lidar, row, f"[LiDARComponent].range_image_return{echo}")
            points = convert(
                values, calibrations[laser], pixel[time] if laser == 1 else None, poses[time]
            )
            rest = values[values[..., 0] > 0][:, 1:]
            found[time].append(
                (points, rest, np.full(len(points), laser), np.full(len(points), echo == 2))
            )
    rows = tables["lidar_box"].to_pylist()
    frames = []
    for time, pose in sorted(poses.items()):
        mine = [row for row in rows if row["key.frame_timestamp_micros"] == time]
        boxes = np.array(
            [[row[f"{BOX}box.{number}"] for number in NUMBERS] for row in mine]
        ).reshape(-1, 7)
        frames.append(
            ReadFrame(
                time, *(np.concatenate(part) for part in zip(*found[time])), mine, boxes, pose
            )
        )
    return ReadSegment(folder, name, tables, frames)


@pytest.fixture(scope="session")
def segments(tmp_path_factory) -> list[ReadSegment]:
    """Four short demo segments."""
    out = tmp_path_factory.mktemp("simulated")
    names = simulate(out, segments=4, frames=3, seed=5, scale="demo", workers=1, progress=False)
    return [read(out / "training", name) for name in names]
