from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from kdlib import zoo
from kdlib.data.dataset import FrameDataset
from kdlib.data.store import Store
from kdlib.errors import ConfigError
from kdlib.metric.loading import load_boxes
from kdlib.metric.predict import predict
from kdlib.models.build import build
from kdlib.tools.judge.leaderboard import export_objects
from kdlib.types import Detections, Sample


def samples(count=3):
    rng = np.random.default_rng(0)
    points = [
        rng.uniform((-20, -20, -1, 0, 0), (20, 20, 3, 1, 1), (400, 5)).astype(np.float32)
        for _ in range(count)
    ]
    return [
        Sample(f"seg_{i:03d}", p, np.zeros((0, 7), np.float32), np.zeros(0, np.int64))
        for i, p in enumerate(points)
    ]


class FixedDetector(torch.nn.Module):
    """Finds as many boxes as the frame's position in the batch, with labels and scores by
    position.
    """

    config = zoo.CP_PILLAR_DEMO

    def forward(self, points):
        assert torch.is_inference_mode_enabled() and not self.training
        return points

    def detect(self, prediction, nms=True):
        found = []
        for i in range(prediction.batch_size):
            k = torch.arange(i)
            found.append(
                Detections(torch.full((i, 7), 1.0) * (k[:, None] + 1), 1.0 / (k + 2.0), k % 3 + 1)
            )
        return found


def test_rows_follow_the_dataset_and_carry_waymo_types():
    table = predict(FixedDetector(), samples(4), batch_size=4, progress=False)
    assert table["frame_id"].to_pylist() == ["seg_001"] + ["seg_002"] * 2 + ["seg_003"] * 3
    assert table["type"].to_pylist() == [1, 1, 2, 1, 2, 4]
    assert table["score"].to_pylist()[-3:] == pytest.approx([1 / 2, 1 / 3, 1 / 4])
    assert table["length"].to_pylist()[-3:] == [1.0, 2.0, 3.0]
    assert json.loads(table.schema.metadata[b"frame_ids"]) == [f"seg_{i:03d}" for i in range(4)]


def test_a_frame_without_detections_has_no_row_but_is_named():
    table = predict(FixedDetector(), samples(2), batch_size=1, progress=False)
    assert table.num_rows == 0
    loaded = load_boxes(
        table,
        table.slice(0, 0).append_column("difficulty", [[]]).append_column("num_points", [[]]),
        strict=False,
    )
    assert loaded.frame_ids == ("seg_000", "seg_001")


def test_the_real_detector_is_deterministic_and_left_in_its_mode():
    torch.manual_seed(0)
    config = replace(
        zoo.CP_PILLAR_DEMO,
        head=replace(
            zoo.CP_PILLAR_DEMO.head,
            decode=replace(zoo.CP_PILLAR_DEMO.head.decode, score_threshold=0.0),
        ),
    )
    model = build(config).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, again = (predict(model, samples(2), batch_size=2, progress=False) for _ in range(2))
    assert first.equals(again) and first.num_rows > 0
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_bad_settings():
    with pytest.raises(ConfigError, match="batch_size"):
        predict(FixedDetector(), samples(), batch_size=0)
    model = FixedDetector()
    model.config = replace(
        zoo.CP_PILLAR_DEMO,
        class_names=("Vehicle", "Truck"),
        head=replace(zoo.CP_PILLAR_DEMO.head, heads=(("Vehicle", "Truck"),)),
    )
    types = predict(model, samples(), progress=False).schema.metadata[b"type_names"]
    assert json.loads(types) == ["Vehicle", "Truck"]


def test_the_table_of_a_store_names_what_the_leaderboard_needs(
    smoke_data, tmp_path, import_objects
):
    split = Store.open(next(smoke_data.rglob("store.json")).parent).split("validation")
    dataset = FrameDataset(split, zoo.CP_PILLAR_DEMO.class_names, interval=2)
    table = predict(FixedDetector(), dataset, batch_size=3, progress=False)
    export_objects(table, tmp_path / "o.bin")
    again = import_objects(tmp_path / "o.bin")
    place = {
        split.frame_id(n): (split.segments[split.segment_of[n]], int(split.timestamps[n]))
        for n in split.frames()
    }
    expected = [place[name] for name in table["frame_id"].to_pylist()]
    assert len(expected) >= 3
    assert (
        list(zip(again["context_name"].to_pylist(), again["frame_timestamp_micros"].to_pylist()))
        == expected
    )
