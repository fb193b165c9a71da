from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from kdlib.errors import DataError
from kdlib.metric.box_tables import TIMESTAMPS, predictions_table
from kdlib.metric.waymo_metrics import evaluate_tables
from kdlib.tools.judge.leaderboard import export_objects, objects_message

SEGMENT = "1024360143612057520_3580_000_3600_000"


def table(count=3, metadata=True, **columns):
    ids = [f"{SEGMENT}_{i // 2:03d}" for i in range(count)]
    boxes = np.arange(7 * count, dtype=np.float64).reshape(count, 7)
    made = predictions_table(
        ids,
        boxes,
        np.arange(count) % 4 + 1,
        np.linspace(0.25, 0.75, count),
        frames=sorted(set(ids)),
    )
    for name, values in columns.items():
        place = made.column_names.index(name) if name in made.column_names else None
        made = (
            made.append_column(name, values)
            if place is None
            else made.set_column(place, name, values)
        )
    frames = json.loads(made.schema.metadata[b"frame_ids"])
    times = [1_550_000_000_000_000 + 100_000 * i for i in range(len(frames))]
    facts = {**made.schema.metadata, TIMESTAMPS: json.dumps(times)}
    return made.replace_schema_metadata(facts if metadata else {})


def test_bytes_are_those_of_the_official_message(tmp_path):
    """Written out by hand: tags are (number << 3) | wire type of metrics.proto and label.proto."""
    one = table(1).slice(0, 1)
    assert export_objects(one, tmp_path / "one.bin") == 1
    numbers = {1: 0.0, 2: 1.0, 3: 2.0, 5: 3.0, 4: 4.0, 6: 5.0, 7: 6.0}  # length is 5, width is 4
    box = b"".join(
        bytes([number << 3 | 1]) + np.float64(numbers[number]).tobytes()
        for number in sorted(numbers)
    )
    label = b"\x0a" + bytes([len(box)]) + box + b"\x18\x01"
    name = SEGMENT.encode()
    time = []
    value = 1_550_000_000_000_000
    while value:
        time.append(value & 0x7F | (0x80 if value > 0x7F else 0))
        value >>= 7
    item = (
        b"\x0a" + bytes([len(label)]) + label + b"\x15" + np.float32(0.25).tobytes() + b"\x18\x00"
    )
    item += b"\x22" + bytes([len(name)]) + name + b"\x28" + bytes(time)
    assert (tmp_path / "one.bin").read_bytes() == b"\x0a" + bytes([len(item)]) + item


def test_round_trip_across_batches(tmp_path, monkeypatch, import_objects):
    monkeypatch.setattr("kdlib.metric.box_tables._ROWS", 2)
    source = table(5, overlap_nlz=pa.array([True, False, None, True, False]))
    assert export_objects(source, tmp_path / "o.bin") == 5
    again = import_objects(tmp_path / "o.bin")
    for name in ("x", "y", "z", "length", "width", "height", "heading", "score", "type"):
        assert again[name].to_pylist() == source[name].to_pylist(), name
    assert again["overlap_nlz"].to_pylist() == [True, False, False, True, False]
    assert again["context_name"].to_pylist() == [SEGMENT] * 5
    assert np.diff(again["frame_timestamp_micros"].to_numpy()).tolist() == [0, 100_000, 0, 100_000]
    assert len(set(again["frame_id"].to_pylist())) == 3


def test_columns_of_ones_own_come_first(tmp_path, import_objects):
    times = pa.array([7, 8, 9], pa.int64())
    source = table(
        3, metadata=False, context_name=pa.array(["a", "b", "c"]), frame_timestamp_micros=times
    )
    export_objects(source, tmp_path / "o.bin")
    again = import_objects(tmp_path / "o.bin")
    assert again["context_name"].to_pylist() == ["a", "b", "c"]
    assert again["frame_timestamp_micros"].to_pylist() == [7, 8, 9]


def test_nothing_found_is_an_empty_message(tmp_path, import_objects):
    assert export_objects(table(3).slice(0, 0), tmp_path / "o.bin") == 0
    assert (tmp_path / "o.bin").read_bytes() == b""
    assert import_objects(tmp_path / "o.bin").num_rows == 0


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (table(metadata=False), "the time of every frame, but this table states 0 for 0 frames"),
        (
            table().replace_schema_metadata({"frame_ids": '["a"]', TIMESTAMPS: "[1]"}),
            "frame .* is not among the frame_ids",
        ),
        (
            table().replace_schema_metadata({"frame_ids": "nonsense", TIMESTAMPS: "[1]"}),
            "not a JSON list",
        ),
        (table(score=pa.array([0.1, 1.5, 0.2])), "has the score 1.5"),
        (table(type=pa.array([1, 9, 2])), "type 9 is none of Waymo's"),
        (table(x=pa.array([1.0, float("nan"), 2.0])), "has x = nan"),
        (table().drop(["score"]), "no column 'score'"),
        (
            table(
                context_name=pa.array(["a", None, "b"]), frame_timestamp_micros=pa.array([1, 2, 3])
            ),
            "no context_name",
        ),
    ],
)
def test_bad_tables_write_nothing(source, words, tmp_path):
    with pytest.raises(DataError, match=words):
        export_objects(source, tmp_path / "o.bin")
    assert not list(tmp_path.iterdir())


def test_unknown_fields_are_passed_over(tmp_path, import_objects):
    item = objects_message()()
    item.objects.add(context_name="c").object.box.length = 2.0
    # a no-label-zone object, field 2
    (tmp_path / "o.bin").write_bytes(item.SerializeToString() + b"\x12\x02\x0a\x00")
    again = import_objects(tmp_path / "o.bin")
    # unset: 1, as the official tool has it
    assert again["length"].to_pylist() == [2.0] and again["score"].to_pylist() == [1.0]


def test_sample_files_of_the_official_package(shared, import_objects):
    """Metric spec section 10."""
    found, truth = (
        import_objects(shared / "data" / f"fake_{name}.bin")
        for name in ("predictions", "ground_truths")
    )
    result = evaluate_tables(found, truth, all_classes=True)
    assert (found.num_rows, truth.num_rows) == (2263, 1010)
    expected = {
        "OBJECT_TYPE_TYPE_VEHICLE_LEVEL_1": (0.209682, 0.163540),
        "OBJECT_TYPE_TYPE_VEHICLE_LEVEL_2": (0.206809, 0.161230),
        "OBJECT_TYPE_TYPE_PEDESTRIAN_LEVEL_1": (0.129258, 0.098496),
        "OBJECT_TYPE_TYPE_PEDESTRIAN_LEVEL_2": (0.125136, 0.095344),
        "OBJECT_TYPE_TYPE_SIGN_LEVEL_1": (0.092628, 0.063594),
        "OBJECT_TYPE_TYPE_SIGN_LEVEL_2": (0.067927, 0.046635),
        "OBJECT_TYPE_TYPE_CYCLIST_LEVEL_2": (0.0, 0.0),
        "RANGE_TYPE_VEHICLE_[30, 50)_LEVEL_1": (0.276636, 0.233326),
    }
    for name, (ap, aph) in expected.items():
        assert result.metrics[f"{name}/AP"] == pytest.approx(ap, abs=1e-6), name
        assert result.metrics[f"{name}/APH"] == pytest.approx(aph, abs=1e-6), name
    assert result.metrics["LEVEL_2/mAPH"] == pytest.approx(0.085525, abs=1e-6)
