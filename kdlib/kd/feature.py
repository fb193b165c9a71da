"""Feature distillation on BEV maps, inside boxes and on encoders' sites.

Every form is a pure function of two tensors; :func:`feature_kd` prepares them: the adapter brings
the student's map to the teacher's width on the student's grid, then maps meet on one grid (``map``,
``foreground``, ``attention``) or are read at the same places in metres (``rois``, ``affinity``),
where grids do not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from kdlib.config import FeatureKDConfig
from kdlib.errors import ConfigError
from kdlib.kd.align import align_maps
from kdlib.kd.distance import EPSILON, channel_distance
from kdlib.kd.local import local_kd
from kdlib.kd.roi_grid import Region, roi_grid_pool
from kdlib.kd.teacher import Need
from kdlib.kd.term import StepContext
from kdlib.models import ranks
from kdlib.models.losses.loss_part import LossPart, weighed
from kdlib.models.precision import wide
from kdlib.types import Detections, GroundTruth, HeadTargets

# The settings a form reads, besides those that all read.
_READ = {
    **dict.fromkeys(("map", "foreground", "attention"), frozenset(("target", "align_corners"))),
    "rois": {"rois", "roi_score", "roi_grid", "relation_weight"},
    "affinity": {"rois", "roi_score", "roi_grid"},
    "local": {"samples", "neighbours"},
}
_ALL_READ = {"form", "weight", "distance", "adapter"}
WITHOUT_CHANNELS = ("attention", "affinity")  # compare no channels, so widths may differ


def feature_weights(config: FeatureKDConfig | None) -> dict[str, float]:
    """Return the parts a recipe adds to a loss, with their weights."""
    both = (
        {}
        if config is None
        else {"kd_feature": config.weight, "kd_relation": config.relation_weight}
    )
    return {name: weight for name, weight in both.items() if weight != 0}


def check_feature(config: FeatureKDConfig, student: int, teacher: int) -> None:
    """Refuse settings that contradict each other, that the form would ignore, or that do not fit
    the widths of the features.

    Raises:
        ConfigError: Naming the setting and the remedy.
    """
    form = config.form
    if form not in _READ:
        raise ConfigError(
            f"unknown form '{form}' of feature distillation; use one of {', '.join(_READ)}"
        )
    for item in fields(config):
        value = getattr(config, item.name)
        if item.name not in _ALL_READ | _READ[form] and value != item.default:
            raise ConfigError(
                f"form '{form}' would ignore {item.name} {value!r}; leave it at {item.default!r}"
            )
    if form in WITHOUT_CHANNELS and config.distance == "cosine":
        raise ConfigError(
            f"distance 'cosine' compares channels, form '{form}' has none left; "
            "use 'mse' or 'smooth_l1'"
        )
    if form == "local" and config.adapter == "3x3":
        raise ConfigError(
            "adapter '3x3' needs a map, form 'local' works on lists of places; use '1x1' or 'none'"
        )
    if config.adapter == "none" and form not in WITHOUT_CHANNELS and student != teacher:
        raise ConfigError(
            f"form '{form}' without an adapter needs features of one width, but the student has "
            f"{student} channels and the "
            f"teacher {teacher}; set adapter to '1x1'"
        )


def map_distance(
    student: Tensor, teacher: Tensor, distance: str, mask: Tensor | None = None
) -> Tensor:
    """Return the mean distance of maps (B, C, H, W), over all cells or weighted by a mask (B, H,
    W).

    Source: FitNets (Romero et al., ICLR 2015); FG as in SparseKD; spec section 7.7 mode raw.
    """
    apart = channel_distance(student, teacher, distance)
    return (
        ranks.mean(apart)
        if mask is None
        else (mask * apart).sum() / (ranks.total(mask.sum()) + EPSILON)
    )


def foreground(targets: Sequence[HeadTargets]) -> Tensor:
    """Return the largest Gaussian target (B, H, W) over the classes of all heads."""
    return torch.stack([wide(target.heatmap).amax(dim=1) for target in targets]).amax(dim=0)


def attention(maps: Tensor) -> Tensor:
    """Return the mean magnitude (B, 1, H, W) of maps (B, C, H, W) over their channels.

    Source: attention transfer (Zagoruyko and Komodakis, ICLR 2017); spec section 7.7 mode spatial.
    """
    return maps.abs().mean(dim=1, keepdim=True)


def roi_distance(student: Tensor, teacher: Tensor, valid: Tensor, distance: str) -> Tensor:
    """Return the mean distance of pooled features (B, M, C, G, G) over the cells of valid (B, M)
    boxes; 0 without a box.

    Source: Mimic (Li et al., CVPR 2017) as in SparseKD; spec section 7.7 mode rois.
    """
    apart = channel_distance(student, teacher, distance, dim=2).flatten(2).mean(dim=2)
    return (apart * valid).sum() / ranks.total(valid.sum()).clamp(min=1)


def relations(pooled: Tensor, valid: Tensor) -> Tensor:
    """Return the squared distances (B, M, M) between a frame's boxes' features (B, M, ...), over
    their mean of valid pairs.

    Pairs without two valid boxes are 0, those of a box with itself count.

    Source: GID (Dai et al., CVPR 2021) as in SparseKD; spec section 7.7.
    """
    flat, pairs = pooled.flatten(2), (valid[:, :, None] & valid[:, None, :]).to(pooled.dtype)
    apart = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").square() * pairs
    mean = apart.sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp(min=1)
    return apart / mean.clamp(min=EPSILON)[:, None, None]


def relation_distance(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Return the smooth-L1 distance of the relations of pooled features (B, M, C, G, G), averaged
    over pairs, then frames.

    A frame with fewer than two boxes has no relations and counts as 0.

    Source: spec section 7.7.
    """
    apart = F.smooth_l1_loss(
        relations(student, valid), relations(teacher.detach(), valid), reduction="none"
    )
    return ranks.mean(apart.sum(dim=(1, 2)) / valid.sum(dim=1).clamp(min=1).square())


