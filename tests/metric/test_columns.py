from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdlib.errors import DataError
from kdlib.metric import columns
from kdlib.metric.columns import TableFile, read_predictions, read_truth

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


def same(a, b):
    assert a.ids == b.ids and a.labelled == b.labelled
    for name in ("frame", "box", "kind"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert a.more.keys() == b.more.keys()
    for name, values in a.more.items():
        np.testing.assert_array_equal(values, b.more[name])


@pytest.mark.parametrize("read", [read_predictions, read_truth])
@pytest.mark.parametrize("encode", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_a_file_in_any_batches_is_the_table(read, encode, rows, tmp_path, monkeypatch):
    whole = read(table(), "t")
    assert [whole.ids[i] for i in whole.frame] == table()["frame_id"].to_pylist()
    written = table()
    if encode:
        written = written.set_column(0, "frame_id", written["frame_id"].dictionary_encode())
    pq.write_table(written, tmp_path / "t.parquet", row_group_size=4)
    monkeypatch.setattr(columns, "_ROWS", rows)
    same(whole, read(TableFile.open(tmp_path / "t.parquet", "t"), "t"))
    same(whole, read(written, "t"))


def test_integer_ids(tmp_path):
    numbered = table().set_column(0, "frame_id", pa.array(np.arange(10) // 3))
    pq.write_table(numbered, tmp_path / "t.parquet")
    found = read_predictions(TableFile.open(tmp_path / "t.parquet", "t"), "t")
    assert found.ids == [0, 1, 2, 3] and found.frame.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]


def test_values_of_other_rows_in_a_dictionary_are_no_frames():
    encoded = table().set_column(0, "frame_id", pa.DictionaryArray.from_arrays([1] * 10, ["phantom", "real"]))
    assert read_predictions(encoded, "t").ids == ["real"]


def test_a_row_without_a_box_only_names_its_frame():
    source = table(3)
    nulls = {
        name: pa.array([None, *source[name].to_pylist()[1:]], source.schema.field(name).type) for name in source.column_names[1:]
    }
    source = pa.table({"frame_id": ["a", "b", "b"], **nulls})
    found = read_truth(source, "t")
    assert found.ids == ["a", "b"] and found.labelled == {"b"} and len(found.box) == 2


def test_damage_found_while_reading_names_the_file(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(table(5000), path, compression="NONE", use_dictionary=False)
    file = TableFile.open(path, "predictions")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"predictions file '.*t.parquet' is no readable Parquet"):
        read_predictions(file, "t")


def test_no_rows():
    found = read_predictions(table(0), "t")
    assert found.ids == [] and found.box.shape == (0, 7) and found.box.dtype == np.float32
