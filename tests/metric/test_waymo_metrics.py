from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from kdlib.metric.bootstrap import bootstrap
from kdlib.metric.box_tables import predictions_table
from kdlib.metric.waymo_metrics import evaluate_boxes, evaluate_tables

GOLDENS = (
    "edge_few_scores edge_flipped edge_no_gt edge_no_pd edge_nothing edge_perfect stress1 "
    "stress2 stress3"
).split()


def columns_of(path):
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files if name != "configs_json"}
    names = {
        "prediction_frame": "pd_frame",
        "prediction_box": "pd_box",
        "prediction_type": "pd_type",
        "score": "pd_score",
        "overlap_nlz": "pd_nlz",
        "truth_frame": "gt_frame",
        "truth_box": "gt_box",
        "truth_type": "gt_type",
        "difficulty": "gt_difficulty",
    }
    return {name: arrays[stored] for name, stored in names.items()}, arrays


@pytest.fixture(scope="module")
def score(eval_boxes):
    def evaluate(columns, **options):
        boxes, ids = eval_boxes(**columns)
        return evaluate_boxes(boxes, tuple(ids.tolist()), **options)

    return evaluate


def check(result, official, config):
    for name, ap, aph in zip(
        official[f"{config}/names"], official[f"{config}/ap"], official[f"{config}/aph"]
    ):
        assert result.metrics[f"{name}/AP"] == ap, name  # to the last bit
        assert result.metrics[f"{name}/APH"] == aph, name
    assert set(result.curves) == set(official[f"{config}/names"].tolist())


def check_counts(result, official):
    counts = result.frames.counts
    for i, name in enumerate(official["main/names"]):
        breakdown = result.frames.breakdowns.index(name.rsplit("_LEVEL_", 1)[0])
        columns = (counts.tp, counts.fp, counts.fn(int(name[-1])))
        got = np.stack([c[:, breakdown].sum(axis=0, dtype=int) for c in columns], axis=1)
        np.testing.assert_array_equal(got, official["main/tp_fp_fn"][i], err_msg=name)


@pytest.mark.parametrize("name", GOLDENS)
def test_official_results(goldens, score, name):
    columns, official = columns_of(goldens / "metrics" / f"{name}.npz")
    check(score(columns, ranges=False), official, "openpcdet")
    result = score(columns, ranges=True)
    check(result, official, "main")
    check_counts(result, official)


def test_official_sample(shared, score):
    columns, official = columns_of(shared / "data" / "waymo_metric_sample.npz")
    result = score(columns)
    check(result, official, "main")
    check_counts(result, official)
    # nobody labelled a cyclist: the mean of all three counts that class as 0, the other does not
    all_three = score(columns, all_classes=True).metrics
    assert all_three["LEVEL_2/mAPH"] == pytest.approx(0.085525, abs=1e-6)
    assert all_three["LEVEL_1/mAP"] == pytest.approx(0.112980, abs=1e-6)
    assert result.metrics["LEVEL_2/mAPH"] == pytest.approx(1.5 * 0.085525, abs=2e-6)


def test_official_sample_from_raw_tables(shared):
    """The table path does the tool's own normalisation: no boxes without points, difficulty filled
    in.
    """
    _, official = columns_of(shared / "data" / "waymo_metric_sample.npz")
    truth = truth_table(
        official["raw_gt_frame"],
        official["raw_gt_box"],
        official["raw_gt_type"],
        official["raw_gt_difficulty"],
        official["raw_gt_num_points"],
    )
    found = prediction_table(
        official["pd_frame"], official["raw_pd_box"], official["pd_type"], official["pd_score"]
    )
    result = evaluate_tables(found, truth)
    check(result, official, "main")
    assert result.card["ground_truth_without_points"] == 105


