"""kdlib's metric against Waymo's op on boxes drawn here and now; both in one run, the official one
in its own process.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from kdlib.metric.box_tables import predictions_table, write_predictions
from kdlib.metric.loading import load_boxes
from kdlib.metric.objects import EvalBoxes, Predictions, Truth
from kdlib.metric.waymo_metrics import evaluate_boxes, evaluate_loaded
from kdlib.tools.bench.crowd import crowd
from kdlib.tools.judge.evaluate import evaluate
from kdlib.tools.judge.leaderboard import export_objects
from kdlib.tools.judge.official import OfficialError, official_scores, run_child
from kdlib.tools.judge.side_by_side import METRIC_AGREEMENT, compare_with_official

SETS = 200
SIZES = np.array(
    ((1.0, 1.0, 1.0), (4.6, 2.0, 1.7), (0.9, 0.8, 1.75), (0.6, 0.1, 0.6), (1.8, 0.8, 1.7))
)


def draw(seed: int) -> EvalBoxes:
    """A set of one of eight kinds, by turns."""
    rng = np.random.default_rng([2026, seed])
    kind = (
        "plain",
        "crowded",
        "empty frames",
        "equal scores",
        "far",
        "duplicates",
        "no predictions",
        "no truth",
    )[seed % 8]
    frames = int(rng.integers(1, 7))
    truth_frame = np.sort(rng.integers(0, frames, rng.integers(1, 25 * frames)))
    if kind in ("empty frames", "no truth"):
        truth_frame = truth_frame[: 0 if kind == "no truth" else None : 3]
    types = rng.integers(1, 5, len(truth_frame))
    spread = {"crowded": 6.0, "far": 400.0}.get(kind, 60.0)
    truth = boxes(rng, types, spread)
    copies = rng.integers(0, len(truth), 2 * len(truth)) if len(truth) else np.zeros(0, np.int64)
    stray = rng.integers(1, 5, rng.integers(1, 20))
    found = np.concatenate((jittered(rng, truth[copies]), boxes(rng, stray, spread)))
    found_types = np.concatenate((types[copies], stray))
    found_frame = np.concatenate((truth_frame[copies], rng.integers(0, frames, len(stray))))
    wrong = rng.random(len(found)) < 0.05
    found_types[wrong] = rng.integers(0, 5, wrong.sum())
    score = rng.random(len(found))
    if kind == "equal scores":
        score = np.round(score, 1)
    if kind == "duplicates":  # the same box twice, and turned by half a circle
        twin = rng.integers(0, len(found), len(found) // 2)
        turned = (
            found[twin]
            + np.array((0, 0, 0, 0, 0, 0, np.pi)) * (rng.random(len(twin)) < 0.5)[:, None]
        )
        found, found_types = (
            np.concatenate((found, turned)),
            np.concatenate((found_types, found_types[twin])),
        )
        found_frame, score = (
            np.concatenate((found_frame, found_frame[twin])),
            np.concatenate((score, score[twin])),
        )
    if kind == "no predictions":
        found, found_types, found_frame, score = (
            found[:0],
            found_types[:0],
            found_frame[:0],
            score[:0],
        )
    order = np.argsort(found_frame, kind="stable")
    flag = rng.random(len(found)) < 0.1
    predictions = Predictions(
        found_frame, found.astype(np.float32), found_types, score.astype(np.float32), flag
    ).take(order)
    return EvalBoxes(
        predictions,
        Truth(truth_frame, truth.astype(np.float32), types, rng.integers(1, 3, len(types))),
        frames,
    )


def boxes(rng, types, spread):
    parts = (rng.uniform(-spread, spread, (len(types), 2)), rng.normal(1.0, 0.3, (len(types), 1)))
    sizes = SIZES[types] * rng.uniform(0.7, 1.4, (len(types), 3))
    return np.concatenate((*parts, sizes, rng.uniform(-7.0, 7.0, (len(types), 1))), axis=1)


def jittered(rng, box):
    """Near copies; every number moves, so that no two edges of unequal boxes lie on one line
    (metric spec section 3.4).
    """
    scale = np.array((0.15, 0.15, 0.1, 0.1, 0.05, 0.05, 0.1)) * rng.choice(
        (0.05, 1.0, 3.0), (len(box), 1)
    )
    return box + rng.normal(size=box.shape) * scale


def test_two_hundred_random_sets(official_python):
    scenes = [draw(seed) for seed in range(SETS)]
    judged = official_scores(scenes, python=official_python)
    worst, nonzero = 0.0, 0
    for scene, official in zip(scenes, judged):
        result = evaluate_boxes(scene, tuple(range(scene.frames)), ranges=True, keep_frames=False)
        assert len(official.metrics) == 64
        for name, value in official.metrics.items():
            worst = max(worst, abs(result.metrics[name] - value))
        nonzero += sum(value > 0 for value in official.metrics.values())
    assert worst <= METRIC_AGREEMENT
    assert nonzero > 5_000  # the sets are no trivial ones


def test_a_thousand_frames_faster_and_in_less_memory(official_python):
    """1,000 frames x 100 boxes x 200 predictions with ranges; the official op's figures are of the
    same run.
    """
    both = compare_with_official(crowd(1000, 100, 200), python=official_python)
    print("\n" + both.summary())
    assert both.agrees
    assert both.speedup >= 1.5
    assert both.ours.peak_bytes < both.official.peak_bytes


@pytest.fixture
def files(tmp_path):
    """A scene as the two Parquet files of the command line, with a frame without any box."""
    scene = crowd(30, 20, 40, seed=5)
    names = [f"1024360143612057520_3580_000_3600_000_{i:03d}" for i in range(31)]
    found, truth = scene.predictions, scene.truth
    flags = np.arange(len(found.kind)) % 9 == 0
    table = predictions_table(
        [names[i] for i in found.frame],
        found.box,
        found.kind,
        found.score,
        overlap_nlz=flags,
        frames=names,
    )
    times = [1_550_000_000_000_000 + 100_000 * i for i in range(31)]
    table = table.replace_schema_metadata(
        {**table.schema.metadata, "frame_timestamps": json.dumps(times)}
    )
    write_predictions(tmp_path / "p.parquet", table)
    labels = predictions_table(
        [names[i] for i in truth.frame],
        truth.box,
        truth.kind,
        np.ones(len(truth.kind)),
        frames=names,
    )
    labels = labels.append_column("difficulty", [truth.difficulty]).append_column(
        "num_points", [np.full(len(truth.kind), 9)]
    )
    write_predictions(tmp_path / "g.parquet", labels)
    return tmp_path / "p.parquet", tmp_path / "g.parquet", names, times


def test_evaluate_prints_both_and_exports(files, official_python, tmp_path):
    predictions, truth, *_ = files
    judged = evaluate(
        predictions,
        truth,
        official=True,
        python=official_python,
        export=tmp_path / "out.bin",
        workers=2,
    )
    assert judged.comparison.agrees and judged.exported == 1200
    assert judged.to_dict()["official"]["largest_difference"] <= METRIC_AGREEMENT
    assert "they agree" in judged.text() and "1,200 boxes written" in judged.text()
    for name, value in judged.comparison.ours.metrics.items():
        assert judged.result.metrics[name] == value


def test_exported_file_is_read_and_scored_alike(files, official_python, tmp_path):
    """The official package's own message class reads the file; what comes out scores exactly as
    what went in.
    """
    predictions, truth, names, times = files
    export_objects(pq.read_table(predictions), tmp_path / "out.bin")
    script = tmp_path / "read.py"
    script.write_text(READ)
    run_child(
        official_python,
        script,
        [str(tmp_path / "out.bin"), str(tmp_path / "read.npz")],
        timeout=300.0,
    )
    scene = load_boxes(*(pq.read_table(path) for path in (predictions, truth))).boxes
    with np.load(tmp_path / "read.npz") as read:
        found = scene.predictions
        np.testing.assert_array_equal(read["box"].astype(np.float32), found.box)
        np.testing.assert_array_equal(read["score"].astype(np.float32), found.score)
        np.testing.assert_array_equal(read["kind"], found.kind)
        np.testing.assert_array_equal(read["flag"], found.overlap_nlz)
        np.testing.assert_array_equal(read["time"], np.array(times)[found.frame])
        assert set(read["context"].tolist()) == {names[0].rpartition("_")[0]}
        frame = np.searchsorted(np.array(times), read["time"])
        again = Predictions(
            frame, read["box"].astype(np.float32), read["kind"], read["score"], read["flag"]
        )
    (before, after) = official_scores(
        [scene, replace(scene, predictions=again)], python=official_python
    )
    assert before.metrics == after.metrics


READ = """
import sys
import numpy as np
from waymo_open_dataset.protos import metrics_pb2
objects = metrics_pb2.Objects.FromString(open(sys.argv[1], "rb").read()).objects
b = [o.object.box for o in objects]
NAMES = ("center_x", "center_y", "center_z", "length", "width", "height", "heading")
np.savez(
    sys.argv[2],
    box=np.array([[getattr(x, name) for name in NAMES] for x in b]),
    score=np.array([o.score for o in objects], np.float32),
    kind=np.array([o.object.type for o in objects]),
    flag=np.array([o.overlap_with_nlz for o in objects]),
    time=np.array([o.frame_timestamp_micros for o in objects]),
    context=np.array([o.context_name for o in objects]),
)
"""


def test_sample_files_of_the_package_score_as_documented(shared, official_python, import_objects):
    found, truth = (
        import_objects(shared / "data" / f"fake_{name}.bin")
        for name in ("predictions", "ground_truths")
    )
    loaded = load_boxes(found, truth)
    (official,) = official_scores([loaded.boxes], python=official_python)
    ours = evaluate_loaded(loaded, all_classes=True)
    assert all(ours.metrics[name] == value for name, value in official.metrics.items())
    assert ours.metrics["LEVEL_2/mAPH"] == pytest.approx(0.085525, abs=1e-6)


def test_a_crash_of_the_official_tool_is_one_sentence(official_python):
    scene = crowd(1, 3, 3)
    broken = replace(scene.predictions, box=np.full((3, 7), np.nan, np.float32))
    with pytest.raises(
        OfficialError, match=(r"the official tool in .* (died of SIGABRT|failed " r"with)")
    ):
        official_scores([replace(scene, predictions=broken)], python=official_python)


def test_both_in_one_process():
    """Where kdlib runs in the official environment itself, both packages live in one
    interpreter.
    """
    ops = pytest.importorskip("waymo_open_dataset.metrics.ops.py_metrics_ops")
    from waymo_open_dataset import label_pb2
    from waymo_open_dataset.protos import metrics_pb2

    scene = draw(1)
    config = metrics_pb2.Config(
        breakdown_generator_ids=[2],
        difficulties=[
            metrics_pb2.Difficulty(levels=[label_pb2.Label.LEVEL_1, label_pb2.Label.LEVEL_2])
        ],
        matcher_type=metrics_pb2.MatcherProto.TYPE_HUNGARIAN,
        iou_thresholds=[0.0, 0.7, 0.5, 0.5, 0.5],
        box_type=label_pb2.Label.Box.TYPE_3D,
        score_cutoffs=[*(0.01 * i for i in range(100)), 1.0],
    )
    found, truth = scene.predictions, scene.truth
    ap, aph, *_ = ops.detection_metrics(
        prediction_bbox=found.box,
        prediction_type=found.kind.astype(np.uint8),
        prediction_score=found.score,
        prediction_frame_id=found.frame,
        prediction_overlap_nlz=found.overlap_nlz,
        ground_truth_bbox=truth.box,
        ground_truth_type=truth.kind.astype(np.uint8),
        ground_truth_frame_id=truth.frame,
        ground_truth_difficulty=truth.difficulty.astype(np.uint8),
        config=config.SerializeToString(),
    )
    result = evaluate_boxes(scene, tuple(range(scene.frames)), ranges=False)
    for i, name in enumerate(result.curves):
        assert result.metrics[f"{name}/AP"] == pytest.approx(float(ap[i]), abs=METRIC_AGREEMENT)
        assert result.metrics[f"{name}/APH"] == pytest.approx(float(aph[i]), abs=METRIC_AGREEMENT)
