"""Numbers a calibration, range image or label cannot hold: one sentence, alike in both formats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kdlib.errors import DataError
from kdlib.waymo import tfrecord
from kdlib.waymo.frame_proto import pack_matrix, parse_frame, unpack_matrix
from kdlib.waymo.reader_v1 import frames_v1
from kdlib.waymo.reader_v2 import frames_v2

SEGMENT = "1234567890123456789_1000_000_1020_000"
TIME, LASER = "key.frame_timestamp_micros", "key.laser_name"
CALIBRATION, BOX = "[LiDARCalibrationComponent].", "[LiDARBoxComponent]."
TOP, SIDE = 1, 3
Image = np.ndarray


def beams(laser: int, change: Callable[[list[float]], list[float]]) -> tuple[Any, ...]:
    """A change of one laser's beams, those of its table or, without one, its two limits."""

    def v1(frame):
        row = next(row for row in frame.context.laser_calibrations if row.name == laser)
        if row.beam_inclinations:
            row.beam_inclinations[:] = change(list(row.beam_inclinations))
        else:
            limits = change([row.beam_inclination_min, row.beam_inclination_max])
            row.beam_inclination_min, row.beam_inclination_max = limits

    def v2(row):
        names = [f"{CALIBRATION}beam_inclination.{name}" for name in ("values", "min", "max")]
        if row[LASER] != laser:
            return row
        if row[names[0]]:
            return {**row, names[0]: change(row[names[0]])}
        return {**row, **dict(zip(names[1:], change([row[name] for name in names[1:]])))}

    return v1, "lidar_calibration", v2


def place(laser: int, number: int, value: float) -> tuple[Any, ...]:
    """A change of one number of a laser's extrinsic."""

    def v1(frame):
        for row in frame.context.laser_calibrations:
            if row.name == laser:
                row.extrinsic.transform[number] = value

    def v2(row):
        name = f"{CALIBRATION}extrinsic.transform"
        cell = [*row[name][:number], value, *row[name][number + 1 :]]
        return {**row, name: cell} if row[LASER] == laser else row

    return v1, "lidar_calibration", v2


def image(laser: int, change: Callable[[Image], Image]) -> tuple[Any, ...]:
    """A change of one laser's first return in the second frame."""

    def v1(frame):
        echo = next(entry for entry in frame.lasers if entry.name == laser).ri_return1
        changed = change(unpack_matrix(echo.range_image_compressed, 4).copy())
        echo.range_image_compressed = pack_matrix(changed)

    def v2(row):
        name = "[LiDARComponent].range_image_return1"
        if row[LASER] != laser or row[TIME] != 1550000000223468:
            return row
        values = np.array(row[f"{name}.values"], np.float32).reshape(row[f"{name}.shape"])
        changed = change(values)
        return {
            **row,
            f"{name}.values": changed.ravel().tolist(),
            f"{name}.shape": list(changed.shape),
        }

    return v1, "lidar", v2


def label(v1: Callable[[Any], None], name: str, value: Any) -> tuple[Any, ...]:
    return lambda frame: v1(frame.laser_labels[0]), "lidar_box", lambda row: {**row, name: value}


def far(value: float) -> Callable[[Image], Image]:
    def change(values: Image) -> Image:
        values[3, 2, 0] = value
        return values

    return change


def degrees(angles: list[float]) -> list[float]:
    return np.degrees(angles).tolist()


def turned(value: float) -> Callable[[Any], None]:
    return lambda one: setattr(one.box, "heading", value)


KINDS = {
    "a range of 1e30 m": (image(TOP, far(1e30)), "1 points lie more than 1000 m away; .* 1e.30 m"),
    "a range in millimetres": (image(SIDE, far(12_000)), "laser SIDE_LEFT: 1 points lie more than"),
    "a table in degrees": (
        beams(TOP, degrees),
        "laser TOP: beam inclinations reach .* not degrees",
    ),
    "limits in degrees": (
        beams(SIDE, degrees),
        "laser SIDE_LEFT: beam inclinations reach .* not deg",
    ),
    "a descending table": (beams(TOP, lambda row: row[::-1]), "laser TOP: beam .* do not ascend"),
    "limits the wrong way": (beams(SIDE, lambda row: row[::-1]), "laser SIDE_LEFT: .* not ascend"),
    "two beams exchanged": (
        beams(TOP, lambda row: [row[1], row[0], *row[2:]]),
        "laser TOP: beam inclinations .* do not ascend",
    ),
    "one beam for all rows": (
        beams(TOP, lambda row: row[:1] * len(row)),
        "laser TOP: all 16 beam inclinations are",
    ),
    "no spread": (beams(SIDE, lambda row: row[:1] * 2), "laser SIDE_LEFT: .* do not ascend"),
    "a mount in millimetres": (place(SIDE, 3, 1430.0), "laser SIDE_LEFT: sits at .* in metres"),
    "other rows in one frame": (
        image(SIDE, lambda values: values[:-1]),
        "laser SIDE_LEFT: a range image has .* rows, others of this laser have",
    ),
    "other columns in one frame": (
        image(SIDE, lambda values: values[:, :-1]),
        "laser SIDE_LEFT: a range image has .* columns, others of this laser have",
    ),
    "a box of millimetres": (
        label(lambda one: setattr(one.box, "length", 9000.0), f"{BOX}box.size.x", 9000.0),
        "is no object within 1000 m with sides up to 100 m",
    ),
    "a box elsewhere": (
        label(lambda one: setattr(one.box, "center_x", -9e4), f"{BOX}box.center.x", -9e4),
        "is no object within 1000 m with sides up to 100 m",
    ),
    "a heading of 400": (label(turned(400.0), f"{BOX}box.heading", 400.0), "has heading 400"),
    "a heading of -90": (label(turned(-90.0), f"{BOX}box.heading", -90.0), "has heading -90"),
    "an empty id": (
        label(lambda one: setattr(one, "id", b""), "key.laser_object_id", ""),
        "box '' at time .* has no object id",
    ),
    "an id of blanks": (
        label(lambda one: setattr(one, "id", b" "), "key.laser_object_id", " "),
        "has no object id",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_that_cannot_be_is_named_alike_in_both_formats(
    kind, goldens, tmp_path, edit, split
) -> None:
    (v1, component, v2), said = KINDS[kind]
    frames = [
        parse_frame(payload)
        for payload in tfrecord.iter_payloads(next((goldens / "waymo_format").glob("*.tfrecord")))
    ]
    v1(frames[1])
    path = tmp_path / "segment.tfrecord"
    with path.open("wb") as file:
        for frame in frames:
            tfrecord.write_record(file, frame.SerializeToString())
    with pytest.raises(DataError, match=rf"{path}: frame \d+: .*{said}"):
        list(frames_v1(path, SEGMENT))
    edit(component, lambda rows: [v2(row) for row in rows])
    with pytest.raises(DataError, match=rf"{split}.*{said}.*download"):
        list(frames_v2(split, SEGMENT))
