"""A dataset of one's own from frames to an exported student: two own classes, another range, points
without intensity and elongation.
"""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from kdlib import zoo
from kdlib.config import (
    AugmentConfig,
    GridConfig,
    HeadConfig,
    LabelKDConfig,
    ModelConfig,
    ObjectSamplingConfig,
    PillarEncoderConfig,
    TrainConfig,
)
from kdlib.data.collate import collate
from kdlib.data.dataset import FrameDataset
from kdlib.data.own import own_frame, store_frames
from kdlib.data.prepare import prepare
from kdlib.data.store import Store, ground_truth_table
from kdlib.errors import ConfigError, DataError
from kdlib.lab.trained import TrainedWeights
from kdlib.metric.box_tables import predictions_table, write_predictions
from kdlib.metric.predict import predict
from kdlib.metric.waymo_metrics import evaluate_tables
from kdlib.models.build import build
from kdlib.models.weights import load_weights
from kdlib.simulate import simulate
from kdlib.tools.export.write import export_detector
from kdlib.tools.judge.evaluate import evaluate
from kdlib.tools.scans.view import view
from kdlib.training.job import TeacherSource, TrainJob
from kdlib.training.loop import train
from kdlib.types import Sample

PAIR = zoo.PAIRS["cp_pillar_demo_v0.64_sparsekd"]
CLASSES = ("Forklift", "Pallet")
BOXES = np.array(
    [[8.0, 2.0, 1.0, 2.5, 1.2, 2.0, 0.5], [14.0, -4.0, 0.4, 1.2, 1.0, 0.8, 0.0]], np.float64
)
SCHEDULE = TrainConfig(epochs=2, batch_size=2, interval=1, workers=0, checkpoint_steps=9, seed=5)
PASTING = replace(
    SCHEDULE, augment=AugmentConfig(objects=ObjectSamplingConfig(counts=(2, 2), min_points=1))
)


def cloud(seed: int) -> np.ndarray:
    """x, y, z of a floor and of both objects."""
    rng = np.random.default_rng(seed)
    floor = np.column_stack((rng.uniform((0, -10), (20, 10), (400, 2)), np.zeros(400)))
    objects = [box[:3] + rng.normal(0, 0.15, (30, 3)) for box in BOXES]
    return np.concatenate((floor, *objects))


