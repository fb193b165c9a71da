from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from kdlib.errors import DataError
from kdlib.metric.box_tables import predictions_table, read_table, write_predictions
from kdlib.metric.loading import load_boxes
from kdlib.metric.waymo_metrics import evaluate_tables

BOX = ("x", "y", "z", "length", "width", "height", "heading")


def truth(count=4, ids=None):
    ids = [f"seg_{i // 2:03d}" for i in range(count)] if ids is None else ids
    return pa.table(
        {
            "frame_id": ids,
            **{
                name: np.linspace(1, 2, count) + 10 * np.arange(count) * (name == "x")
                for name in BOX
            },
            "type": np.full(count, 1),
            "difficulty": np.ones(count, np.int64),
            "num_points": np.full(count, 50),
            "speed_x": np.zeros(count),
            "speed_y": np.zeros(count),
        }
    )


def predictions(count=4, ids=None):
    table = truth(count, ids).drop(["difficulty", "num_points", "speed_x", "speed_y"])
    return table.append_column("score", pa.array(np.linspace(0.3, 0.9, count)))


def replaced(table, column, values):
    return table.set_column(table.column_names.index(column), column, pa.array(values))


def test_a_good_pair_loads():
    loaded = load_boxes(predictions(), truth())
    assert loaded.frame_ids == ("seg_000", "seg_001")
    assert loaded.boxes.truth.frame.tolist() == [0, 0, 1, 1]
    assert loaded.boxes.predictions.box.dtype == np.float32
    assert not loaded.boxes.predictions.overlap_nlz.any()


def test_boxes_are_sorted_by_frame_and_keep_their_order_within_one():
    ids = ["b_1", "a_1", "b_1", "a_1"]
    loaded = load_boxes(predictions(ids=ids), truth(ids=ids))
    assert loaded.frame_ids == ("a_1", "b_1")
    assert loaded.boxes.predictions.score.tolist() == pytest.approx([0.5, 0.9, 0.3, 0.7])


def test_ground_truth_is_normalised():
    table = truth(6)
    table = replaced(table, "num_points", [0, -1, None, 5, 6, 3])
    table = replaced(table, "difficulty", [1, 1, 1, 0, None, 1])
    loaded = load_boxes(predictions(), table)
    assert loaded.without_points == 3
    # five points unset, six unset, annotated
    assert loaded.boxes.truth.difficulty.tolist() == [2, 1, 1]


@pytest.mark.parametrize(
    "kind",
    [
        pa.int32(),
        pa.int64(),
        pa.string(),
        pa.large_string(),
        pa.dictionary(pa.int32(), pa.string()),
    ],
)
def test_frame_ids_of_any_type(kind):
    ids = [7, 7, 10, 10]
    values = ids if pa.types.is_integer(kind) else [str(i) for i in ids]
    first, second = (
        replaced(predictions(), "frame_id", values),
        replaced(truth(), "frame_id", values),
    )

    def cast(column):
        return column.dictionary_encode() if pa.types.is_dictionary(kind) else column.cast(kind)

    first = first.set_column(0, "frame_id", cast(first["frame_id"]))
    expected = (7, 10) if pa.types.is_integer(kind) else ("10", "7")
    assert load_boxes(first, second).frame_ids == expected
    assert (
        load_boxes(first, second.set_column(0, "frame_id", cast(second["frame_id"]))).frame_ids
        == expected
    )


def test_a_frame_without_boxes_may_be_predicted_on():
    found = predictions(5, ["seg_000", "seg_000", "seg_001", "seg_001", "seg_009"])
    named = truth().replace_schema_metadata(
        {"frame_ids": json.dumps(["seg_000", "seg_001", "seg_009"])}
    )
    empty = pa.concat_tables(
        [
            truth(),
            pa.table(
                {
                    n: pa.array(["seg_009"] if n == "frame_id" else [None], t)
                    for n, t in zip(truth().schema.names, truth().schema.types)
                }
            ),
        ]
    )
    for table in (named, empty):
        loaded = load_boxes(found, table)
        assert loaded.frame_ids == ("seg_000", "seg_001", "seg_009")
        assert len(loaded.boxes.truth.frame) == 4


def test_numpy_views_of_many_chunks():
    parts = pa.concat_tables([truth().slice(0, 1), truth().slice(1, 3)])
    assert load_boxes(predictions(), parts).boxes.truth.frame.tolist() == [0, 0, 1, 1]


