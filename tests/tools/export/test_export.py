"""Exported detectors do what the network does, on five frames, in another runtime; and a user needs
nothing but the file.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kdlib import cli, zoo
from kdlib.config import ModelConfig
from kdlib.data.collate import collate
from kdlib.errors import ConfigError, DataError
from kdlib.lab.trained import TrainedWeights
from kdlib.models.build import build
from kdlib.models.detector import CenterPoint
from kdlib.models.weights import save_weights
from kdlib.profiling.sweep import simulated_sweeps
from kdlib.tools.export import write
from kdlib.tools.export.graph import export_graph, graph_inputs
from kdlib.tools.export.write import (
    TOLERANCE,
    ExportError,
    beside,
    export_detector,
    largest_difference,
)
from kdlib.tools.scans.trained import find_weights, load_detector
from kdlib.types import PointBatch, Sample

EXAMPLE = Path(__file__).with_name("run_exported.py")
SMALL = zoo.CP_PILLAR_DEMO
MODELS: dict[str, ModelConfig] = {
    "pillar student": zoo.CP_PILLAR_DEMO_V064,
    "pillars, two heads": replace(
        SMALL,
        name="two_heads",
        head=replace(SMALL.head, heads=(("Vehicle",), ("Cyclist", "Pedestrian"))),
    ),
    "voxel student": zoo.CP_VOXEL_DEMO_XS,
    "anchors": replace(
        zoo.POINTPILLAR,
        name="anchors",
        grid=SMALL.grid,
        encoder=SMALL.encoder,
        backbone=SMALL.backbone,
    ),
}

needs_onnx = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs onnx, onnxscript and onnxruntime: pip install onnx onnxscript onnxruntime",
)
ENDINGS = [pytest.param(".onnx", marks=needs_onnx), ".pt2"]


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return simulated_sweeps(5, seed=11, scale="demo")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped teacher as ONNX."""
    return export_detector(
        find_weights("cp_pillar_demo"), tmp_path_factory.mktemp("onnx") / "teacher.onnx", frames=0
    ).path


