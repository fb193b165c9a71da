"""v2 files that cannot be right: one sentence that names the file, the value and what to do, and
never fewer frames.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import struct
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdlib.errors import DataError
from kdlib.waymo import annotations, components
from kdlib.waymo.column_types import integers
from kdlib.waymo.segments import list_segments, read_segment

SEGMENT = "1234567890123456789_1000_000_1020_000"
COMPONENTS = ("lidar", "lidar_pose", "lidar_calibration", "vehicle_pose", "lidar_box")
TIMES = (1550000000123456, 1550000000223468)
TIME, LASER = "key.frame_timestamp_micros", "key.laser_name"
IMAGE = "[LiDARComponent].range_image_return1"
PIXELS = "[LiDARPoseComponent].range_image_return1"
POSE, EXTRINSIC = (
    "[VehiclePoseComponent].world_from_vehicle.transform",
    "[LiDARCalibrationComponent].extrinsic.transform",
)
BEAMS = "[LiDARCalibrationComponent].beam_inclination."
BOX = "[LiDARBoxComponent]."


def changed(name, value, chosen=lambda row: True):
    """Return an edit that sets one cell; ``value`` may be computed from the cell."""

    def change(rows):
        new = [value(row[name]) if callable(value) else value for row in rows]
        return [{**row, name: cell} if chosen(row) else row for row, cell in zip(rows, new)]

    return change


def spoilt(name, place, number, chosen=lambda row: True):
    """Return an edit that sets one number in a list."""

    def change(cell):
        cell = list(cell or ())
        cell[place : place + 1] = [number]
        return cell

    return changed(name, change, chosen)


def top(row):
    return row[LASER] == 1


def first(row):
    return row[TIME] == TIMES[0]


@pytest.fixture
def broken(split):
    """Assert that reading the split is an error which says something about one of its files."""

    def check(path, said):
        seen = []
        with pytest.raises(DataError, match=said) as caught:
            seen.extend(read_segment(split, SEGMENT))
        text = str(caught.value)
        assert str(path) in text and "\n" not in text and len(text) < 600, text
        assert re.search("download|is it another component", text), f"no remedy: {text}"

    return check


@pytest.mark.parametrize(
    ("component", "change", "said"),
    [
        (
            "lidar",
            changed(f"{IMAGE}.values", lambda values: values[:-1], top),
            ("needs 7680 values, the file holds 7679"),
        ),
        (
            "lidar",
            changed(f"{IMAGE}.values", lambda values: [*values, 0.0], top),
            "needs 7680 values, the file holds 7681",
        ),
        (
            "lidar",
            changed(f"{IMAGE}.shape", [-16, -120, 4], top),
            (r"shape \(-16, -120, 4\), " r"expected"),
        ),
        (
            "lidar",
            changed(f"{IMAGE}.shape", [2**31 - 1] * 3, top),
            r"needs 9903520300447984150353281023 values",
        ),
        (
            "lidar",
            changed(f"{IMAGE}.shape", [120, 16, 4], top),
            ("16 beam inclinations for a range image of 120 rows"),
        ),
        ("lidar", changed(f"{IMAGE}.shape", [16, 160, 3], top), "at least 4 channels"),
        ("lidar", changed(f"{IMAGE}.shape", None, top), "only the values are there"),
        ("lidar", changed(f"{IMAGE}.values", None, top), "only the shape are there"),
        (
            "lidar",
            spoilt(f"{IMAGE}.values", 0, float("inf"), top),
            ("laser TOP: 1 ranges are NaN or infinite"),
        ),
        (
            "lidar",
            changed(TIME, None, first),
            (r"frame_timestamp_micros' is empty in 5 of 10 " r"rows; download"),
        ),
        ("lidar", changed(LASER, None, top), r"laser_name' is empty in 2 of 10 rows; download"),
        ("lidar", changed(LASER, 0, top), r"laser 0 has no row in lidar_calibration; download"),
        (
            "lidar",
            changed("key.segment_context_name", None, top),
            ("segment_context_name' is empty in 2 of 10 rows"),
        ),
        (
            "lidar",
            changed("key.segment_context_name", "x" * 5000, top),
            ("holds rows of segment 'xxx"),
        ),
        (
            "lidar",
            lambda rows: [row for row in rows if not top(row)],
            ("laser TOP has no row in lidar; download both"),
        ),
        ("lidar", lambda rows: [], "laser TOP has no row in lidar; download both"),
        ("lidar_pose", changed(f"{PIXELS}.shape", [16, 192, 4]), "at least 6 channels"),
        (
            "lidar_pose",
            changed(f"{PIXELS}.shape", [120, 16, 6]),
            (r"pixel poses of shape \(120, " r"16, 6\)"),
        ),
        ("lidar_pose", changed(f"{PIXELS}.shape", [16, 96, 7]), "range image of shape|needs"),
        (
            "lidar_pose",
            changed(f"{PIXELS}.values", lambda values: [0.0] * len(values)),
            "laser TOP: .* all-zero pose",
        ),
        (
            "lidar_pose",
            changed(f"{PIXELS}.values", lambda values: [float("nan")] * len(values)),
            "points are not finite",
        ),
        (
            "lidar_pose",
            changed(f"{PIXELS}.values", lambda values: [float("inf")] * len(values)),
            "points are not finite",
        ),
        ("lidar_pose", changed(LASER, 2), "has no pose image of the TOP laser"),
        ("lidar_pose", lambda rows: [*rows, rows[0]], "has two rows"),
        (
            "lidar_pose",
            lambda rows: [*rows, {**rows[0], TIME: 7}],
            ("frame 7 is in lidar_pose, but neither in lidar nor"),
        ),
        ("lidar_calibration", lambda rows: [*rows, rows[0]], "laser .* has two rows"),
        (
            "lidar_calibration",
            lambda rows: [*rows, {**rows[0], LASER: 9}],
            ("laser 9 has no row in lidar; download"),
        ),
        ("lidar_calibration", changed(EXTRINSIC, None), "needs 16 numbers, not 0"),
        ("lidar_calibration", spoilt(EXTRINSIC, 0, 2.0), "are no rotation"),
        ("lidar_calibration", changed(f"{BEAMS}min", None), "beam inclinations are missing"),
        (
            "lidar_calibration",
            spoilt(f"{BEAMS}values", 3, None, top),
            ("laser TOP: beam inclinations are missing or not finite"),
        ),
        ("vehicle_pose", spoilt(POSE, 3, float("nan")), "not finite"),
        ("vehicle_pose", spoilt(POSE, 3, 1e9), "moves by 1e\\+09 m"),
        ("vehicle_pose", spoilt(POSE, 12, 1.0), "last row of a transform"),
        (
            "vehicle_pose",
            changed(POSE, lambda cell: [2 * x for x in cell[:12]] + cell[12:]),
            "are no rotation",
        ),
        (
            "vehicle_pose",
            changed(POSE, lambda cell: [*cell[:8], *(-x for x in cell[8:12]), *cell[12:]]),
            "are no rotation",
        ),
        ("vehicle_pose", changed(POSE, lambda cell: [0.0] * 12 + cell[12:]), "are no rotation"),
        ("vehicle_pose", lambda rows: [*rows, rows[0]], r"frame \d+ has two rows; .* download"),
        (
            "vehicle_pose",
            lambda rows: [*rows, {**rows[0], TIME: 7}],
            ("frame 7 is not in both lidar and vehicle_pose; download"),
        ),
        ("vehicle_pose", lambda rows: rows[1:], "is not in both lidar and vehicle_pose; download"),
        ("vehicle_pose", lambda rows: [], "holds no frame; copy or download"),
        ("lidar_box", changed(f"{BOX}box.center.x", float("nan")), "not seven finite numbers"),
        ("lidar_box", changed(f"{BOX}box.center.x", 1e200), "not seven finite numbers"),
        ("lidar_box", changed(f"{BOX}box.heading", float("inf")), "not seven finite numbers"),
        ("lidar_box", changed(f"{BOX}box.size.y", 0.0), "with a size above 0"),
        ("lidar_box", changed(f"{BOX}box.size.z", -1.0), "with a size above 0"),
        (
            "lidar_box",
            changed(annotations.TYPE, 5),
            (r"has type 5, expected 0 \(unknown\), 1 " r"\(Vehicle\)"),
        ),
        ("lidar_box", changed(annotations.TYPE, -1), "has type -1, expected"),
        (
            "lidar_box",
            changed(annotations.DIFFICULTY, 3),
            (r"has difficulty 3, expected 0 " r"\(unset\), 1 or 2"),
        ),
        (
            "lidar_box",
            changed(annotations.NUM_POINTS, -1),
            ("has number of points -1, expected 0 to"),
        ),
        (
            "lidar_box",
            changed(annotations.NUM_POINTS, None),
            ("num_lidar_points_in_box' is empty in"),
        ),
        (
            "lidar_box",
            changed(f"{BOX}speed.x", float("inf")),
            (r"moves at \[inf, .* m/s, expected " r"less"),
        ),
        ("lidar_box", changed(components.OBJECT, None), "laser_object_id' is empty in"),
        ("lidar_box", changed(components.OBJECT, "same"), "an object has two boxes in the frame"),
        ("lidar_box", changed(TIME, 7), "boxes at time 7, for which there is no vehicle pose"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*95 to 105 ms")
def test_a_value_that_cannot_be_is_named(edit, split, broken, component, change, said):
    edit(component, change)
    broken(split, said)


def test_a_null_inside_a_range_image_is_an_error(edit, broken):
    def change(rows):
        for row in rows:
            place = next(
                i for i, value in enumerate(row[f"{IMAGE}.values"]) if i % 4 == 0 and value > 0
            )
            row[f"{IMAGE}.values"][place] = None
        return rows

    broken(edit("lidar", change), "1 ranges are NaN or infinite; a missing pixel must be -1")


def test_an_absent_first_return_is_not_fewer_points(edit, broken):
    empty = {f"{IMAGE}.values": None, f"{IMAGE}.shape": None}
    path = edit(
        "lidar", lambda rows: [{**row, **empty} if row[LASER] == 3 else row for row in rows]
    )
    broken(path, "laser SIDE_LEFT: return 1 is an empty cell")


@pytest.mark.parametrize("laser", [1, 4])
def test_a_laser_may_not_be_missing_in_one_frame(edit, broken, laser):
    path = edit(
        "lidar", lambda rows: [row for row in rows if not (row[LASER] == laser and first(row))]
    )
    broken(path, rf"frame {TIMES[0]} has lasers \[.*\], others have \[1, 2, 3, 4, 5\]; download")


@pytest.mark.parametrize(
    "component", ["lidar", "lidar_pose", "vehicle_pose", "lidar and vehicle_pose"]
)
def test_a_frame_may_not_be_missing_in_one_component(edit, split, broken, component):
    for name in component.split(" and "):
        edit(name, lambda rows: [row for row in rows if not first(row)])
    broken(split, f"frame {TIMES[0]} .*(download|would be)|boxes at time")


@pytest.mark.parametrize(
    ("component", "name", "kind", "said"),
    [
        (
            "vehicle_pose",
            TIME,
            pa.timestamp("us"),
            (r"is of type timestamp\[us\], expected " r"numbers; .* download"),
        ),
        ("vehicle_pose", TIME, pa.string(), "is of type string, expected numbers"),
        ("lidar", LASER, pa.string(), "is of type string, expected numbers"),
        ("lidar", f"{IMAGE}.values", pa.list_(pa.string()), "expected lists of numbers"),
        ("lidar", f"{IMAGE}.shape", pa.int32(), "is of type int32, expected lists of numbers"),
        (
            "lidar_pose",
            f"{PIXELS}.values",
            pa.list_(pa.list_(pa.float32())),
            ("expected lists of numbers"),
        ),
        ("vehicle_pose", POSE, pa.float64(), "is of type double, expected lists of numbers"),
        (
            "lidar_calibration",
            EXTRINSIC,
            pa.binary(),
            ("is of type binary, expected lists of numbers"),
        ),
        ("lidar_box", annotations.TYPE, pa.string(), "is of type string, expected numbers"),
        ("lidar_box", components.OBJECT, pa.int64(), "is of type int64, expected text"),
        ("lidar_box", components.OBJECT, pa.binary(), "is of type binary, expected text"),
        ("lidar_box", "key.segment_context_name", pa.list_(pa.int8()), "expected text"),
    ],
)
def test_a_column_of_another_kind_is_named(rewrite, broken, component, name, kind, said):
    def change(table):
        column = pa.nulls(table.num_rows, kind)
        if kind == pa.timestamp("us"):
            column = table.column(name).cast(kind)
        return table.set_column(table.column_names.index(name), name, column)

    broken(rewrite(component, change), re.escape(f"column '{name}' ") + f".*{said}")


def test_fractions_are_no_keys(rewrite, broken):
    def change(table):
        return table.set_column(
            table.column_names.index(LASER), LASER, pa.array([1.5] * table.num_rows)
        )

    broken(rewrite("lidar", change), "column 'key.laser_name' holds a number that is not whole")


def test_a_column_may_not_be_there_twice(rewrite, broken):
    path = rewrite("lidar", lambda table: table.append_column(TIME, table.column(TIME)))
    broken(path, f"has more than one column '{TIME}'; download it again")


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("other", ["stats", "vehicle_pose", "lidar_camera_synced_box"])
def test_another_component_in_the_folder_is_named(golden_split, split, broken, component, other):
    if other != component:
        path = split / component / f"{SEGMENT}.parquet"
        shutil.copy(golden_split / other / f"{SEGMENT}.parquet", path)
        broken(path, "has no column .*; is it another component or release")


def test_two_segments_in_one_file_are_named(edit, broken):
    path = edit(
        "vehicle_pose",
        lambda rows: [*rows, {**rows[0], "key.segment_context_name": "another", TIME: 7}],
    )
    broken(path, "holds rows of segment 'another', not of the segment it is named after")


def test_two_files_of_one_segment_are_not_two_segments(split):
    for component in COMPONENTS:
        shutil.copy(split / component / f"{SEGMENT}.parquet", split / component / "copy.parquet")
    assert list_segments(split) == [SEGMENT, "copy"]
    with pytest.raises(
        DataError,
        match=(rf"copy\.parquet holds rows of segment '{SEGMENT}', not " r"of the segment"),
    ):
        list(read_segment(split, "copy"))


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_file_cut_anywhere_is_named(split, broken, component):
    path, rng = split / component / f"{SEGMENT}.parquet", random.Random(component)
    content = path.read_bytes()
    for size in [
        0,
        1,
        4,
        11,
        12,
        len(content) - 9,
        len(content) - 4,
        len(content) - 1,
        *rng.choices(range(len(content)), k=20),
    ]:
        path.write_bytes(content[:size])
        broken(path, "is damaged or no Parquet file .*; copy or download it again")


@pytest.mark.parametrize("component", COMPONENTS)
def test_other_files_are_named(goldens, split, broken, component):
    path = split / component / f"{SEGMENT}.parquet"
    record = next((goldens / "waymo_format").glob("*.tfrecord")).read_bytes()
    for content in (
        record,
        b"<html>404 Not Found</html>" * 10,
        b"version https://git-lfs.github.com/spec/v1",
        bytes(4096),
    ):
        path.write_bytes(content)
        broken(path, "is damaged or no Parquet file")
    path.write_bytes(b"PAR1" + bytes(4096) + b"PAR1")
    broken(path, "is damaged or no Parquet file")


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_folder_in_place_of_a_file_is_named(split, component):
    path = split / component / f"{SEGMENT}.parquet"
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=f"segment {SEGMENT} has no {component} file; download"):
        list(read_segment(split, SEGMENT))
    with pytest.raises(DataError, match=re.escape(str(path))):
        components.read_columns(path, {TIME: integers}, SEGMENT)


def test_a_file_that_may_not_be_read_is_named(split, broken, monkeypatch):
    path = split / "lidar_box" / f"{SEGMENT}.parquet"
    path.chmod(0)
    if os.access(path, os.R_OK):  # root may read everything

        def refuse(name, **options):
            if name == path:
                raise PermissionError(13, "Permission denied", str(name))
            return whole(name, **options)

        whole = pq.ParquetFile
        monkeypatch.setattr(pq, "ParquetFile", refuse)
    broken(path, "may not be read by this user")


def test_a_file_that_vanishes_is_named(split):
    frames = read_segment(split, SEGMENT)
    path = split / "lidar_box" / f"{SEGMENT}.parquet"
    with pytest.raises(DataError, match=f"{path} does not exist"):
        path.unlink()
        components.read_columns(path, {TIME: integers}, SEGMENT)
    frames.close()


def footer(content):
    return len(content) - 8 - struct.unpack("<I", content[-8:-4])[0]


def number(value):
    """A Thrift integer."""
    value, out = (value << 1 ^ value >> 63) & (1 << 64) - 1, bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def test_sizes_a_file_cannot_have_are_not_believed(rewrite, split, assert_same):
    """Page headers that claim 2 GB and metadata that claim billions of rows cost no memory and
    change no frame.
    """
    path = rewrite("vehicle_pose", compression="none", use_dictionary=False)
    content, whole = path.read_bytes(), list(read_segment(split, SEGMENT))
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(2)
    start, size = chunk.data_page_offset, chunk.total_compressed_size
    # data page, then its size inflated and deflated
    assert content[start : start + 3] == b"\x15\x00\x15"
    end = footer(content)
    lies = [
        content[: start + 3] + number(2**31 - 1) + content[start + 4 :],
        content[:-8] + b"\xff\xff\xff\xff" + b"PAR1",
    ]
    for honest, lie in (
        (2, 2**40),
        (2, 2**62),
        (2, -1),
        (2, 3),
        (size, 2 * size),
        (size, 2**40),
        (size, -size),
        (start, 2**50),
    ):
        # num_rows, num_values, sizes, offsets
        for place in _all(content, b"\x16" + number(honest), end):
            metadata = (
                content[end:place]
                + b"\x16"
                + number(lie)
                + content[place + 1 + len(number(honest)) : -8]
            )
            lies.append(content[:end] + metadata + struct.pack("<I", len(metadata)) + b"PAR1")
    errors = []
    for lie in lies:
        path.write_bytes(lie)
        allocated = pa.total_allocated_bytes()
        tracemalloc.start()
        try:
            # the number was one that is not used
            assert_same(list(read_segment(split, SEGMENT)), whole)
        except DataError as error:
            errors.append(str(error))
        assert (
            tracemalloc.get_traced_memory()[1] < 8 << 20
            and pa.total_allocated_bytes() - allocated < 8 << 20
        )
        tracemalloc.stop()
    assert len(lies) > 20 and errors
    assert all(str(path) in text and "malloc" not in text for text in errors)


def test_a_page_with_too_few_levels_is_named(rewrite, split, broken):
    """Levels say how many rows a page has; pyarrow 10 believes them, and ended the process for want
    of the rest.
    """
    path = rewrite(
        "vehicle_pose",
        compression="none",
        use_dictionary=False,
        data_page_version="2.0",
        write_statistics=False,
    )
    group = pq.ParquetFile(path).metadata.row_group(0)
    chunk = next(
        group.column(place)
        for place in range(group.num_columns)
        if group.column(place).path_in_schema == TIME
    )
    content, rows = bytearray(path.read_bytes()), group.num_rows
    # a run of so many levels, all of them 1
    place = content.index(bytes((2 * rows, 1)), chunk.data_page_offset)
    content[place] = 2 * (rows - 1)
    path.write_bytes(content)
    broken(
        path,
        (
            "is damaged or no Parquet file .*(has 1 rows, 'key.segment_context_name' has "
            "2|[Ll]evels)"
        ),
    )


@pytest.mark.parametrize("short", [TIME, f"{IMAGE}.values", f"{IMAGE}.shape"])
def test_a_column_that_ends_early_is_named(split, broken, monkeypatch, short):
    """The same among the images, which are streamed."""

    def end_early(file, batch_size, columns):
        batches = list(whole(file, batch_size=batch_size, columns=columns))
        return iter(batches[:-1] if columns == [short] and batch_size < 10 else batches)

    whole = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", end_early)
    broken(
        split / "lidar" / f"{SEGMENT}.parquet",
        (f"damaged or no Parquet file .*'{re.escape(short)}' has fewer rows than '"),
    )


def _all(content, part, start):
    return [
        match.start() for match in re.finditer(re.escape(part), content) if match.start() >= start
    ]


def test_memory_that_lacks_is_named(split, broken, monkeypatch):
    def fail(*args, **kwargs):
        raise pa.ArrowMemoryError("malloc of size 64 failed")

    monkeypatch.setattr(pq, "ParquetFile", fail)
    broken(split, "malloc of size 64 failed, more than this machine has free")


def test_nothing_is_read_before_all_keys_are_checked(edit, split):
    """The last frame's missing row is an error before the first frame, not after an hour."""
    edit(
        "lidar",
        lambda rows: [row for row in rows if not (row[LASER] == 4 and row[TIME] == TIMES[1])],
    )
    with pytest.raises(DataError):
        next(read_segment(split, SEGMENT))
