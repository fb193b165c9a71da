"""Decoding of a centre head's raw maps into scored boxes (spec 5.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kdlib.config import CLASS_NAMES, GridConfig, HeadConfig
from kdlib.models.geometry.nms import rotated_nms
from kdlib.models.precision import wide
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
    """Return the detections of every frame, best first, of one output per head; suppression is
    across the classes of a head.

    Labels are positions in ``class_names``, whatever their order in the heads. Half-precision maps
    are widened first: 16 bits cannot place a box.

    Raises:
        ValueError: If the number of outputs is not the number of heads, or a head names an unknown
            class.
    """
    if len(outputs) != len(head.heads):
        raise ValueError(f"{len(outputs)} outputs for {len(head.heads)} heads")
    heads = [
        _decode_head(output, names, grid, head, class_names, nms)
        for output, names in zip(outputs, head.heads)
    ]
    return [_join(frame) for frame in zip(*heads)]


def _decode_head(
    output: HeadOutput,
    names: tuple[str, ...],
    grid: GridConfig,
    head: HeadConfig,
    class_names: tuple[str, ...],
    nms: bool,
) -> list[Detections]:
    settings = head.decode
    boxes, scores, channel = best_cells(output, grid, head)
    labels = channel.new_tensor([label_of(name, class_names) for name in names])[channel]
    limit, centre = boxes.new_tensor(settings.center_limit), boxes[..., :3]
    keep = (
        (centre >= limit[:3]).all(dim=2)
        & (centre <= limit[3:]).all(dim=2)
        & (scores > settings.score_threshold)
    )
    frames = []
    for number, inside in enumerate(keep):
        rows = inside.nonzero()[:, 0]
        if nms:
            own = (boxes[number, rows], scores[number, rows])
            rows = rows[rotated_nms(*own, settings.nms_iou, settings.nms_pre, settings.nms_post)]
        frames.append(Detections(boxes[number, rows], scores[number, rows], labels[number, rows]))
    return frames


def best_cells(
    output: HeadOutput, grid: GridConfig, head: HeadConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes (B, K, 7), scores (B, K) and channels (B, K) of the K most confident cells of
    all classes.
    """
    rows, columns = output.heatmap.shape[-2:]
    probability = wide(output.heatmap).sigmoid().flatten(1)
    scores, index = probability.topk(min(head.decode.max_objects, probability.shape[1]), dim=1)
    channel, cell = index // (rows * columns), index % (rows * columns)
    maps = wide(output.regression).flatten(2)
    values = maps.gather(2, cell[:, None].expand(-1, maps.shape[1], -1))
    x = ((cell % columns) + values[:, 0]) * head.stride * grid.voxel_size[0] + grid.point_range[0]
    y = ((cell // columns) + values[:, 1]) * head.stride * grid.voxel_size[1] + grid.point_range[1]
    heading = torch.atan2(values[:, 7], values[:, 6])
    return (
        torch.stack((x, y, values[:, 2], *values[:, 3:6].exp().unbind(1), heading), dim=2),
        scores,
        channel,
    )


def _join(heads: Sequence[Detections]) -> Detections:
    """Return the boxes of all heads of a frame as one list, best first."""
    scores, best = torch.cat([own.scores for own in heads]).sort(descending=True, stable=True)
    boxes, labels = (
        torch.cat([own.boxes for own in heads]),
        torch.cat([own.labels for own in heads]),
    )
    return Detections(boxes[best], scores, labels[best])
