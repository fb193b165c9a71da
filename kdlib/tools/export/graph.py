"""The part of a detector that can be exported, from pillars (or, of voxel models, the BEV map) to
raw maps and scored boxes.

Cut where runtimes differ: gathering points into pillars is a dozen lines in any language and no
operator of ONNX, nor is the suppression of rotated boxes. What lies between is dense arithmetic,
one gather and one scatter. One frame at a time.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from kdlib.config import AnchorHeadConfig, HeadConfig, ModelConfig
from kdlib.models.anchor_head import AnchorHead
from kdlib.models.anchors import limit_period
from kdlib.models.decode import best_cells
from kdlib.models.detector import AnchorDetector, CenterPoint
from kdlib.models.geometry.boxes import wrap_angle
from kdlib.models.pillar_encoder import PillarEncoder, PillarLayer
from kdlib.models.targets import label_of
from kdlib.types import VoxelBatch

_CENTRE_MAPS, _ANCHOR_MAPS = (
    ("heatmap", "center", "center_z", "dim", "rot"),
    ("classes", "codes", "directions"),
)
_BOXES = ("boxes", "scores", "labels")


class Exportable(nn.Module):
    """A detector of one frame, tensors in and a tuple of tensors out; of the data, only the number
    of pillars decides a shape.
    """

    def __init__(self, detector: CenterPoint | AnchorDetector) -> None:
        """Take over the layers of a detector that is ready to detect."""
        super().__init__()
        self.backbone_2d, self.dense_head = detector.backbone_2d, detector.dense_head
        self.config: ModelConfig = detector.config
        names = _ANCHOR_MAPS if isinstance(detector, AnchorDetector) else _CENTRE_MAPS
        heads = len(self.config.head.heads) if isinstance(self.config.head, HeadConfig) else 1
        maps = [
            f"head{number}_{name}" if heads > 1 else name
            for number in range(heads)
            for name in names
        ]
        self.outputs: tuple[str, ...] = (*maps, *_BOXES)

    def answer(self, bev: Tensor) -> tuple[Tensor, ...]:
        """Return all outputs for the map (1, C, H, W) that enters the 2D backbone."""
        heads = self.dense_head(self.backbone_2d(bev))
        maps = [value for head in heads for value in vars(head).values()]
        boxes = _centre_boxes if isinstance(self.config.head, HeadConfig) else _anchor_boxes
        return (*maps, *boxes(heads, self))


class PillarGraph(Exportable):
    """The whole network of a pillar detector from its pillars on."""

    def __init__(self, detector: CenterPoint | AnchorDetector) -> None:
        """Take over a pillar detector."""
        super().__init__(detector)
        self.vfe = cast(PillarEncoder, detector.vfe)

    def forward(self, pillars: Tensor, num_points: Tensor, coords: Tensor) -> tuple[Tensor, ...]:
        """Return all outputs for pillars (V, P, C), their numbers of points (V,) and cells (V, 4):
        0, 0, row, column.
        """
        features = self.encode(pillars, num_points, coords)
        columns, rows, _ = self.config.grid.grid_size
        canvas = features.new_zeros((rows * columns, features.shape[1]))
        canvas = canvas.index_put((coords[:, 2] * columns + coords[:, 3],), features)
        return self.answer(canvas.view(1, rows, columns, -1).permute(0, 3, 1, 2))

    def encode(self, pillars: Tensor, num_points: Tensor, coords: Tensor) -> Tensor:
        """Return the features (V, C), every slot computed as the original does: empty ones are
        zeros and count in the maximum.
        """
        grid, place = self.config.grid, pillars[:, :, :3]
        mean = place.sum(dim=1, keepdim=True) / num_points[:, None, None].to(pillars.dtype)
        size, low = pillars.new_tensor(grid.voxel_size), pillars.new_tensor(grid.point_range[:3])
        centre = coords[:, [3, 2, 1]].to(pillars.dtype) * size + (size / 2 + low)
        rows = torch.cat((pillars, place - mean, place - centre[:, None]), dim=2)
        filled = torch.arange(pillars.shape[1], device=pillars.device)[None] < num_points[:, None]
        rows = rows * filled[:, :, None].to(rows.dtype)
        best = rows
        for layer in self.vfe.pfn_layers:
            slots = _slots(cast(PillarLayer, layer), rows)
            best = slots.amax(dim=1, keepdim=True)
            rows = torch.cat((slots, best.expand(-1, slots.shape[1], -1)), dim=2)
        return best[:, 0]


class DenseGraph(Exportable):
    """The 2D half of a voxel detector: the sparse 3D convolutions before it have no operator in
    ONNX.
    """

    def forward(self, bev: Tensor) -> tuple[Tensor, ...]:
        """Return all outputs for the map (1, C, H, W) that the 3D backbone leaves."""
        return self.answer(bev)


def _slots(layer: PillarLayer, rows: Tensor) -> Tensor:
    norm = layer.norm
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return torch.relu(layer.linear(rows) * scale + (norm.bias - norm.running_mean * scale))


def _centre_boxes(heads: Any, part: Exportable) -> tuple[Tensor, ...]:
    """Return the most confident boxes (K, 7), scores and labels of all heads, head by head, best
    first; nothing is suppressed.
    """
    config, parts = part.config, []
    head = cast(HeadConfig, config.head)
    for output, kinds in zip(heads, head.heads):
        boxes, scores, channel = best_cells(output, config.grid, head)
        labels = channel.new_tensor([label_of(kind, config.class_names) for kind in kinds])[channel]
        parts.append((boxes[0], scores[0], labels[0]))
    return tuple(torch.cat(values) for values in zip(*parts))


def _anchor_boxes(heads: Any, part: Exportable) -> tuple[Tensor, ...]:
    """Return the most confident boxes (K, 7), scores and labels, best first; nothing is
    suppressed.
    """
    (output,), head = heads, cast(AnchorHeadConfig, part.config.head)
    best, channel = output.classes[0].sigmoid().max(dim=1)
    scores, index = best.topk(min(head.decode.nms_pre, best.shape[0]))
    boxes = _decoded(output.codes[0][index], cast(AnchorHead, part.dense_head).anchors[index])
    half = output.directions[0][index].argmax(dim=1).to(boxes.dtype)
    heading = (
        limit_period(boxes[:, 6] - head.direction_offset, 0.0, math.pi)
        + head.direction_offset
        + math.pi * half
    )
    return (
        torch.cat((boxes[:, :6], wrap_angle(heading)[:, None]), dim=1),
        scores,
        channel[index] + 1,
    )


def _decoded(codes: Tensor, anchors: Tensor) -> Tensor:
    """Return what :func:`kdlib.models.anchors.decode_codes` does, without ``hypot``, which ONNX
    does not have.
    """
    diagonal = anchors[:, 3:5].square().sum(dim=1, keepdim=True).sqrt()
    scale = torch.cat((diagonal, diagonal, anchors[:, 5:6]), dim=1)
    size = codes[:, 3:6].exp() * anchors[:, 3:6]
    return torch.cat(
        (codes[:, :3] * scale + anchors[:, :3], size, codes[:, 6:7] + anchors[:, 6:7]), dim=1
    )


def export_graph(detector: CenterPoint | AnchorDetector) -> PillarGraph | DenseGraph:
    """Return the exportable part of a detector, in evaluation mode."""
    return (PillarGraph if isinstance(detector.vfe, PillarEncoder) else DenseGraph)(detector).eval()


def graph_inputs(detector: CenterPoint | AnchorDetector, voxels: VoxelBatch) -> dict[str, Tensor]:
    """Return what the exported part takes for one frame's pillars or voxels, by name.

    Raises:
        ValueError: If there is more than one frame.
    """
    if voxels.batch_size != 1:
        raise ValueError(f"exported detectors take one frame at a time, not {voxels.batch_size}")
    if isinstance(detector.vfe, PillarEncoder):
        return {
            "pillars": voxels.features,
            "num_points": voxels.num_points,
            "coords": voxels.coords,
        }
    return {"bev": detector.encode(voxels)[0].contiguous()}