def trained(name: str, folder: Path) -> TrainedWeights:
    """A network whose statistics and weights are nobody's defaults."""
    torch.manual_seed(3)
    network = build(MODELS[name])
    for layer in network.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.uniform_(layer.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(layer.running_var, 0.5, 2.0)
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
            torch.nn.init.uniform_(layer.bias, -0.3, 0.3)
    save_weights(folder / "weights.safetensors", network, {"data": "random"})
    return TrainedWeights(MODELS[name], folder / "weights.safetensors", name)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("name", MODELS)
def test_five_frames_agree(name: str, ending: str, samples: list[Sample], tmp_path: Path) -> None:
    one = trained(name, tmp_path)
    done = export_detector(one, tmp_path / f"student{ending}", frames=1)
    assert done.frames == 1 and done.difference <= TOLERANCE
    assert (
        largest_difference(load_detector(one), done.path.read_bytes(), ending, samples)
        <= TOLERANCE
        == 1e-4
    )


@needs_onnx
def test_the_shipped_teacher_agrees(shipped: Path, samples: list[Sample]) -> None:
    assert (
        largest_difference(
            load_detector(find_weights("cp_pillar_demo")), shipped.read_bytes(), ".onnx", samples
        )
        <= TOLERANCE
    )


@pytest.mark.parametrize("name", MODELS)
def test_boxes_are_those_of_the_detector(name: str, samples: list[Sample], tmp_path: Path) -> None:
    network = load_detector(trained(name, tmp_path), score=0.0)
    part = export_graph(network)
    with torch.inference_mode():
        points = collate([samples[0]]).points
        wanted = network.detect(network(points), nms=False)[0]
        found = dict(
            zip(part.outputs, part(*graph_inputs(network, network.voxelize(points)).values()))
        )
    boxes, scores, labels = found["boxes"], found["scores"], found["labels"]
    if isinstance(network, CenterPoint):
        limit = torch.tensor(network.head.decode.center_limit)
        inside = ((boxes[:, :3] >= limit[:3]) & (boxes[:, :3] <= limit[3:])).all(dim=1)
        boxes, scores, labels = boxes[inside], scores[inside], labels[inside]
    torch.testing.assert_close(
        scores.sort(descending=True).values, wanted.scores, atol=1e-5, rtol=1e-4
    )
    # Scores that nearly tie may change places: boxes are compared with their nearest twin.
    first, second = (
        torch.cat((b, 100.0 * n[:, None]), dim=1)
        for b, n in ((wanted.boxes[:200], wanted.labels[:200]), (boxes, labels))
    )
    assert (
        float(
            torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")
            .min(dim=1)
            .values.max()
        )
        < 1e-3
    )


@pytest.mark.parametrize("ending", ENDINGS)
def test_any_number_of_pillars(ending: str, tmp_path: Path) -> None:
    one = trained("pillar student", tmp_path)
    done = export_detector(one, tmp_path / f"a{ending}", frames=0)
    rng = np.random.default_rng(1)
    few = [
        Sample(
            "few", rng.uniform(-9, 9, (count, 5)).astype(np.float32), np.zeros((0, 7)), np.zeros(0)
        )
        for count in (1, 2, 3000)
    ]
    # one pillar, overfull
    full = [Sample("full", np.full((200, 5), 0.3, np.float32), np.zeros((0, 7)), np.zeros(0))]
    assert (
        largest_difference(load_detector(one), done.path.read_bytes(), ending, few + full)
        <= TOLERANCE
    )


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_file_carries_its_card(ending: str, tmp_path: Path) -> None:
    done = export_detector(trained("voxel student", tmp_path), tmp_path / f"a{ending}", frames=1)
    card = json.loads(beside(done.path).read_text())
    if ending == ".onnx":
        import onnx

        model = onnx.load(str(done.path))
        onnx.checker.check_model(model)
        assert model.opset_import[0].version >= 17
        inner = {item.key: item.value for item in model.metadata_props}
        assert inner["class_names"] == "Vehicle,Pedestrian,Cyclist"
        carried = json.loads(inner["kdlib"])
    else:
        extra = {"kdlib.json": ""}
        torch.export.load(str(done.path), extra_files=extra)
        carried = json.loads(extra["kdlib.json"])
    assert carried == card == done.card
    assert card["class_names"] == list(zoo.CP_VOXEL_DEMO_XS.class_names) and card["weights"][
        "card"
    ] == {"data": "random"}
    assert card["grid"]["voxel_size"] == [0.12, 0.12, 0.15] and card["head"]["stride"] == 8
    assert [one["name"] for one in card["inputs"]] == ["bev"] and card["outputs"][-3][
        "name"
    ] == "boxes"
    root = str(Path(write.__file__).parents[3]).encode()
    assert root not in done.path.read_bytes(), "the file names a folder of this machine"


@needs_onnx
def test_the_example_needs_numpy_and_onnxruntime_only(
    shipped: Path, samples: list[Sample], tmp_path: Path
) -> None:
    np.save(tmp_path / "points.npy", samples[0].points)
    source = EXAMPLE.read_text()
    imported = {
        name.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import)
        for name in node.names
    }
    assert imported == {"json", "sys", "numpy", "onnxruntime"} and "kdlib" not in source.replace(
        '["kdlib"]', ""
    )
    assert len([line for line in source.splitlines() if line.strip()]) <= 40
    # -I and an empty folder: nothing of the project can be imported.
    command = [sys.executable, "-I", str(EXAMPLE), str(shipped), str(tmp_path / "points.npy")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    rows = [
        (line.split()[0], np.array(line.split()[1:], float)) for line in done.stdout.splitlines()
    ]
    assert rows
    network = load_detector(find_weights("cp_pillar_demo"), overlap=0.1)
    with torch.inference_mode():
        found = network.detect(network(collate([samples[0]]).points))[0]
    sure = found.scores >= 0.35
    for box, label in zip(found.boxes[sure].numpy(), found.labels[sure]):
        near = [row for row in rows if np.hypot(*(row[1][1:3] - box[:2])) < 1.0]
        assert any(kind == SMALL.class_names[int(label) - 1] for kind, _ in near), (
            "the detector's box is not in the example's list"
        )


def test_several_frames_at_once_are_refused() -> None:
    network = build(SMALL)
    points = torch.zeros(2, 5)
    with pytest.raises(ValueError, match="one frame at a time"):
        graph_inputs(
            network, network.voxelize(PointBatch(points, torch.tensor([0, 1]), 2, ("a", "b")))
        )


def test_what_is_refused_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = trained("pillar student", tmp_path)
    with pytest.raises(ConfigError, match=r"\.onnx or \.pt2, not '\.pb'"):
        export_detector(one, tmp_path / "a.pb")
    with pytest.raises(ConfigError, match="'pv_rcnn_pp_demo' has a second stage"):
        export_detector(replace(one, model=zoo.PV_RCNN_PP_DEMO), tmp_path / "a.pt2")
    with monkeypatch.context() as patch:
        patch.setattr(write, "_NEEDED", ("no_such_package",))
        with pytest.raises(
            ExportError,
            match=(r"needs no_such_package: pip install " r"no_such_package, or export to \.pt2"),
        ):
            export_detector(one, tmp_path / "a.onnx")
    monkeypatch.setattr(write, "largest_difference", lambda *rest: 0.5)
    with pytest.raises(ExportError, match="differ from the network by 5"):
        export_detector(one, tmp_path / "a.pt2")
    assert [file.name for file in tmp_path.iterdir()] == ["weights.safetensors"]


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "kdlib",
        "export",
        "cp_pillar_demo",
        "--out",
        str(tmp_path / "a.pt2"),
        "--frames",
        "1",
    ]
    for extra, words in ((["--json"], '"class_names"'), ([], "differ by at most")):
        monkeypatch.setattr(sys, "argv", arguments + extra)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code and words in capsys.readouterr().out
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.pt2", "a.pt2.json"]


