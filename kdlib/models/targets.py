"""Target assignment of centre heads: Gaussian heatmaps and regression targets (spec 5.1)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kdlib.config import CLASS_NAMES, GridConfig, HeadConfig
from kdlib.types import HeadTargets

_WIDEST = 1e6  # cells; what is wider is flat over any map


def gaussian_radius(length: Tensor, width: Tensor, overlap: float) -> Tensor:
    """Return how far (cells, float) a centre may move while a box keeps an IoU of ``overlap``; all
    shapes equal.

    The three roots are divided by 2, not by 2a, as in the original; trained weights depend on it.
    """
    total, area = length + width, length * width
    equations = (
        (total, 4 * (area * (1 - overlap) / (1 + overlap))),
        (2 * total, 16 * ((1 - overlap) * area)),
        (-2 * overlap * total, 16 * overlap * ((overlap - 1) * area)),
    )
    return torch.stack([(b + (b**2 - c).sqrt()) / 2 for b, c in equations]).amin(dim=0)


def gaussian(radius: int, reach: int | None = None) -> Tensor:
    """Return the bell (2 * reach + 1, 2 * reach + 1), float32, whose sigma is a sixth of its
    diameter and whose peak is 1.

    It ends ``radius`` cells from its centre; ``reach`` of them are wanted, at most (and by default)
    all.
    """
    diameter, half = 2 * radius + 1, radius if reach is None else min(radius, reach)
    offset = np.arange(-half, half + 1, dtype=np.float64)
    bell = np.exp(-(offset[:, None] ** 2 + offset[None, :] ** 2) / (2 * (diameter / 6) ** 2))
    bell[bell < np.finfo(np.float64).eps * bell.max()] = 0
    return torch.from_numpy(bell).float()


def label_of(name: str, class_names: tuple[str, ...]) -> int:
    """Return the label of a class, its 1-based position; raises ValueError if there is no such
    class.
    """
    if name not in class_names:
        raise ValueError(f"a head names the class '{name}', the model has {class_names}")
    return class_names.index(name) + 1


def check_labelled(boxes: Tensor, labels: Tensor) -> None:
    """Refuse, as a ValueError, what are not padded boxes of B frames and their labels."""
    if boxes.dim() != 3 or boxes.shape[-1] != 7 or labels.shape != boxes.shape[:2]:
        raise ValueError(
            f"need boxes (B, M, 7) and labels (B, M), not {tuple(boxes.shape)} and "
            f"{tuple(labels.shape)}"
        )


def assign_targets(
    boxes: Tensor,
    labels: Tensor,
    *,
    grid: GridConfig,
    head: HeadConfig,
    class_names: tuple[str, ...] = CLASS_NAMES,
) -> tuple[HeadTargets, ...]:
    """Return the targets of every head for boxes (B, M, 7) and labels (B, M), 1-based positions in
    ``class_names`` or 0.

    A head takes the boxes of its classes in their order; the k-th takes slot k, at most
    ``max_objects`` of them. A box that is not finite or has no volume keeps its slot, masked. A
    centre outside the map is moved to the border cell.

    Raises:
        ValueError: If the shapes do not fit, or a head names an unknown class.
    """
    check_labelled(boxes, labels)
    heads = []
    for names in head.heads:
        channels = torch.full_like(labels, -1)
        for channel, name in enumerate(names):
            channels[labels == label_of(name, class_names)] = channel
        heads.append(_one_head(boxes, channels, len(names), grid, head))
    return tuple(heads)


def _one_head(
    boxes: Tensor, channels: Tensor, classes: int, grid: GridConfig, head: HeadConfig
) -> HeadTargets:
    settings = head.targets
    columns, rows = (n // head.stride for n in grid.grid_size[:2])
    batch, slots = len(boxes), settings.max_objects
    mine = channels >= 0
    slot = mine.long().cumsum(dim=1) - 1
    frame, row = torch.nonzero(mine & (slot < slots), as_tuple=True)
    slot, channel, box = slot[frame, row], channels[frame, row], boxes[frame, row]
    solid = torch.isfinite(box).all(dim=1) & (box[:, 3:6] > 0).all(dim=1)
    frame, slot, channel, box = frame[solid], slot[solid], channel[solid], box[solid]

    x = _cells(box[:, 0] - grid.point_range[0], grid.voxel_size[0], head.stride).clamp(
        0, columns - 0.5
    )
    y = _cells(box[:, 1] - grid.point_range[1], grid.voxel_size[1], head.stride).clamp(
        0, rows - 0.5
    )
    ix, iy = x.long(), y.long()
    heading = box[:, 6]
    values = torch.stack(
        (x - ix, y - iy, box[:, 2], *box[:, 3:6].log().unbind(1), heading.cos(), heading.sin()),
        dim=1,
    )
    target = boxes.new_zeros((batch, slots, 8))
    indices = channels.new_zeros((batch, slots))
    mask = torch.zeros((batch, slots), dtype=torch.bool, device=boxes.device)
    target[frame, slot], indices[frame, slot], mask[frame, slot] = values, iy * columns + ix, True

    length = _cells(box[:, 3], grid.voxel_size[0], head.stride)
    width = _cells(box[:, 4], grid.voxel_size[1], head.stride)
    radius = gaussian_radius(length, width, settings.gaussian_overlap).nan_to_num(
        nan=_WIDEST, posinf=_WIDEST
    )
    radius = radius.clamp(max=_WIDEST).int().clamp(min=settings.min_radius)
    heatmap = boxes.new_zeros((batch, classes, rows, columns))
    _draw(heatmap, frame * classes + channel, ix, iy, radius)
    return HeadTargets(heatmap, target, indices, mask)


def _cells(metres: Tensor, size: float, stride: int) -> Tensor:
    # two divisions, in this order: float32 boundaries as in the original
    return metres / size / stride


def _draw(heatmap: Tensor, plane: Tensor, ix: Tensor, iy: Tensor, radius: Tensor) -> None:
    """Max-merge the bells into a fresh map (B, C, H, W), all boxes of one radius at a time (there
    are few radii).
    """
    rows, columns = heatmap.shape[-2:]
    flat = heatmap.view(-1)
    for size in radius.unique().tolist():
        chosen = radius == size
        # An untrained teacher's boxes may be kilometres long; of their bells only the map is drawn.
        reach = min(size, max(rows, columns))
        bell = gaussian(size, reach).to(heatmap)
        offset = torch.arange(-reach, reach + 1, device=heatmap.device)
        x = ix[chosen][:, None, None] + offset[None, None, :]
        y = iy[chosen][:, None, None] + offset[None, :, None]
        inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
        index = (plane[chosen][:, None, None] * rows + y) * columns + x
        flat.scatter_reduce_(0, index[inside], bell.expand(len(x), -1, -1)[inside], "amax")
