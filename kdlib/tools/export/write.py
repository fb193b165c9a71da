"""Writes a trained detector as .onnx or .pt2 with a JSON beside it, once it agrees with the
original.
"""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdlib import records
from kdlib.config import TwoStageConfig
from kdlib.data.collate import collate
from kdlib.errors import ConfigError, KdlibError
from kdlib.lab.trained import TrainedWeights
from kdlib.models.detector import AnchorDetector, CenterPoint
from kdlib.profiling.sweep import simulated_sweeps
from kdlib.tools.export.card import export_card
from kdlib.tools.export.graph import Exportable, PillarGraph, export_graph, graph_inputs
from kdlib.tools.scans.trained import load_detector
from kdlib.types import Sample

_ENDINGS = (".onnx", ".pt2")
_OPSET = 18
# of a raw map; relative where a value exceeds 1: logits reach 200, whose last bit in float32 is
# 1.5e-5
TOLERANCE = 1e-4
_TRACES = ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node")
_NEEDED = ("onnx", "onnxscript")


class ExportError(KdlibError):
    """An export that cannot be made, or does not do what the original does."""


@dataclass(frozen=True)
class Exported:
    """What was written, and how it compares."""

    path: Path
    card: dict[str, Any]
    frames: int  # compared
    difference: float  # the largest of any raw map, relative where a value exceeds 1

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        compared = {
            "frames": self.frames,
            "largest difference": self.difference if self.frames else None,
        }
        return {
            "file": str(self.path),
            "bytes": self.path.stat().st_size,
            "compared": compared,
            **self.card,
        }

    def __str__(self) -> str:
        lines = [
            (
                f"{self.card['model']}, {self.card['part']}: {self.path} "
                f"({self.path.stat().st_size / 1e6:.1f} MB)"
            )
        ]
        for kind in ("inputs", "outputs"):
            tensors = (f"{tensor['name']} {tuple(tensor['shape'])}" for tensor in self.card[kind])
            lines.append(f"  {kind}: {', '.join(tensors)}")
        suppress = f"suppress them at IoU {self.card['decode']['nms_iou']:g}."
        lines.append(
            f"  {beside(self.path).name} says what they mean; boxes still overlap, {suppress}"
        )
        compared = (
            f"On {self.frames} simulated frames the file and the network differ by at "
            f"most {self.difference:.1e}."
        )
        return "\n".join(
            [*lines, compared if self.frames else ("Not compared with the network (--frames 0).")]
        )


def export_detector(trained: TrainedWeights, out: Path, frames: int = 2) -> Exported:
    """Write a detector's exportable part, and run it beside the network on simulated frames before
    anything is kept.

    ``out`` ends in ``.onnx`` or ``.pt2`` (a :class:`torch.export.ExportedProgram`); a ``.json`` of
    the same name goes beside it. With 0 frames nothing is compared.

    Raises:
        ConfigError: If the ending is another, or the detector has a second stage.
        ExportError: If a package is missing, or the file's answers differ from the network's by
            more than ``TOLERANCE``.
    """
    if out.suffix not in _ENDINGS:
        raise ConfigError(f"{out}: exports are {' or '.join(_ENDINGS)}, not '{out.suffix}'")
    if isinstance(trained.model, TwoStageConfig):
        raise ConfigError(
            f"'{trained.model.name}' has a second stage, which no exported graph "
            "can hold; export its student"
        )
    missing = [
        name for name in _NEEDED if out.suffix == ".onnx" and importlib.util.find_spec(name) is None
    ]
    if missing:
        raise ExportError(
            f"writing {out} needs {' and '.join(missing)}: pip install "
            f"{' '.join(_NEEDED)}, or export to .pt2"
        )
    detector = load_detector(trained)
    part = export_graph(detector)
    samples = simulated_sweeps(max(frames, 1), scale="demo")
    example = _inputs(detector, samples[0])
    with torch.inference_mode():
        facts = export_card(trained, part, example, part(*example.values()))
    content = (
        _onnx(part, example, facts) if out.suffix == ".onnx" else _program(part, example, facts)
    )
    difference = 0.0
    if frames and (out.suffix == ".pt2" or importlib.util.find_spec("onnxruntime") is not None):
        difference = largest_difference(detector, content, out.suffix, samples)
        if not difference <= TOLERANCE:
            by = (
                f"by {difference:.1e}, more than {TOLERANCE:g}"
                if np.isfinite(difference)
                else "by NaN or infinity"
            )
            raise ExportError(f"{out} would differ from the network {by}; nothing is written")
    else:
        frames = 0
    records.write_bytes(out, content)
    records.write_json(beside(out), facts)
    return Exported(out, facts, frames, difference)


