"""What released and rewritten v2 files differ in gives the same frames, to the last bit.

Every subtlety of section 7 of the format spec, and the test that names it:

==================================================
===================================================================== Names are literal: dots and
brackets, no structs    test_a_struct_of_the_same_path_is_not_the_column One lidar row per frame and
laser                   test_bad_input.test_a_laser_may_not_be_missing_in_one_frame Pose images of
the TOP laser only                   test_pose_rows_of_other_lasers_are_passed_over Calibrations
have no time                           test_row_order_and_row_groups_do_not_matter (test_reader_v2)
Beam tables are null for the side lasers
test_beam_tables_of_side_lasers_are_null_or_empty One vehicle pose per frame
test_bad_input.test_a_frame_may_not_be_missing_in_one_component Sizes x, y, z are length, width,
height             test_golden_labels_match_openpcdet (test_annotations) Speeds are null without
metadata                    test_speeds_may_be_null Difficulty is null where unset
test_difficulty_may_be_null Camera-synced boxes, stats: left joins
test_components_that_are_not_read_may_be_absent_or_broken v1 and v2 give the same points
test_v1_and_v2_are_equal_to_the_last_bit (test_reader_v1) Rows have no common order: join by key
test_row_order_and_row_groups_do_not_matter (test_reader_v2) Extra first column "index"
test_extra_columns_are_ignored Transforms as float32, of fixed size or not
test_transforms_may_be_any_list_of_reals Camera names as text
test_camera_names_may_be_text Uncompressed, or any codec                          test_any_codec
Order of columns                                    test_order_of_columns int8 with nulls through
pandas is float with NaN    test_files_may_have_been_through_pandas A missing component
test_a_missing_component_is_named (test_reader_v2) Missing or empty boxes in testing
test_a_testing_split_may_lack_boxes (test_reader_v2), test_boxes_may_be_empty Elements of lists are
nullable                      test_bad_input.test_a_null_inside_a_range_image_is_an_error Elements
are called item or element                 test_elements_of_lists_may_have_any_name Row groups tiny
and huge                            test_any_row_group Rows are streamed, not row groups
test_rows_are_streamed ==================================================
=====================================================================
"""

from __future__ import annotations

import ast
import random
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from kdlib.errors import DataError
from kdlib.waymo import annotations, reader_v2
from kdlib.waymo.segments import list_segments, read_segment

SEGMENT = "1234567890123456789_1000_000_1020_000"
COMPONENTS = ("lidar", "lidar_pose", "lidar_calibration", "vehicle_pose", "lidar_box")
TIME, LASER, OBJECT = "key.frame_timestamp_micros", "key.laser_name", "key.laser_object_id"
POSE, EXTRINSIC = (
    "[VehiclePoseComponent].world_from_vehicle.transform",
    "[LiDARCalibrationComponent].extrinsic.transform",
)
BEAMS = "[LiDARCalibrationComponent].beam_inclination.values"
BOX = "[LiDARBoxComponent]."


@pytest.fixture(scope="module")
def golden_frames(golden_split):
    return list(read_segment(golden_split, SEGMENT))


@pytest.fixture
def unchanged(split, golden_frames, assert_same):
    """Assert that the split still gives the golden frames."""
    return lambda: assert_same(list(read_segment(split, SEGMENT)), golden_frames)


def retyped(table, kinds):
    """Cast some columns; what Arrow cannot cast goes through Python."""
    for name, kind in kinds.items():
        column = table.column(name)
        table = table.set_column(
            table.column_names.index(name), name, pa.array(column.to_pylist(), kind)
        )
    return table


def test_the_table_above_names_tests_that_exist():
    folder, named = (
        Path(__file__).parent,
        re.findall((r"(?:test_bad_input\.)?\btest_\w+(?: " r"\(test_\w+\))?"), __doc__),
    )
    assert len(named) >= 24
    tests = {}
    for file in folder.glob("test_*.py"):
        tree = ast.parse(file.read_text())
        tests[file.stem] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    for text in named:
        elsewhere = re.match(r"(test_bad_input)\.(\w+)|(\w+) \((\w+)\)", text)
        module, name = ("test_variations", text)
        if elsewhere:
            module, name = (
                (elsewhere[1], elsewhere[2]) if elsewhere[1] else (elsewhere[4], elsewhere[3])
            )
        assert name in tests[module], text


