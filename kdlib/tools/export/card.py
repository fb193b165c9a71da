"""Writes down all that somebody who has only an exported file must know about its detector, as one
JSON object.
"""

from __future__ import annotations

from typing import Any

import torch

from kdlib import __version__
from kdlib.config import AnchorHeadConfig, to_dict
from kdlib.lab.trained import TrainedWeights
from kdlib.models.weights import read_card
from kdlib.records import sha256
from kdlib.tools.export.graph import Exportable, PillarGraph

_POINTS = {
    "frame": "metres; x forward, y left, z up; the road at z = 0",
    "columns": ["x", "y", "z", "tanh(intensity)", "elongation"],  # as many as the model takes
}
_MEANINGS = {
    "pillars": "the points of every pillar with any, the first max_points of each, the rest zeros",
    "num_points": "how many of a pillar's slots hold points, at least 1",
    "coords": (
        "0, 0, row, column of the pillar: floor((y - y_min) / size_y), floor((x - x_min) / "
        "size_x); no pillar twice"
    ),
    "bev": (
        "what the sparse 3D backbone leaves, channel = c * depth + level: kdlib's Detector.encode"
    ),
    "heatmap": "logits of the classes of this head",
    "center": "sub-cell offset x, y",
    "center_z": "metres",
    "dim": "log of length, width, height in metres",
    "rot": "cosine, sine of the heading",
    "classes": "logits of every anchor",
    "codes": "box codes relative to the anchors",
    "directions": "logits of the two halves of the circle",
    "boxes": (
        "x, y, z of the centre, length, width, height, heading (radians, counter-clockwise "
        "from x); nothing is suppressed"
    ),
    "scores": "best first within a head",
    "labels": "1-based positions in class_names",
}


def export_card(
    trained: TrainedWeights,
    part: Exportable,
    inputs: dict[str, torch.Tensor],
    outputs: tuple[torch.Tensor, ...],
) -> dict[str, Any]:
    """Return the metadata of an export: classes, grid, tensors, head, decoding, and where the
    weights come from.
    """
    config, pillars = part.config, isinstance(part, PillarGraph)
    head = to_dict(config.head)
    decoding = head.pop("decode")
    return {
        "format": 1,
        "kdlib": __version__,
        "torch": torch.__version__,
        "model": config.name,
        "part": "pillars to boxes" if pillars else "BEV map to boxes",
        "class_names": list(config.class_names),
        "points": {**_POINTS, "columns": _POINTS["columns"][: config.encoder.point_features]},
        "grid": {**to_dict(config.grid), "grid_size": list(config.grid.grid_size)},
        "inputs": [_tensor(name, value, pillars) for name, value in inputs.items()],
        "outputs": [_tensor(name, value, False) for name, value in zip(part.outputs, outputs)],
        "head": {
            "kind": "anchors" if isinstance(config.head, AnchorHeadConfig) else "centres",
            **head,
        },
        "decode": decoding,
        "weights": {"sha256": sha256(trained.weights), "card": read_card(trained.weights)},
    }


def _tensor(name: str, value: torch.Tensor, dynamic: bool) -> dict[str, Any]:
    shape = ["V" if dynamic else value.shape[0], *value.shape[1:]]
    # head0_rot: of the first head
    meaning = _MEANINGS[name.partition("_")[2] if name.startswith("head") else name]
    return {
        "name": name,
        "type": str(value.dtype).removeprefix("torch."),
        "shape": shape,
        "meaning": meaning,
    }
