"""The masked L1 loss of a centre head's box codes."""

from __future__ import annotations

import torch
from torch import Tensor

from kdlib.errors import DataError
from kdlib.models import ranks
from kdlib.models.precision import wide
from kdlib.types import HeadOutput, HeadTargets


def gather_at(maps: Tensor, indices: Tensor) -> Tensor:
    """Return the values of maps (B, C, H, W) at cells ``iy * W + ix`` (B, K), as (B, K, C).

    Source: spec section 5.2.
    """
    flat = maps.flatten(2)
    return flat.gather(2, indices.unsqueeze(1).expand(-1, flat.shape[1], -1)).transpose(1, 2)


def gather_codes(output: HeadOutput, indices: Tensor) -> Tensor:
    """Return a head's eight box code numbers at cells (B, K), as (B, K, 8) in target order.

    Gathers from each map alone, so that the full maps are never concatenated.
    """
    return torch.cat(
        [
            gather_at(maps, indices)
            for maps in (output.center, output.center_z, output.dim, output.rot)
        ],
        dim=2,
    )


def masked_l1(codes: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
    """Return per dimension ``sum(mask * |codes - wanted|) / max(sum(mask), 1)``: (B, K, D), (B, K,
    D), (B, K) -> (D,).

    Source: RegLossCenterNet; spec section 5.2.
    """
    used = mask.bool().unsqueeze(2)
    # Empty slots may hold anything, NaN included: it is replaced before it meets the gradient,
    # where NaN * 0 would stay NaN.
    distance = (wide(codes) - torch.where(used, wanted, 0.0)).abs() * used
    return distance.sum(dim=(0, 1)) / ranks.total(mask.sum()).clamp(min=1)


def box_regression_loss(output: HeadOutput, targets: HeadTargets) -> Tensor:
    """Return the (8,) L1 losses of a head's box codes at the target cells.

    The original meant to ignore NaN but returned NaN (spec errata 1). Ours refuses: boxes here have
    no optional columns, so a NaN is a broken label, and dropping it in silence would train on fewer
    dimensions than stated.

    Raises:
        DataError: If a target in use is not finite, naming the frame in the batch, the slot and the
            dimension.

    Source: spec section 5.2.
    """
    bad = targets.mask.bool().unsqueeze(2) & ~targets.boxes.isfinite()
    if bad.any():
        frame, slot, column = bad.nonzero()[0].tolist()
        name = (
            "x offset",
            "y offset",
            "z",
            "log dx",
            "log dy",
            "log dz",
            "cos heading",
            "sin heading",
        )[column]
        value = float(targets.boxes[frame, slot, column])
        raise DataError(
            f"target box {slot} of frame {frame} in the batch has {name} = {value}; "
            "remove that box from the labels"
        )
    return masked_l1(gather_codes(output, targets.indices), targets.boxes, targets.mask)