@pytest.mark.parametrize("codec", ["none", "snappy", "zstd", "gzip", "brotli", "lz4"])
def test_any_codec(rewrite, unchanged, codec):
    for component in COMPONENTS:
        rewrite(component, compression=codec)
    unchanged()


@pytest.mark.parametrize("size", [1, 3, 4, 100_000])
def test_any_row_group(rewrite, unchanged, size):
    for component in COMPONENTS:
        rewrite(component, row_group_size=size)
    unchanged()


@pytest.mark.parametrize(
    "options",
    [
        {"data_page_version": "2.0"},
        {"data_page_size": 64},
        {"use_dictionary": False},
        {"use_dictionary": True, "dictionary_pagesize_limit": 100},
        {"write_statistics": False},
        {"version": "1.0"},
        {"store_schema": False},
    ],
    ids=str,
)
def test_any_way_of_writing(rewrite, unchanged, options):
    for component in COMPONENTS:
        rewrite(component, **options)
    unchanged()


def test_page_checksums_are_checked_where_written(rewrite, split, unchanged):
    path = rewrite("lidar_box", write_page_checksum=True, compression="none", use_dictionary=False)
    unchanged()
    value = np.float64(next(read_segment(split, SEGMENT)).labels.boxes[0, 0]).tobytes()
    content = path.read_bytes()
    place = content.index(value) + 1  # a lower bit of x: still a proper number
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(DataError, match=f"{path} is damaged .*CRC"):
        list(read_segment(split, SEGMENT))


@pytest.mark.parametrize("seed", range(3))
def test_order_of_columns(rewrite, unchanged, seed):
    for number, component in enumerate(COMPONENTS):
        rng = random.Random(f"{seed}{number}")
        rewrite(
            component,
            lambda table, rng=rng: table.select(rng.sample(table.column_names, table.num_columns)),
        )
    unchanged()


def test_extra_columns_are_ignored(rewrite, unchanged):
    def extend(table):
        assert "index" in table.column_names
        extra = pa.array([[{"any": b"thing"}]] * table.num_rows)
        return (
            table.drop(["index"])
            .add_column(0, "index", extra)
            .append_column("[LiDARComponent].new.values", extra)
        )

    for component in COMPONENTS:
        rewrite(component, extend)
    unchanged()


def test_columns_that_are_not_read_may_be_absent(rewrite, unchanged):
    """2.0.0 and 2.0.1 have the same boxes and images; fewer columns must not matter either."""
    read = {
        "lidar": ("key.", "[LiDARComponent].range_image_return"),
        "lidar_pose": ("key.", "[LiDARPoseComponent].range_image_return1"),
        "lidar_calibration": ("key.", "[LiDARCalibrationComponent]."),
        "vehicle_pose": ("key.", POSE),
        "lidar_box": ("key.segment", *annotations.LABEL_COLUMNS),
    }
    for component, kept in read.items():
        rewrite(
            component,
            lambda table, kept=kept: table.select(
                [n for n in table.column_names if n.startswith(kept)]
            ),
        )
    unchanged()


def test_camera_names_may_be_text(rewrite, unchanged):
    for component in COMPONENTS:
        rewrite(
            component,
            lambda table: table.append_column(
                "key.camera_name", pa.array(["FRONT"] * table.num_rows)
            ),
        )
    unchanged()


def test_components_that_are_not_read_may_be_absent_or_broken(split, unchanged):
    unchanged()  # the copy has neither stats nor camera-synced boxes
    for component in ("stats", "lidar_camera_synced_box", "lidar_segmentation", "camera_image"):
        (split / component).mkdir()
        (split / component / f"{SEGMENT}.parquet").write_bytes(b"no Parquet file")
    unchanged()
    assert list_segments(split) == [SEGMENT]


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.float64(), 16), pa.list_(pa.float64()), pa.large_list(pa.float64())],
    ids=str,
)
def test_transforms_may_be_any_list_of_reals(rewrite, unchanged, kind):
    rewrite("vehicle_pose", lambda table: retyped(table, {POSE: kind}))
    rewrite("lidar_calibration", lambda table: retyped(table, {EXTRINSIC: kind}))
    unchanged()


