from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdlib.errors import DataError
from kdlib.metric import box_tables
from kdlib.metric.box_tables import TableFile
from kdlib.metric.loading import load_boxes

BOX = ("x", "y", "z", "length", "width", "height", "heading")


def table(count=10, seed=0):
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "frame_id": [f"s_{i:03d}" for i in rng.integers(0, 4, count)],
            **{name: rng.normal(size=count) for name in BOX},
            "type": rng.integers(1, 5, count),
            "score": rng.random(count),
            "overlap_nlz": rng.random(count) < 0.5,
            "difficulty": rng.integers(0, 3, count),
            "num_points": rng.integers(0, 9, count),
        }
    )


def load(source):
    """The boxes of one source on both sides, and its frame ids."""
    loaded = load_boxes(source, source, strict=False)
    return loaded.boxes.predictions, loaded.boxes.truth, loaded.frame_ids


def same(first, second):
    assert first[2] == second[2]
    for a, b in zip(first[:2], second[:2]):
        for name, values in vars(a).items():
            np.testing.assert_array_equal(values, vars(b)[name])


@pytest.mark.parametrize("encode", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_a_file_in_any_batches_is_the_table(encode, rows, tmp_path, monkeypatch):
    whole = load(table())
    assert [whole[2][i] for i in whole[0].frame] == sorted(table()["frame_id"].to_pylist())
    written = table()
    if encode:
        written = written.set_column(0, "frame_id", written["frame_id"].dictionary_encode())
    pq.write_table(written, tmp_path / "t.parquet", row_group_size=4)
    monkeypatch.setattr(box_tables, "_ROWS", rows)
    same(whole, load(TableFile.open(tmp_path / "t.parquet", "t")))
    same(whole, load(written))


def test_integer_ids(tmp_path):
    numbered = table().set_column(0, "frame_id", pa.array(np.arange(10) // 3))
    pq.write_table(numbered, tmp_path / "t.parquet")
    predictions, _, ids = load(TableFile.open(tmp_path / "t.parquet", "t"))
    assert ids == (0, 1, 2, 3) and predictions.frame.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]


def test_values_of_other_rows_in_a_dictionary_are_no_frames():
    encoded = table().set_column(
        0, "frame_id", pa.DictionaryArray.from_arrays([1] * 10, ["phantom", "real"])
    )
    assert load(encoded)[2] == ("real",)


def test_a_row_without_a_box_only_names_its_frame():
    source = table(3)
    source = source.set_column(
        source.column_names.index("num_points"), "num_points", pa.array([5, 5, 5])
    )
    nulls = {
        name: pa.array([None, *source[name].to_pylist()[1:]], source.schema.field(name).type)
        for name in source.column_names[1:]
    }
    loaded = load_boxes(
        table(1).slice(0, 0), pa.table({"frame_id": ["a", "b", "b"], **nulls}), strict=False
    )
    assert (
        loaded.frame_ids == ("a", "b")
        and loaded.boxes.truth.frame.tolist() == [1, 1]
        and loaded.without_points == 0
    )


def test_damage_found_while_reading_names_the_file(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(table(5000), path, compression="NONE", use_dictionary=False)
    file = TableFile.open(path, "predictions")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"predictions file '.*t.parquet' is no readable Parquet"):
        load(file)


def test_no_rows():
    predictions, _, ids = load(table(1).slice(0, 0))
    assert ids == () and predictions.box.shape == (0, 7) and predictions.box.dtype == np.float32