def test_the_encoder_of_the_graph_is_the_networks(samples: list[Sample]) -> None:
    network = load_detector(find_weights("cp_pillar_demo"))
    assert isinstance(network, CenterPoint)
    voxels = network.voxelize(collate([samples[1]]).points)
    with torch.inference_mode():
        mine = export_graph(network).encode(voxels.features, voxels.num_points, voxels.coords)
        torch.testing.assert_close(mine, network.vfe(voxels), atol=1e-4, rtol=1e-5)


def test_an_answer_of_nan_fails_the_comparison(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's own max() passes over NaN: a file that answered nothing else counted as equal."""
    one, real = trained("pillar student", tmp_path), torch.export.load

    class Broken:
        def __init__(self, program: torch.export.ExportedProgram) -> None:
            self.program = program

        def module(self) -> Callable[..., list[Tensor]]:
            run = self.program.module()
            return lambda *inputs: [value.float() * torch.nan for value in run(*inputs)]

    monkeypatch.setattr(torch.export, "load", lambda stream: Broken(real(stream)))
    with pytest.raises(ExportError, match="would differ from the network by NaN or infinity"):
        export_detector(one, tmp_path / "student.pt2", frames=1)
    assert not (tmp_path / "student.pt2").exists()


def test_weights_of_nan_are_not_exported(tmp_path: Path) -> None:
    one = trained("pillar student", tmp_path)
    network = load_detector(one)
    next(network.parameters()).data.fill_(torch.nan)
    save_weights(one.weights, network, {})
    with pytest.raises(DataError, match=r"weights\.safetensors: \d+ numbers of .* are NaN"):
        export_detector(one, tmp_path / "student.pt2", frames=0)