def beside(path: Path) -> Path:
    """Return where an export's metadata lie."""
    return path.with_suffix(path.suffix + ".json")


def largest_difference(
    detector: CenterPoint | AnchorDetector, content: bytes, ending: str, samples: Sequence[Sample]
) -> float:
    """Return the largest difference between the maps of an exported file and of the network itself,
    relative above 1; NaN where one of them answers with NaN.

    The network's side is its own forward pass, not the part that was exported, so that the cut is
    judged too.
    """
    differences = [0.0]
    if ending == ".onnx":
        import onnxruntime  # type: ignore[import-untyped,unused-ignore]

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    else:
        program = torch.export.load(io.BytesIO(content)).module()
    for sample in samples:
        inputs = _inputs(detector, sample)
        with torch.inference_mode():
            heads = detector(collate([sample]).points).heads
            if ending == ".onnx":
                exported = session.run(
                    None, {name: value.numpy() for name, value in inputs.items()}
                )
            else:
                exported = program(*inputs.values())
            maps = [value for head in heads for value in vars(head).values()]
            assert len(maps) == len(exported) - 3  # then come the boxes
            for ours, theirs in zip(maps, map(torch.as_tensor, exported)):
                apart = (ours - theirs).abs() / theirs.abs().clamp(min=1)
                differences.append(float(apart.max()))
    # unlike Python's own, this maximum does not pass over NaN
    return float(np.max(differences))


def _inputs(detector: CenterPoint | AnchorDetector, sample: Sample) -> dict[str, Tensor]:
    with torch.inference_mode():
        inputs = graph_inputs(detector, detector.voxelize(collate([sample]).points))
    # tensors of inference mode cannot be traced
    return {name: value.clone() for name, value in inputs.items()}


def _shapes(part: Exportable) -> tuple[Any, ...]:
    """Return which sizes vary: the number of pillars, alike in all three inputs."""
    if not isinstance(part, PillarGraph):
        return (None,)
    pillars = torch.export.Dim("pillars", min=1, max=part.config.grid.max_voxels)
    return ({0: pillars},) * 3


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' remarks about themselves from the user."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _program(part: Exportable, example: dict[str, Tensor], facts: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    with _quiet(), torch.no_grad():
        program = torch.export.export(
            part, tuple(example.values()), dynamic_shapes=_shapes(part), strict=False
        )
        for node in program.graph.nodes:
            for name in _TRACES:  # they name folders of the machine that exported
                node.meta.pop(name, None)
        torch.export.save(program, buffer, extra_files={"kdlib.json": json.dumps(facts)})
    return buffer.getvalue()


def _onnx(part: Exportable, example: dict[str, Tensor], facts: dict[str, Any]) -> bytes:
    with _quiet():
        program = torch.onnx.export(
            part,
            tuple(example.values()),
            input_names=list(example),
            output_names=list(part.outputs),
            dynamo=True,
            opset_version=_OPSET,
            dynamic_shapes=_shapes(part),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in nodes:
            del node.metadata_props[:]
            node.doc_string = ""
    for key, value in (
        ("kdlib", json.dumps(facts)),
        ("class_names", ",".join(facts["class_names"])),
    ):
        model.metadata_props.add(key=key, value=value)
    return bytes(model.SerializeToString())