def tiny(model: ModelConfig, features: int = 3) -> ModelConfig:
    """A demo model with eight channels everywhere, that looks ahead only."""
    size = model.grid.voxel_size
    return replace(
        model,
        name=f"own_{model.name}",
        grid=GridConfig((0.0, -10.24, -2.0, 20.48, 10.24, 4.0), size, model.grid.max_points),
        encoder=PillarEncoderConfig((8, 8), features),
        backbone=replace(
            model.backbone, layers=(1, 1, 1), filters=(8, 8, 8), upsample_filters=(8, 8, 8)
        ),
        head=HeadConfig(8, heads=(CLASSES,), decode=PAIR.student.head.decode),
        class_names=CLASSES,
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("own") / "store"
    for split in ("training", "validation"):
        frames = [
            own_frame(f"{split}_hall", number, cloud(number), BOXES, CLASSES, class_names=CLASSES)
            for number in range(4)
        ]
        store_frames(frames, out, split)
    return out


@pytest.fixture(scope="module")
def student(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a student that learned from a teacher, both of one's own classes."""
    runs = tmp_path_factory.mktemp("runs")
    teacher = TrainJob(tiny(PAIR.teacher), PASTING, str(store), name="teacher")
    weights = str(runs / "teacher" / "weights.safetensors")
    kd = replace(PAIR.kd, label=LabelKDConfig(thresholds=(0.1, 0.1)))
    source = TeacherSource(teacher.model, weights)
    own = TrainJob(tiny(PAIR.student), SCHEDULE, str(store), kd=kd, teacher=source, name="student")
    for name, job in (("teacher", teacher), ("student", own)):
        job.write(runs / name)
        train(runs / name)
    return runs / "student"


def detector(folder: Path):
    network = build(TrainJob.read(folder).model)
    load_weights(folder / "weights.safetensors", network)
    return network


def test_own_classes_train_distil_evaluate_and_export(
    store: Path, student: Path, tmp_path: Path
) -> None:
    model = TrainJob.read(student).model
    assert (model.class_names, model.encoder.point_features) == (CLASSES, 3)
    split = Store.open(store).split("validation")
    data = FrameDataset(split, CLASSES, point_range=model.grid.point_range)
    found = predict(detector(student), data, progress=False)
    truth = ground_truth_table(split, class_names=CLASSES)
    result = evaluate_tables(found, truth)
    assert {"OBJECT_TYPE_TYPE_FORKLIFT_LEVEL_2/APH", "LEVEL_2/mAPH"} <= set(result.metrics)
    assert result.card["settings"]["iou_thresholds"] == {"FORKLIFT": 0.5, "PALLET": 0.5}
    assert "mean of forklift, pallet" in result.table() and "forklift 0.5" in result.table()

    trained = TrainedWeights(model, student / "weights.safetensors")
    ending = ".onnx" if find_spec("onnxscript") else ".pt2"  # the second wants torch alone
    exported = export_detector(trained, tmp_path / f"student{ending}", frames=1)
    assert exported.card["class_names"] == list(CLASSES)
    assert exported.card["points"]["columns"] == ["x", "y", "z"]
    assert exported.card["inputs"][0]["shape"][-1] == 3 and exported.difference < 1e-4


@pytest.mark.long
def test_own_classes_are_viewed(student: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "scan.npy", cloud(9).astype(np.float32))
    seen = view(tmp_path / "scan.npy", str(student), score=0.0, out=tmp_path / "scan.png")
    assert set(seen.classes) <= set(CLASSES) and (tmp_path / "scan.png").is_file()


def test_perfect_boxes_of_own_classes_score_100_in_files(store: Path, tmp_path: Path) -> None:
    truth = ground_truth_table(Store.open(store).split("validation"), class_names=CLASSES)
    boxes = np.tile(BOXES, (4, 1))
    found = predictions_table(truth["frame_id"].to_pylist(), boxes, truth["type"], np.ones(8))
    with pytest.raises(DataError, match=r"1, 2, ... are Waymo's, but in .* Forklift, Pallet"):
        evaluate_tables(found, truth)
    facts = {"type_names": json.dumps(CLASSES)}
    paths = tmp_path / "found.parquet", tmp_path / "truth.parquet"
    for path, table in zip(paths, (found.replace_schema_metadata(facts), truth)):
        write_predictions(path, table)
    assert evaluate(*paths).result.metrics["LEVEL_1/mAP"] == pytest.approx(1)
    with pytest.raises(DataError, match="Waymo's op and leaderboard know Waymo's classes only"):
        evaluate(*paths, export=tmp_path / "o.bin")


@pytest.mark.parametrize("features", [3, 4, 5])
@pytest.mark.parametrize("name", ["cp_pillar_demo", "cp_voxel_demo", "pv_rcnn_pp_demo"])
def test_models_take_the_first_point_features(store: Path, name: str, features: int) -> None:
    data = FrameDataset(Store.open(store).split("training"), CLASSES)
    points, model = collate([data[0]]).points, zoo.model(name)
    model = replace(model, encoder=replace(model.encoder, point_features=features))
    network = build(model).eval()
    assert network.voxelize(points).features.shape[-1] == features
    other = replace(points, points=points.points.clone())
    other.points[:, features:] = 0.5  # what the model does not take
    with torch.inference_mode():
        ours, same = (network.detect(network(batch))[0] for batch in (points, other))
    assert torch.equal(ours.boxes, same.boxes)


def test_too_few_point_features_name_the_setting(store: Path) -> None:
    points = collate([Sample.unlabelled("one", cloud(0).astype(np.float32))]).points
    with pytest.raises(DataError, match="takes 4 features a point, the batch has 3; give 4, or"):
        build(tiny(PAIR.student, 4)).voxelize(points)


def test_features_no_point_has_are_refused() -> None:
    with pytest.raises(ConfigError, match="point_features is 6; points have 3"):
        tiny(PAIR.student, 6)


def test_a_model_of_other_classes_than_the_store_names_both(store: Path) -> None:
    split = Store.open(store).split("training")
    with pytest.raises(ConfigError, match=r"'Vehicle'.*the dataset's classes are Forklift, Pallet"):
        FrameDataset(split)


def test_a_store_of_own_classes_takes_no_others(store: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in store.rglob("*.json")}
    with pytest.raises(DataError, match=r"has the classes Vehicle, .* but .* has Forklift, Pallet"):
        store_frames([own_frame("training_hall", 0, cloud(0))], store)
    simulate(tmp_path, segments=1, frames=1, seed=3, scale="demo", workers=1, progress=False)
    with pytest.raises(DataError, match="holds frames of other classes"):
        prepare(tmp_path, store, workers=1, progress=False)
    assert before == {path: path.read_bytes() for path in store.rglob("*.json")}
    assert [path.name for path in (store / "training").iterdir() if path.is_dir()] == [
        "training_hall"
    ]
