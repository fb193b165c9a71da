from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from kdlib import zoo
from kdlib.data.dataset import FrameDataset
from kdlib.data.prepare import prepare
from kdlib.data.store import Store, ground_truth_table
from kdlib.errors import DataError
from kdlib.metric.loading import check_trained_on, load_boxes
from kdlib.metric.predict import predict
from kdlib.metric.waymo_metrics import evaluate_tables
from kdlib.models.build import build
from kdlib.simulate import simulate

BOX = ("x", "y", "z", "length", "width", "height", "heading")
IDS = [f"seg_{i:03d}" for i in range(6)]


def truth(difficulty=0, points=50, **metadata):
    count = len(IDS)
    columns = {
        "frame_id": IDS,
        **{name: np.ones(count) for name in BOX},
        "type": np.full(count, 1),
        "difficulty": np.full(count, difficulty),
        "num_points": np.full(count, points),
    }
    return stating(pa.table(columns), **metadata)


def predictions(ids=IDS, score=0.5, **metadata):
    count = len(ids)
    columns = {
        "frame_id": pa.array(ids, pa.string()),
        **{name: np.ones(count) for name in BOX},
        "type": np.full(count, 1),
    }
    return stating(pa.table({**columns, "score": np.full(count, score)}), **metadata)


def stating(table, **metadata):
    return table.replace_schema_metadata(
        {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()} or None
    )


def refused(found, labelled, message):
    with pytest.raises(DataError, match=message) as caught:
        evaluate_tables(found, labelled)
    assert "\n" not in str(caught.value)


def test_labels_without_any_level_are_no_release():
    refused(
        predictions(),
        truth(0, 0),
        ("none of the 6 boxes has a difficulty or a number of points.*v1.2"),
    )
    refused(predictions(), truth(1, 0), "all 6 ground-truth boxes have num_points <= 0")
    assert evaluate_tables(predictions(), truth(0, 50)).metrics[
        "OBJECT_TYPE_TYPE_VEHICLE_LEVEL_2/AP"
    ] == pytest.approx(1)


def test_leniency_takes_labels_as_they_are():
    assert load_boxes(predictions(), truth(0, 0), strict=False).without_points == 6


def test_fingerprints_must_agree_where_both_are_known():
    refused(
        predictions(dataset="aaaa"),
        truth(dataset="bbbb"),
        ("predicted on dataset aaaa, but .* is of dataset bbbb; take both"),
    )
    for ours, theirs in (("aaaa", "aaaa"), ("aaaa", ""), ("", "bbbb")):
        load_boxes(predictions(dataset=ours), truth(dataset=theirs))
    load_boxes(predictions(dataset="aaaa"), truth(dataset="bbbb"), strict=False)


def test_a_run_is_scored_on_the_store_it_was_trained_with():
    with pytest.raises(
        DataError,
        match=(
            "students/a: trained on dataset aaaa, but the run's store now holds bbbb; train again"
        ),
    ):
        check_trained_on("aaaa", "bbbb", "students/a")
    for trained, present in (("aaaa", "aaaa"), ("", "bbbb"), ("aaaa", "")):
        check_trained_on(trained, present, "students/a")


def test_classes_must_agree_in_any_order():
    both, one = ["Vehicle", "Cyclist"], ["Vehicle"]
    refused(
        predictions(class_names=one),
        truth(class_names=both),
        ("the model knows Vehicle, but .* holds Vehicle, Cyclist; make the"),
    )
    refused(predictions(class_names=both), truth(class_names=one), "knows Vehicle, Cyclist, but")
    load_boxes(predictions(class_names=both), truth(class_names=both[::-1]))
    load_boxes(predictions(class_names=both), truth())


def test_b16_half_the_frames_is_an_error_with_counts():
    half = IDS[:3]
    refused(
        predictions(half, frame_ids=half),
        truth(),
        (r"frame 'seg_003' \(and 2 more\) .*never " r"predicted on, 3 of its 6 frames"),
    )
    refused(
        predictions(half),
        truth(),
        ("only 3 of the 6 frames with boxes in .* have a prediction; .*'frame_ids'"),
    )
    load_boxes(predictions(half, frame_ids=IDS), truth())  # the detector looked and found nothing
    load_boxes(predictions(IDS[:4]), truth())
    load_boxes(predictions([]), truth())


def test_frames_without_boxes_do_not_count_as_omitted():
    empty = [f"empty_{i}" for i in range(20)]
    load_boxes(predictions(IDS[:4]), truth(frame_ids=IDS + empty))


@pytest.mark.parametrize("text", ["seg_000", '{"a": 1}', "[1, "])
def test_damaged_metadata_is_named(text):
    refused(predictions(frame_ids=text), truth(), "metadata 'frame_ids' is .* not a JSON list")


@pytest.mark.parametrize(
    ("score", "message"),
    [(1.5, "score 1.5; scores lie in"), (-0.1, "score -0.1"), (float("nan"), "score nan")],
)
def test_scores_are_probabilities(score, message):
    refused(predictions(score=score), truth(), message)


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    """The validation splits of two stores that differ in everything but size."""
    root = tmp_path_factory.mktemp("data")
    found = []
    for seed in (1, 2):
        simulate(
            root / f"waymo{seed}", 1, 2, seed, "demo", split="validation", workers=1, progress=False
        )
        prepare(root / f"waymo{seed}", root / f"store{seed}", ("validation",), progress=False)
        found.append(Store.open(root / f"store{seed}").split("validation"))
    return found


def test_tables_made_here_say_where_they_come_from(splits, tmp_path):
    model = zoo.CP_PILLAR_DEMO
    data = FrameDataset(splits[0], model.class_names, point_range=model.grid.point_range)
    found = predict(build(model), data, progress=False)
    own, other = (ground_truth_table(split, class_names=model.class_names) for split in splits)
    load_boxes(found, own)
    refused(
        found,
        other,
        (
            f"predicted on dataset {splits[0].fingerprint}, but .* is of dataset "
            f"{splits[1].fingerprint}"
        ),
    )
    refused(
        found,
        ground_truth_table(splits[0], class_names=("Vehicle",)),
        ("the model knows Vehicle, Pedestrian, Cyclist"),
    )