BAD_PREDICTIONS = [
    (lambda t: t.drop(["score"]), "no column 'score'"),
    (lambda t: t.drop(["x", "width"]), "no column 'x', 'width'"),
    (
        lambda t: replaced(t, "frame_id", [None, "seg_000", "seg_000", "seg_001"]),
        "1 rows have no frame_id",
    ),
    (lambda t: replaced(t, "frame_id", [0, 0, 1, 1]), "frame_id is of type int64, but string"),
    (
        lambda t: replaced(t, "frame_id", ["seg_000", "seg_777", "seg_778", "seg_000"]),
        r"frame 'seg_777' \(and 1 more\) is not in",
    ),
    (
        lambda t: replaced(t, "frame_id", [0.0, 0.0, 1.0, 1.0]),
        ("column 'frame_id' is of type double, not a string or an integer"),
    ),
    (
        lambda t: replaced(t, "x", [1.0, float("nan"), 2.0, 3.0]),
        "frame 'seg_000' has x = nan; every box needs seven finite numbers",
    ),
    (
        lambda t: replaced(t, "heading", [1.0, 1.0, float("inf"), 3.0]),
        ("frame 'seg_001' has heading = inf"),
    ),
    (lambda t: replaced(t, "length", [1.0, 1.0, 1e300, 3.0]), "length = 1e"),
    (lambda t: replaced(t, "z", [1.0, None, 2.0, 3.0]), "1 rows have no 'z'"),
    (
        lambda t: replaced(t, "z", ["a", "b", "c", "d"]),
        ("column 'z' is of type string, not a number"),
    ),
    (lambda t: replaced(t, "type", [1, 2, 3, 5]), "type 5 is none of Waymo's"),
    (lambda t: replaced(t, "type", [1, 2, 3, -1]), "type -1 is none of Waymo's"),
    (
        lambda t: replaced(t, "type", [1.0, 2.0, 3.0, 1.0]),
        ("column 'type' is of type double, not an integer"),
    ),
    (
        lambda t: replaced(t, "score", [0.1, 0.2, 0.3, 1.5]),
        (r"score 1.5; scores lie in \[0, 1\], " r"so apply the sigmoid"),
    ),
    (lambda t: replaced(t, "score", [0.1, -0.2, 0.3, 0.5]), "score -0.2"),
    (lambda t: replaced(t, "score", [0.1, float("nan"), 0.3, 0.5]), "score nan"),
    (
        lambda t: t.append_column("overlap_nlz", pa.array([0, 1, 0, 1])),
        ("'overlap_nlz' is of type int64, not boolean"),
    ),
    (
        lambda t: t.replace_schema_metadata({"frame_ids": '["seg_000"]'}),
        ("frame 'seg_001' of .* was never predicted on"),
    ),
]
BAD_TRUTH = [
    (lambda t: t.drop(["num_points"]), "no column 'num_points'"),
    (lambda t: t.drop(["difficulty"]), "no column 'difficulty'"),
    (lambda t: replaced(t, "difficulty", [1, 2, 3, 1]), "difficulty 3 is none of"),
    (lambda t: replaced(t, "y", [1.0, float("nan"), 2.0, 3.0]), "y = nan"),
    (lambda t: replaced(t, "type", [1, 2, 3, 9]), "type 9"),
    (
        lambda t: replaced(t, "num_points", [0, 0, 0, -1]),
        ("all 4 ground-truth boxes have num_points <= 0"),
    ),
    (
        lambda t: t.slice(0, 0).replace_schema_metadata({"frame_ids": '["seg_000", "seg_001"]'}),
        "no ground-truth box at all",
    ),
    (lambda t: t.slice(0, 0), "the ground-truth table: no ground-truth box at all"),
]


@pytest.mark.parametrize(
    ("damage", "message"), BAD_PREDICTIONS, ids=[m for _, m in BAD_PREDICTIONS]
)
def test_bad_predictions_are_named(damage, message):
    with pytest.raises(DataError, match=message) as caught:
        evaluate_tables(damage(predictions()), truth())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("damage", "message"), BAD_TRUTH, ids=[m for _, m in BAD_TRUTH])
def test_bad_ground_truth_is_named(damage, message):
    with pytest.raises(DataError, match=message) as caught:
        evaluate_tables(predictions(), damage(truth()))
    assert "\n" not in str(caught.value)


def test_unknown_frames_count_as_false_positives_when_asked():
    found = predictions(ids=["seg_000", "seg_000", "seg_001", "elsewhere_003"])
    result = evaluate_tables(found, truth(), strict=False)
    assert result.card["frames"] == 3
    assert result.frames.counts.fp[0, 0, 0] == 1  # 'elsewhere_003' sorts first


def test_a_frame_with_too_many_pairs_is_refused(monkeypatch):
    monkeypatch.setattr("kdlib.metric.loading.MOST_PAIRS", 3)
    with pytest.raises(DataError, match="frame 'seg_000' has 4 pairs"):
        load_boxes(predictions(), truth())


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"predictions file .*none\.parquet. does not exist"):
        read_table(tmp_path / "none.parquet", "predictions")
    whole = tmp_path / "p.parquet"
    write_predictions(whole, predictions())
    for size in (0, 3, 100, whole.stat().st_size - 5):
        cut = tmp_path / "cut.parquet"
        cut.write_bytes(whole.read_bytes()[:size])
        with pytest.raises(DataError, match=r"cut\.parquet. is no readable Parquet") as caught:
            read_table(cut, "predictions")
        assert "\n" not in str(caught.value)


def test_writing_leaves_nothing_half_done(tmp_path, monkeypatch):
    target = tmp_path / "p.parquet"
    write_predictions(target, predictions())
    before = target.read_bytes()

    def full_disk(table, where):
        with open(where, "wb") as stream:
            stream.write(b"PAR1")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kdlib.metric.box_tables.pq.write_table", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_predictions(target, predictions(2))
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["p.parquet"]


def test_predictions_table_round_trip(tmp_path):
    boxes = np.arange(14, dtype=float).reshape(2, 7)
    table = predictions_table(
        ["a_0", "a_1"], boxes, np.array([1, 4]), np.array([0.5, 0.25]), frames=["a_0", "a_1", "a_2"]
    )
    write_predictions(tmp_path / "p.parquet", table)
    again = read_table(tmp_path / "p.parquet", "predictions")
    assert again.equals(table)
    assert json.loads(again.schema.metadata[b"frame_ids"]) == ["a_0", "a_1", "a_2"]
    empty = predictions_table([], np.zeros((0, 7)), np.zeros(0, int), np.zeros(0))
    assert empty.num_rows == 0 and empty.schema.names == table.schema.names
