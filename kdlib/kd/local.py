"""Local distillation on pillars and voxels, around the places that matter most to the teacher.

In the manner of PointDistiller (Zhang et al., CVPR 2023): what two networks make of the
surroundings of the most important places is compared, over one graph of neighbours for both, each
place weighted by its importance to the teacher. From the paper: edge features of a place and its
neighbours, a learned layer on them, sampling of places, weights. Ours, and why:

- The paper has both networks on one voxel grid. Here a student's cell takes the maximum, channel by
  channel, of the teacher's cells whose centres lie in it: a pillar's features are a maximum over
  its points already, so this is close to what the teacher would have said of the larger pillar.
  Cells of the student without one of the teacher take no part.
- A place's importance is the length of the teacher's feature there, both for choosing and, divided
  by the sum over a frame's places, as the weight. The paper's code takes the number of points or
  the largest channel, and weights by a softmax of it.
- Neighbours are the nearest in space, so that a graph is local. The paper's code takes the nearest
  among the teacher's features.
- An edge is ``[f_i, f_j - f_i]`` and a place is the maximum over its edges, as in the dynamic graph
  convolution (DGCNN) that the paper builds on. The paper's code compares edge by edge.
- Only the student's edges pass a learned layer (the adapter). The paper learns one for the
  teacher's as well; then a constant answer of both would be a perfect match.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from kdlib.config import FeatureKDConfig
from kdlib.kd.distance import EPSILON, channel_distance
from kdlib.models import ranks
from kdlib.models.detector import Sites
from kdlib.models.precision import wide
from kdlib.models.sparse.rulebook import cell_numbers

_TIE = 1e-3  # of a cell: centres on a border belong to the upper cell, whatever rounding says


def teacher_at(student: Sites, teacher: Sites) -> tuple[Tensor, Tensor]:
    """Return the teacher's features (V, C) in each of the student's cells, and in which cells (V,)
    it has any.

    Cells meet by their place in metres. Where one of the grids has a single level (pillars), height
    does not count.
    """
    flat = 1 in (student.shape[0], teacher.shape[0])
    cells = (teacher.positions - _row(student.low, teacher)) / _row(student.size, teacher)
    cells = (cells + _TIE).floor().long()
    keys = _keys(torch.cat((teacher.coords[:, :1], cells.flip(1)), dim=1), student.shape, flat)
    # Several sites of a student share a key where height does not count: they all get what lies in
    # their column.
    own, place = _keys(student.coords, student.shape, flat).unique(return_inverse=True)
    inside = ((cells >= 0) & (cells < cells.new_tensor(student.shape[::-1])))[
        :, : 2 if flat else 3
    ].all(dim=1)
    slot = torch.searchsorted(own, keys).clamp(max=max(len(own) - 1, 0))
    met = inside & (own[slot] == keys) if len(own) else inside & False
    features = wide(teacher.features.detach())[met]
    index = slot[met][:, None].expand(-1, features.shape[1])
    pooled = features.new_zeros((len(own), features.shape[1])).scatter_reduce_(
        0, index, features, "amax", include_self=False
    )
    known = torch.zeros_like(own, dtype=torch.bool).index_fill_(0, slot[met], True)
    return pooled[place], known[place]


def edges(features: Tensor, centres: Tensor, neighbours: Tensor) -> Tensor:
    """Return ``[f_i, f_j - f_i]`` (S, K, 2C) of features (V, C) for places i (S,) and their
    neighbours j (S, K).
    """
    centre = features[centres][:, None].expand(-1, neighbours.shape[1], -1)
    return torch.cat((centre, features[neighbours] - centre), dim=2)


def important_places(
    importance: Tensor, positions: Tensor, samples: int, neighbours: int
) -> tuple[Tensor, Tensor]:
    """Return the most important places (S,) and their nearest (S, K), with themselves; fewer where
    there are not as many.
    """
    count = len(importance)
    centres = importance.topk(min(samples, count)).indices
    if not count:
        return centres, centres[:, None]
    # The exact way: through products of coordinates, float32 loses the centimetres at 75 m.
    apart = torch.cdist(positions[centres], positions, compute_mode="donot_use_mm_for_euclid_dist")
    return centres, apart.topk(min(neighbours, count), largest=False).indices


def local_kd(
    student: Sites, teacher: Sites, config: FeatureKDConfig, adapter: nn.Module
) -> tuple[Tensor, int]:
    """Return the unweighted distance of local graphs, averaged over the frames, and the number of
    places compared.

    A frame without common cells counts as 0.

    Raises:
        ValueError: If the adapter leaves another width than the teacher's.

    Source: PointDistiller (Zhang et al., CVPR 2023), changed as the module says.
    """
    student = replace(student, features=wide(student.features))
    theirs, known = teacher_at(student, teacher)
    importance, positions = torch.linalg.vector_norm(theirs, dim=1), student.positions
    frames, places = [], 0
    for frame in range(student.batch_size):
        mine = ((student.coords[:, 0] == frame) & known).nonzero()[:, 0]
        centres, near = important_places(
            importance[mine], positions[mine], config.samples, config.neighbours
        )
        centres, near = mine[centres], mine[near]
        ours = adapter(edges(student.features, centres, near)).amax(dim=1)
        apart = channel_distance(ours, edges(theirs, centres, near).amax(dim=1), config.distance)
        share = importance[centres] / importance[centres].sum().clamp(min=EPSILON)
        frames.append((share * apart).sum())
        places += len(centres)
    # a rank without a frame: nothing to add, but the adapter keeps its place in the graph
    if not frames:
        none = known.nonzero()[:0, 0]
        return ranks.mean(adapter(edges(student.features, none, none[:, None])).flatten()), 0
    return ranks.mean(torch.stack(frames)), places


def _keys(coords: Tensor, shape: tuple[int, int, int], flat: bool) -> Tensor:
    """Return one number per cell of a batch; with ``flat`` per column of cells."""
    return cell_numbers(coords * coords.new_tensor((1, 0, 1, 1)) if flat else coords, shape)


def _row(values: tuple[float, ...], like: Sites) -> Tensor:
    return torch.tensor(values, device=like.coords.device)
