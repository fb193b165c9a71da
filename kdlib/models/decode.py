"""Raw head maps in, scored boxes per frame out (spec 5.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kdlib.config import CLASS_NAMES, GridConfig, HeadConfig
from kdlib.models.geometry.nms import rotated_nms
from kdlib.models.targets import label_of
from kdlib.types import Detections, HeadOutput


def decode_maps(
    outputs: Sequence[HeadOutput],
    *,
    grid: GridConfig,
    head: HeadConfig,
    class_names: tuple[str, ...] = CLASS_NAMES,
    nms: bool = True,
) -> list[Detections]:
    """Return the detections of every frame, best first.

    Args:
        outputs: One per head; heatmaps are logits. Half-precision maps are widened first: 16 bits cannot place a box.
        grid: The model's grid.
        head: Its head's settings.
        class_names: The classes in order of their labels, whatever their order in the heads.
        nms: Whether to suppress overlapping boxes, across the classes of a head.

    Raises:
        ValueError: If the number of outputs is not the number of heads, or a head names an unknown class.
    """
    if len(outputs) != len(head.heads):
        raise ValueError(f"{len(outputs)} outputs for {len(head.heads)} heads")
    frames: list[list[Detections]] = [[] for _ in range(len(outputs[0].heatmap))]
    for output, names in zip(outputs, head.heads):
        boxes, scores, channel = _best(output, grid, head)
        labels = channel.new_tensor([label_of(name, class_names) for name in names])[channel]
        for b, found in enumerate(frames):
            found.append(_select(Detections(boxes[b], scores[b], labels[b]), head, nms))
    return [_join(found) for found in frames]


def _best(output: HeadOutput, grid: GridConfig, head: HeadConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes (B, K, 7), scores (B, K) and channels (B, K) of the K most confident cells of all classes."""
    rows, columns = output.heatmap.shape[-2:]
    probability = _wide(output.heatmap).sigmoid().flatten(1)
    scores, index = probability.topk(min(head.decode.max_objects, probability.shape[1]), dim=1)
    channel, cell = index // (rows * columns), index % (rows * columns)
    maps = _wide(output.regression).flatten(2)
    values = maps.gather(2, cell[:, None].expand(-1, maps.shape[1], -1))
    x = ((cell % columns) + values[:, 0]) * head.stride * grid.voxel_size[0] + grid.point_range[0]
    y = ((cell // columns) + values[:, 1]) * head.stride * grid.voxel_size[1] + grid.point_range[1]
    heading = torch.atan2(values[:, 7], values[:, 6])
    boxes = torch.stack((x, y, values[:, 2], *values[:, 3:6].exp().unbind(1), heading), dim=2)
    return boxes, scores, channel


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


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
    scores, best = torch.cat([d.scores for d in found]).sort(descending=True, stable=True)
    return Detections(torch.cat([d.boxes for d in found])[best], scores, torch.cat([d.labels for d in found])[best])
