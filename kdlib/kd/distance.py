"""How far apart the features of student and teacher are at every place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib.errors import ConfigError

EPSILON = 1e-6
ELEMENTWISE = {"mse": F.mse_loss, "smooth_l1": F.smooth_l1_loss}  # by the name of a distance


def channel_distance(student: Tensor, teacher: Tensor, distance: str, dim: int = 1) -> Tensor:
    """Return the distance of features of one shape, averaged over their channel axis ``dim``, which
    leaves.

    ``mse`` and ``smooth_l1`` (beta 1) are taken element by element, ``cosine`` is 1 minus the
    cosine of the two vectors. Vectors without a direction (product of lengths at most 1e-6, as
    where a ReLU left nothing) are 0 apart if they are equal, else 1.

    Raises:
        ConfigError: If the distance is unknown.
        ValueError: If the shapes differ; broadcasting would hide it.

    Source: spec section 7.7.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"student features {tuple(student.shape)} and teacher features "
            f"{tuple(teacher.shape)} differ in shape"
        )
    teacher = teacher.detach()
    if distance in ELEMENTWISE:
        return ELEMENTWISE[distance](student, teacher, reduction="none").mean(dim)
    if distance != "cosine":
        raise ConfigError(f"unknown distance '{distance}'; use 'mse', 'smooth_l1' or 'cosine'")
    lengths = torch.linalg.vector_norm(student, dim=dim) * torch.linalg.vector_norm(
        teacher, dim=dim
    )
    directed = lengths > EPSILON
    cosine = (student * teacher).sum(dim) / lengths.where(directed, torch.ones_like(lengths))
    return torch.where(directed, 1 - cosine, (student != teacher).any(dim).to(cosine.dtype))
