"""A distillation term of one's own: the student's boxes should point as a sure teacher's do."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib.kd.align import align_maps
from kdlib.kd.term import StepContext, Term


def heading(step: StepContext) -> Tensor:
    """Return 1 - cos of the angle between both headings, weighted by the teacher's confidence."""
    heads = []
    for ours, theirs in zip(step.prediction.heads, step.answer.heads):
        size = ours.rot.shape[-2:]  # the teacher's maps may be finer or coarser
        wanted = align_maps(theirs.rot, size)
        sure = align_maps(theirs.heatmap.sigmoid(), size).amax(dim=1)
        heads.append((sure * (1 - F.cosine_similarity(ours.rot, wanted, dim=1))).sum() / sure.sum())
    return torch.stack(heads).mean()


HEADING = Term("kd_heading", weight=0.5, value=heading)