def affinity(pooled: Tensor) -> Tensor:
    """Return the cosines (B, M, G * G, G * G) between all cells of each box of pooled features (B,
    M, C, G, G).

    Source: spec section 7.7 mode aff.
    """
    cells = pooled.flatten(3)
    length = torch.linalg.vector_norm(cells, dim=2)
    return (
        cells.transpose(2, 3)
        @ cells
        / (length[..., :, None] * length[..., None, :]).clamp(min=EPSILON)
    )


def boxes_of_interest(
    truth: GroundTruth, teacher: Sequence[Detections], config: FeatureKDConfig
) -> tuple[Tensor, Tensor]:
    """Return boxes (B, M, 7), padded, and which of them (B, M) count: annotated ones, or the
    teacher's of enough score.

    The teacher's are decoded without NMS, as in the original, so an object may have several. Boxes
    without area do not count.

    Raises:
        ValueError: If the numbers of frames differ.

    Source: spec section 7.7.
    """
    if config.rois == "truth":
        boxes, valid = truth.boxes, truth.labels > 0
    else:
        if len(teacher) != len(truth.boxes):
            raise ValueError(
                f"teacher boxes of {len(teacher)} frames but ground truth of {len(truth.boxes)}"
            )
        kept = [
            frame.boxes[frame.scores > config.roi_score].to(truth.boxes.dtype) for frame in teacher
        ]
        boxes = pad_sequence(kept, batch_first=True)
        valid = pad_sequence(
            [torch.ones_like(rows[:, 0], dtype=torch.bool) for rows in kept], batch_first=True
        )
    return boxes, valid & (boxes[..., 3:5] > 0).all(dim=-1)


def feature_needs(config: FeatureKDConfig | None) -> frozenset[Need]:
    """Return what the teacher has to answer besides its heads' maps."""
    if config is None or not feature_weights(config):
        return frozenset()
    if config.form == "local":
        return frozenset({"sites"})
    needs: set[Need] = {"bev"}
    if config.form == "foreground" and config.target == "teacher":
        needs.add("targets")
    if config.rois == "teacher":
        needs.add("boxes")
    return frozenset(needs)


def feature_kd(
    context: StepContext, config: FeatureKDConfig, adapter: nn.Module, region: Region
) -> list[LossPart]:
    """Return the parts ``kd_feature`` and ``kd_relation``; a part with weight 0 is left out.

    The teacher has answered with what :func:`feature_needs` names; only the student gets a
    gradient. The adapter leads from the student's width to the teacher's; the BEV maps of both span
    the metres of ``region``.

    Raises:
        ValueError: If what the form needs is missing.
    """
    if not feature_weights(config):
        return []
    student, teacher = context.prediction, context.answer
    # 16 bits would round small distances away
    with torch.autocast(student.bev.device.type, enabled=False):
        if config.form == "local":
            value, places = local_kd(
                _need(student.sites, "sites"), _need(teacher.sites, "sites"), config, adapter
            )
            return [weighed("kd_feature", config.weight, value, places)]
        own, other = adapter(wide(student.bev)), wide(_need(teacher.bev, "bev"))
        if config.form in ("rois", "affinity"):
            boxes, valid = boxes_of_interest(context.batch.truth, teacher.boxes, config)
            own, other = (
                roi_grid_pool(maps, boxes, region, config.roi_grid) for maps in (own, other)
            )
            return _in_boxes(own, other, valid, config)
        height, width = (other if config.target == "teacher" else own).shape[-2:]
        own, other = (
            align_maps(maps, (height, width), align_corners=config.align_corners)
            for maps in (own, other)
        )
        if config.form == "attention":
            own, other = attention(own), attention(other)
        mask = None
        if config.form == "foreground":
            mask = foreground(teacher.targets if config.target == "teacher" else context.targets)
        value = map_distance(own, other, config.distance, mask)
        return [
            weighed("kd_feature", config.weight, value, None if mask is None else (mask > 0).sum())
        ]


def _in_boxes(
    ours: Tensor, theirs: Tensor, valid: Tensor, config: FeatureKDConfig
) -> list[LossPart]:
    parts, boxes = [], valid.sum()
    if config.weight != 0:
        pair = (affinity(ours), affinity(theirs)) if config.form == "affinity" else (ours, theirs)
        parts.append(
            weighed("kd_feature", config.weight, roi_distance(*pair, valid, config.distance), boxes)
        )
    if config.relation_weight != 0:
        parts.append(
            weighed(
                "kd_relation", config.relation_weight, relation_distance(ours, theirs, valid), boxes
            )
        )
    return parts


def _need(value: Any, name: str) -> Any:
    if value is None:
        raise ValueError(f"the networks were not asked for their {name}")
    return value
