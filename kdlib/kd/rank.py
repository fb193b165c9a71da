"""The rank loss: how differently student and teacher share out the teacher's best entries."""

from __future__ import annotations

from torch import Tensor

from kdlib.kd.distance import EPSILON
from kdlib.models import ranks


def rank_kd(student: Tensor, teacher: Tensor, rank: int) -> Tensor:
    """Return ``mean(p_t * (ln p_t - ln p_s))`` over the teacher's ``rank`` best entries of every frame.

    An entry is a class at a cell; ``p`` is a frame's probabilities there over their sum (plus 1e-6), so that only the order and
    the proportions count, not the height. The original's ``-mean(p_t * ln p_s)`` differs by the teacher's entropy, a constant:
    the gradient is the same, and here a student equal to its teacher is at 0. The original also indexed frames by a fraction, so
    it never ran, and would have kept the last head's value alone (spec section 11 items 15, 16).

    Args:
        student: (B, C, H, W) probabilities above 0, as clamped ones are.
        teacher: (B, C, H, W) likewise, on the same grid; receives no gradient.
        rank: Entries a frame; all where there are fewer.

    Source: spec section 7.5 step 6.
    """
    ours, theirs = student.flatten(1), teacher.detach().flatten(1)
    best = theirs.topk(min(rank, theirs.shape[1]), dim=1, sorted=False).indices
    given, wanted = _shares(ours.gather(1, best)), _shares(theirs.gather(1, best))
    return ranks.mean(wanted * (wanted.log() - given.log()))


def _shares(values: Tensor) -> Tensor:
    return values / (values.sum(dim=1, keepdim=True) + EPSILON)