@pytest.mark.parametrize("workers", [1, 2])
def test_tables_processes_and_frame_order_change_nothing(goldens, workers):
    columns, official = columns_of(goldens / "metrics" / "stress1.npz")
    rng = np.random.default_rng(0)
    found = prediction_table(
        *(
            columns[k]
            for k in (
                "prediction_frame",
                "prediction_box",
                "prediction_type",
                "score",
                "overlap_nlz",
            )
        )
    )
    truth = truth_table(
        *(columns[k] for k in ("truth_frame", "truth_box", "truth_type", "difficulty"))
    )
    # Frames are shuffled as blocks; the order inside a frame is part of the definition where
    # weights are equal.
    by_frame = [
        t.take(
            np.argsort(
                rng.permutation(2000)[np.unique(t["frame_id"], return_inverse=True)[1]],
                kind="stable",
            )
        )
        for t in (found, truth)
    ]
    result = evaluate_tables(*by_frame, workers=workers, strict=False)
    check(result, official, "main")


def street(frames=3):
    """One object of each type per frame and level, far from each other."""
    types = np.tile(np.repeat([1, 2, 3, 4], 2), frames)
    count = len(types)
    boxes = np.column_stack(
        (
            10.0 + 8 * (np.arange(count) % 8),
            np.zeros(count),
            np.ones(count),
            np.full((count, 3), (4.0, 2.0, 1.5)),
            np.linspace(-3, 3, count),
        )
    )
    ids = np.array([f"seg_{i:03d}" for i in np.repeat(np.arange(frames), 8)])
    return ids, boxes, types, np.tile([1, 2], count // 2)


def truth_table(ids, boxes, types, difficulty, points=None):
    names = ("x", "y", "z", "length", "width", "height", "heading")
    points = np.full(len(boxes), 100) if points is None else points
    return pa.table(
        {
            "frame_id": pa.array(np.asarray(ids).tolist()),
            **{
                name: pa.array(np.asarray(boxes)[:, i].astype(np.float64))
                for i, name in enumerate(names)
            },
            "type": pa.array(np.asarray(types).astype(np.int64)),
            "difficulty": pa.array(np.asarray(difficulty).astype(np.int64)),
            "num_points": pa.array(np.asarray(points).astype(np.int64)),
            "speed_x": pa.array(np.zeros(len(boxes))),
            "speed_y": pa.array(np.zeros(len(boxes))),
        }
    )


def prediction_table(ids, boxes, types, scores, nlz=None):
    table = truth_table(ids, boxes, types, types).drop(
        ["difficulty", "num_points", "speed_x", "speed_y"]
    )
    table = table.append_column("score", pa.array(np.asarray(scores).astype(np.float64)))
    return table if nlz is None else table.append_column("overlap_nlz", pa.array(nlz))


def test_perfect_predictions_are_one_flipped_ones_have_no_heading():
    ids, boxes, types, difficulty = street()
    truth = truth_table(ids, boxes, types, difficulty)
    flipped = boxes + np.array([0, 0, 0, 0, 0, 0, np.pi])
    perfect = evaluate_tables(
        prediction_table(ids, boxes, types, np.full(len(ids), 0.9)), truth, ranges=False
    )
    turned = evaluate_tables(
        prediction_table(ids, flipped, types, np.full(len(ids), 0.9)), truth, ranges=False
    )
    assert all(value == pytest.approx(1.0, abs=1e-6) for value in perfect.metrics.values())
    assert all(
        value == pytest.approx(float(name.endswith("AP")), abs=1e-6)
        for name, value in turned.metrics.items()
    )


def test_b16_no_predictions_are_zero():
    ids, boxes, types, difficulty = street()
    nothing = predictions_table([], np.zeros((0, 7)), np.zeros(0, int), np.zeros(0))
    result = evaluate_tables(nothing, truth_table(ids, boxes, types, difficulty))
    assert set(result.metrics.values()) == {0.0}
    assert result.card["frames"] == 3


def test_half_found_by_hand():
    """Two vehicles a frame, one found at score 0.9, one false alarm at score 0.4."""
    ids, boxes, types, difficulty = street(frames=4)
    vehicle = types == 1
    ids, boxes, types, difficulty = (
        ids[vehicle],
        boxes[vehicle],
        types[vehicle],
        difficulty[vehicle],
    )
    truth = truth_table(ids, boxes, types, difficulty)
    found = difficulty == 1
    alarm = boxes[found] + np.array([0, 40, 0, 0, 0, 0, 0])
    result = evaluate_tables(
        prediction_table(
            np.concatenate((ids[found], ids[found])),
            np.concatenate((boxes[found], alarm)),
            np.ones(8, int),
            [0.9] * 4 + [0.4] * 4,
        ),
        truth,
    )
    # Recall 1/2 at both levels' cutoffs up to 0.9; precision 1 above 0.4, which hides the 1/2
    # below.
    name = "OBJECT_TYPE_TYPE_VEHICLE_LEVEL"
    assert result.metrics[f"{name}_2/AP"] == pytest.approx(0.5)
    # LEVEL_2 boxes are no misses at LEVEL_1
    assert result.metrics[f"{name}_1/AP"] == pytest.approx(1.0)
    assert result.metrics["LEVEL_2/mAPH"] == pytest.approx(0.5), "of the one class with labels"
    curve = result.curves[f"{name}_2"]
    assert (
        curve.precision[40] == 0.5
        and curve.precision[41] == 1.0
        and curve.recall[90] == 0.5
        and curve.recall[91] == 0.0
    )


def test_result_is_a_flat_object_with_official_names_and_a_card():
    ids, boxes, types, difficulty = street()
    truth = truth_table(ids, boxes, types, difficulty)
    result = evaluate_tables(prediction_table(ids, boxes, types, np.full(len(ids), 0.5)), truth)
    plain = json.loads(json.dumps(result.to_dict()))
    assert len(plain) == 16 * 2 * 2 + 4
    for name in (
        "OBJECT_TYPE_TYPE_VEHICLE_LEVEL_2/APH",
        "RANGE_TYPE_VEHICLE_[0, 30)_LEVEL_1/AP",
        "LEVEL_2/mAPH",
        "LEVEL_1/mAP",
    ):
        assert isinstance(plain[name], float)
    card = json.loads(json.dumps(dict(result.card)))
    assert (
        card["frames"] == 3
        and card["ground_truth"]["VEHICLE"] == {"LEVEL_1": 3, "LEVEL_2": 3}
        and card["predictions"]["SIGN"] == 6
    )
    assert "RANGE_TYPE_CYCLIST_[50, +inf)" in result.table() and "100.00" in result.table()


def test_the_mean_is_over_labelled_classes_unless_all_are_asked_for():
    ids, boxes, types, difficulty = street()
    found = prediction_table(ids, boxes, types, np.full(len(ids), 0.5))
    for left_out, averaged in (((), 3), ((4,), 2), ((2, 4), 1)):
        there = ~np.isin(types, left_out)
        truth = truth_table(ids[there], boxes[there], types[there], difficulty[there])
        result, strict = (evaluate_tables(found, truth, all_classes=a) for a in (False, True))
        assert result.metrics["LEVEL_2/mAPH"] == pytest.approx(1, abs=1e-4)
        assert strict.metrics["LEVEL_2/mAPH"] == pytest.approx(averaged / 3, abs=1e-4)
        names = result.card["settings"]["mean_over"]
        assert len(names) == averaged and f"mean of {', '.join(names).lower()} " in result.table()
        assert len(strict.card["settings"]["mean_over"]) == 3
        of_classes = [name for name in result.metrics if "TYPE" in name]
        assert [result.metrics[n] for n in of_classes] == [strict.metrics[n] for n in of_classes]
        for scored in (result, strict):  # intervals are about the same mean
            report = bootstrap({"a": [scored]}, resamples=5)
            assert report.arm("a").mean == pytest.approx(scored.metrics["LEVEL_2/mAPH"], abs=1e-4)
