"""What metadata claim is held against the file; what Arrow itself reads in the same bytes is the reference."""

from __future__ import annotations

import io
import random
import struct
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdlib.waymo import pages
from kdlib.waymo.thrift import ThriftError, number, read_struct, structs

SEGMENT = "1234567890123456789_1000_000_1020_000"
COMPONENTS = ("lidar", "lidar_pose", "lidar_calibration", "vehicle_pose", "lidar_box", "stats", "lidar_camera_synced_box")


def metadata_of(content):
    return content[len(content) - 8 - struct.unpack("<I", content[-8:-4])[0] : -8]


def check(content, columns):
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        return pages.check(file, columns)


@pytest.fixture(params=COMPONENTS)
def content(golden_split, request):
    return (golden_split / request.param / f"{SEGMENT}.parquet").read_bytes()


def test_metadata_are_what_arrow_reads(content):
    raw = metadata_of(content)
    tree, end = read_struct(raw)
    arrow = pq.ParquetFile(io.BytesIO(content)).metadata
    assert end == len(raw) and number(tree, 3) == arrow.num_rows
    leaves = pages._leaves(structs(tree, 2))
    columns = [arrow.schema.column(place) for place in range(arrow.num_columns)]
    assert leaves == [(column.path, column.max_repetition_level > 0) for column in columns]
    for place, group in enumerate(structs(tree, 4)):
        assert number(group, 3) == arrow.row_group(place).num_rows
        for column, chunk in enumerate(structs(group, 1)):
            mine, theirs = chunk[3], arrow.row_group(place).column(column)
            assert ".".join(part.decode() for part in mine[3]) == theirs.path_in_schema
            names = ("num_values", "total_uncompressed_size", "total_compressed_size", "data_page_offset")
            assert [number(mine, field) for field in (5, 6, 7, 9)] == [getattr(theirs, name) for name in names]


def test_goldens_pass_and_tell_the_size_of_their_metadata(content):
    assert check(content, pq.ParquetFile(io.BytesIO(content)).schema_arrow.names) == len(metadata_of(content))


@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "brotli", "zstd", "lz4"])
@pytest.mark.parametrize("value", [0.0, -1.0])
def test_the_best_any_codec_can_do_is_believed(codec, value):
    """An image without a valid pixel shrinks to almost nothing."""
    images = pa.array([np.full(64 * 2650 * 4, value, np.float32)] * 3)
    for options in ({}, {"use_dictionary": False}, {"data_page_version": "2.0"}, {"data_page_size": 64 << 20}):
        sink = io.BytesIO()
        pq.write_table(pa.table({"image": images}), sink, compression=codec, **options)
        check(sink.getvalue(), ["image"])


def test_long_statistics_are_no_broken_header():
    sink = io.BytesIO()
    pq.write_table(pa.table({"name": ["x" * 3000, "y" * 3000]}), sink, compression="none")
    check(sink.getvalue(), ["name"])


def test_more_values_than_an_image_has_are_refused():
    """Run lengths make a few bytes into any number of values, and no size in the file tells."""
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": pa.array([np.zeros(5 << 20, np.float32)])}), sink)
    assert len(sink.getvalue()) < 10_000
    with pytest.raises(pages.PageError, match="claims 5242880 values in 1 rows"):
        check(sink.getvalue(), ["image"])


def test_metadata_cut_or_changed_anywhere_are_an_error_of_one_kind(content):
    raw, rng = metadata_of(content), random.Random(1)
    for size in rng.choices(range(len(raw) - 1), k=100):
        with pytest.raises((IndexError, ThriftError)):
            read_struct(raw[:size])
    for _ in range(200):
        place = rng.randrange(len(raw))
        broken = (
            content[: -8 - len(raw)] + raw[:place] + bytes([raw[place] ^ 1 << rng.randrange(8)]) + raw[place + 1 :] + content[-8:]
        )
        try:
            check(broken, ["key.segment_context_name"])
        except pages.PageError as error:
            assert str(error)