@pytest.mark.parametrize("kind", [pa.list_(pa.float32(), 16), pa.list_(pa.float32())], ids=str)
def test_transforms_in_float32_go_through_float64(rewrite, split, golden_frames, assert_same, kind):
    path = split / "vehicle_pose" / f"{SEGMENT}.parquet"
    golden = pq.read_table(path)
    rewrite("vehicle_pose", lambda table: retyped(table, {POSE: kind}))
    found = list(read_segment(split, SEGMENT))
    wide = pa.array(
        [[float(np.float32(x)) for x in row] for row in golden.column(POSE).to_pylist()],
        pa.list_(pa.float64()),
    )
    pq.write_table(golden.set_column(golden.column_names.index(POSE), POSE, wide), path)
    assert_same(found, list(read_segment(split, SEGMENT)))  # nothing was differenced in float32
    for frame, other in zip(found, golden_frames):
        assert frame.pose.dtype == np.float64
        # the pose itself is rounded to 2 mm
        np.testing.assert_allclose(frame.points, other.points, rtol=0, atol=5e-3)


@pytest.mark.parametrize(
    "kind",
    [
        pa.int16(),
        pa.int32(),
        pa.int64(),
        pa.uint8(),
        pa.float64(),
        pa.dictionary(pa.int8(), pa.int8()),
    ],
)
def test_laser_names_may_be_any_whole_number(rewrite, unchanged, kind):
    for component in ("lidar", "lidar_pose", "lidar_calibration"):
        rewrite(component, lambda table: retyped(table, {LASER: kind}))
    unchanged()


@pytest.mark.parametrize(
    "kind", [pa.uint64(), pa.float64(), pa.dictionary(pa.int32(), pa.int64())], ids=str
)
def test_timestamps_may_be_any_whole_number(rewrite, unchanged, kind):
    for component in ("lidar", "lidar_pose", "vehicle_pose", "lidar_box"):
        rewrite(component, lambda table: retyped(table, {TIME: kind}))
    unchanged()


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.dictionary(pa.int8(), pa.string())], ids=str
)
def test_text_may_be_large_or_a_dictionary(rewrite, unchanged, kind):
    for component in COMPONENTS:
        names = {
            "key.segment_context_name": kind,
            **({OBJECT: kind} if component == "lidar_box" else {}),
        }
        rewrite(component, lambda table, names=names: retyped(table, names))
    unchanged()


@pytest.mark.parametrize("store_schema", [True, False])
def test_lists_may_be_large(rewrite, unchanged, store_schema):
    def enlarge(table):
        large = {}
        for field in table.schema:
            if pa.types.is_list(field.type) or pa.types.is_fixed_size_list(field.type):
                large[field.name] = pa.large_list(field.type.value_type)
        return retyped(table, large)

    for component in COMPONENTS:
        rewrite(component, enlarge, **({} if store_schema else {"store_schema": False}))
    unchanged()


@pytest.mark.parametrize("compliant", [True, False])
def test_elements_of_lists_may_have_any_name(rewrite, split, unchanged, compliant):
    for component in COMPONENTS:
        path = rewrite(component, use_compliant_nested_type=compliant, store_schema=False)
    unchanged()

    def renamed(table):
        lists = {
            f.name: pa.list_(pa.field("array_element", f.type.value_type))
            for f in table.schema
            if pa.types.is_list(f.type)
        }
        return retyped(table, lists)

    path = rewrite("lidar", renamed, use_compliant_nested_type=False, store_schema=False)
    assert "array_element" in str(pq.ParquetFile(path).schema)
    unchanged()


def test_range_images_may_be_float64(rewrite, unchanged):
    names = [f"[LiDARComponent].range_image_return{number}" for number in (1, 2)]
    doubles = {f"{name}.values": pa.list_(pa.float64()) for name in names}
    rewrite(
        "lidar",
        lambda table: retyped(
            table, {**doubles, **{f"{name}.shape": pa.list_(pa.int64()) for name in names}}
        ),
    )
    rewrite(
        "lidar_pose",
        lambda table: retyped(
            table, {"[LiDARPoseComponent].range_image_return1.values": pa.list_(pa.float64())}
        ),
    )
    unchanged()


def test_files_may_have_been_through_pandas(split, unchanged):
    """Lists of a fixed size become lists, int8 with nulls becomes float64 with NaN, and there is
    one more column.
    """
    for component in COMPONENTS:
        path = split / component / f"{SEGMENT}.parquet"
        frame = pq.read_table(path).to_pandas().set_index("index")
        pq.write_table(pa.Table.from_pandas(frame), path)
        if component == "lidar_box":
            assert str(frame[annotations.DIFFICULTY].dtype) == "float64"
            table = pa.Table.from_pandas(frame.reset_index(drop=True))  # and NaN that stays NaN
            raw = pa.array(frame[annotations.DIFFICULTY].to_numpy(), from_pandas=False)
            assert raw.null_count == 0 and pc.any(pc.is_nan(raw)).as_py()
            pq.write_table(
                table.set_column(
                    table.column_names.index(annotations.DIFFICULTY), annotations.DIFFICULTY, raw
                ),
                path,
            )
    unchanged()


