"""GID's general instances: cells inside the boxes about which both networks disagree most."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib.kd.roi_grid import Region
from kdlib.models.geometry.boxes import points_in_boxes
from kdlib.models.geometry.nms import rotated_nms
from kdlib.models.losses.box_regression import gather_codes
from kdlib.models.precision import wide
from kdlib.types import HeadOutput

OVERLAP = 0.3  # bird's-eye IoU above which two boxes are one instance, as in the paper
CANDIDATES = 100  # cells looked at for each instance kept: a long vehicle covers some tens of them


@torch.no_grad()
def instance_cells(
    ours: Tensor,
    theirs: Tensor,
    student: HeadOutput,
    teacher: HeadOutput,
    count: int,
    region: Region,
) -> Tensor:
    """Return which cells (B, H, W), 1 or 0, lie in the boxes about which student and teacher
    disagree most.

    A cell's score is ``max_c |t - s|`` of the two confidences, its box that of the more confident
    network (the teacher's if they are level), read where the cell's centre lies on that network's
    own map. Boxes are suppressed by score above a bird's-eye IoU of 0.3 and the ``count`` best of a
    frame and head kept. The cell a kept box stands for is always in, so that a pedestrian between
    four cell centres is not lost. Where the two agree everywhere there is no instance.

    ``ours`` and ``theirs`` are probabilities (B, C, H, W) on the grid where the maps meet,
    ``student`` and ``teacher`` the raw maps on their own grids; all span the metres of ``region``.

    Source: GID (Dai et al., CVPR 2021), general instance selection; here the boxes' cells take the
    place of its anchors.
    """
    height, width = ours.shape[-2:]
    centres = cell_centres(height, width, region, like=ours)
    score, cell = (
        (theirs - ours)
        .abs()
        .amax(dim=1)
        .flatten(1)
        .topk(min(CANDIDATES * count, height * width), dim=1)
    )
    better = (theirs.amax(dim=1) >= ours.amax(dim=1)).flatten(1).gather(1, cell)
    places = centres[cell]
    boxes = torch.where(
        better[..., None], boxes_at(teacher, places, region), boxes_at(student, places, region)
    )
    usable = (score > 0) & boxes.isfinite().all(dim=-1)
    inside = ours.new_zeros((len(ours), height * width))
    for frame in range(len(ours)):
        mine = usable[frame].nonzero()[:, 0]
        kept = mine[rotated_nms(boxes[frame, mine], score[frame, mine], OVERLAP, len(mine), count)]
        inside[frame] = _inside(centres, boxes[frame, kept]).to(inside.dtype)
        inside[frame, cell[frame, kept]] = 1
    return inside.view(-1, height, width)


def cell_centres(height: int, width: int, region: Region, *, like: Tensor) -> Tensor:
    """Return the centres (H * W, 2) in metres of a map's cells, row by row."""
    low_x, low_y, high_x, high_y = region
    y, x = (
        (torch.arange(cells, device=like.device, dtype=like.dtype) + 0.5) * ((high - low) / cells)
        + low
        for cells, low, high in ((height, low_y, high_y), (width, low_x, high_x))
    )
    return torch.cartesian_prod(y, x).flip(1)


def boxes_at(output: HeadOutput, places: Tensor, region: Region) -> Tensor:
    """Return the boxes (B, K, 7) a network's maps hold in the cells in which places (B, K, 2) in
    metres lie.

    Source: spec section 5.3 step 2.
    """
    rows, columns = output.heatmap.shape[-2:]
    low, high = places.new_tensor(region).view(2, 2)
    cells = places.new_tensor((columns, rows))
    size = (high - low) / cells
    at = torch.minimum(((places - low) / size).long(), cells.long() - 1)
    codes = wide(gather_codes(output, at[..., 1] * columns + at[..., 0])).to(places.dtype)
    centre = (at + codes[..., :2]) * size + low
    heading = torch.atan2(codes[..., 7], codes[..., 6])
    return torch.cat((centre, codes[..., 2:3], codes[..., 3:6].exp(), heading[..., None]), dim=-1)


def _inside(places: Tensor, boxes: Tensor) -> Tensor:
    """Return which places (N, 2) lie in any of the boxes (M, 7), seen from above."""
    flat = boxes.clone()
    flat[:, 2], flat[:, 5] = 0, 1
    return points_in_boxes(F.pad(places, (0, 1)), flat).any(dim=1)
