"""Raw head maps in, scored boxes per frame out (spec 5.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kdlib.config import GridConfig, HeadConfig
from kdlib.geometry.nms import rotated_nms
from kdlib.types import Detections, HeadOutput


def decode(outputs: Sequence[HeadOutput], *, grid: GridConfig, head: HeadConfig, nms: bool = True) -> list[Detections]:
    """Return the detections of every frame, best first within a head.

    Args:
        outputs: One per head; heatmaps are logits.
        grid: The model's grid.
        head: Its head's settings.
        nms: Whether to suppress overlapping boxes, across the classes of a head.

    Raises:
        ValueError: If the number of outputs is not the number of heads.
    """
    if len(outputs) != len(head.heads):
        raise ValueError(f"{len(outputs)} outputs for {len(head.heads)} heads")
    frames: list[list[Detections]] = [[] for _ in range(len(outputs[0].heatmap))]
    offset = 1
    for output, names in zip(outputs, head.heads):
        boxes, scores, labels = _best(output, grid, head)
        for b, found in enumerate(frames):
            found.append(_select(Detections(boxes[b], scores[b], labels[b] + offset), head, nms))
        offset += len(names)
    return [_join(found) for found in frames]


def _best(output: HeadOutput, grid: GridConfig, head: HeadConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes (B, K, 7), scores (B, K) and class positions (B, K) of the K most confident cells of all classes."""
    rows, columns = output.heatmap.shape[-2:]
    probability = output.heatmap.sigmoid().flatten(1)
    scores, index = probability.topk(min(head.decode.max_objects, probability.shape[1]), dim=1)
    label, cell = index // (rows * columns), index % (rows * columns)
    maps = output.regression.flatten(2)
    values = maps.gather(2, cell[:, None].expand(-1, maps.shape[1], -1))
    x = ((cell % columns) + values[:, 0]) * head.stride * grid.voxel_size[0] + grid.point_range[0]
    y = ((cell // columns) + values[:, 1]) * head.stride * grid.voxel_size[1] + grid.point_range[1]
    heading = torch.atan2(values[:, 7], values[:, 6])
    boxes = torch.stack((x, y, values[:, 2], *values[:, 3:6].exp().unbind(1), heading), dim=2)
    return boxes, scores, label


def _select(found: Detections, head: HeadConfig, nms: bool) -> Detections:
    settings = head.decode
    limit = found.boxes.new_tensor(settings.center_limit)
    centre = found.boxes[:, :3]
    keep = (centre >= limit[:3]).all(dim=1) & (centre <= limit[3:]).all(dim=1) & (found.scores > settings.score_threshold)
    index = keep.nonzero()[:, 0]
    if nms:
        picked = rotated_nms(found.boxes[index], found.scores[index], settings.nms_iou, settings.nms_pre, settings.nms_post)
        index = index[picked]
    return Detections(found.boxes[index], found.scores[index], found.labels[index])


def _join(found: list[Detections]) -> Detections:
    if len(found) == 1:
        return found[0]
    return Detections(
        torch.cat([d.boxes for d in found]), torch.cat([d.scores for d in found]), torch.cat([d.labels for d in found])
    )