def test_beam_tables_of_side_lasers_are_null_or_empty(edit, split, unchanged):
    path = split / "lidar_calibration" / f"{SEGMENT}.parquet"
    assert pq.read_table(path).column(BEAMS).null_count == 4
    edit("lidar_calibration", lambda rows: [{**row, BEAMS: row[BEAMS] or []} for row in rows])
    unchanged()


def test_pose_rows_of_other_lasers_are_passed_over(edit, unchanged):
    empty = dict.fromkeys(
        f"[LiDARPoseComponent].range_image_return1.{part}" for part in ("values", "shape")
    )
    edit(
        "lidar_pose",
        lambda rows: [*({**row, LASER: laser, **empty} for laser in (2, 5) for row in rows), *rows],
    )
    unchanged()


def test_speeds_may_be_null(rewrite, split, golden_frames):
    columns = annotations.SPEEDS

    def nulls(kind):
        def change(table):
            table = table.drop(list(columns))
            for name in columns:
                table = table.append_column(name, pa.nulls(table.num_rows, kind))
            return table

        return change

    for kind in (pa.float64(), pa.float32(), pa.null()):
        rewrite("lidar_box", nulls(kind))
        for frame, golden in zip(read_segment(split, SEGMENT), golden_frames):
            assert frame.labels.ids == golden.labels.ids and not frame.labels.velocity.any()


@pytest.mark.parametrize("kind", [pa.int8(), pa.float64(), pa.null()], ids=str)
def test_difficulty_may_be_null(rewrite, split, golden_frames, kind):
    name = annotations.DIFFICULTY
    rewrite(
        "lidar_box",
        lambda table: table.drop([name]).append_column(name, pa.nulls(table.num_rows, kind)),
    )
    for frame, golden in zip(read_segment(split, SEGMENT), golden_frames):
        assert frame.labels.ids == golden.labels.ids and frame.labels.difficulty.tolist() == [
            0
        ] * len(golden.labels.ids)


def test_boxes_may_be_empty(rewrite, split):
    for change in (lambda table: table.slice(0, 0), lambda table: table.schema.empty_table()):
        rewrite("lidar_box", change)
        assert [len(frame.labels.ids) for frame in read_segment(split, SEGMENT)] == [0, 0]
    testing = split.rename(split.with_name("testing"))
    assert [len(frame.labels.ids) for frame in read_segment(testing, SEGMENT)] == [0, 0]


def test_any_heading_is_legal(edit, split, golden_frames):
    name = BOX + "box.heading"
    edit("lidar_box", lambda rows: [{**row, name: row[name] + 4 * np.pi} for row in rows])
    for frame, golden in zip(read_segment(split, SEGMENT), golden_frames):
        np.testing.assert_allclose(frame.labels.boxes[:, 6], golden.labels.boxes[:, 6] + 4 * np.pi)


def test_a_struct_of_the_same_path_is_not_the_column(rewrite, split, unchanged):
    """Arrow would select ``{"key": {"laser_name": ...}}`` by the path ``key.laser_name``."""

    def nest(table):
        return table.drop([LASER]).append_column(
            "key", pa.array([{"laser_name": 1}] * table.num_rows)
        )

    path = rewrite("lidar_pose", nest)
    with pytest.raises(DataError, match=f"{path} has no column 'key.laser_name'"):
        list(read_segment(split, SEGMENT))


def test_rows_are_streamed(rewrite, monkeypatch, split):
    """In time order, one frame needs its own rows and no more, however large the row groups are."""
    taken = {}

    def counting(path, columns, batch_size):
        for row in rows(path, columns, batch_size):
            taken[path.parent.name] = taken.get(path.parent.name, 0) + 1
            yield row

    rows = reader_v2.iter_rows
    monkeypatch.setattr(reader_v2, "iter_rows", counting)
    for component in ("lidar", "lidar_pose"):
        rewrite(
            component,
            lambda table: table.sort_by([(TIME, "ascending"), (LASER, "descending")]),
            row_group_size=1000,
        )
    next(read_segment(split, SEGMENT))
    assert taken == {"lidar": 5, "lidar_pose": 1}
