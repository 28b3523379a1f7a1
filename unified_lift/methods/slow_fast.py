"""Losses between a fast feature and its slow average, inside one view (Contrastive Lift)."""

from __future__ import annotations

import torch
from torch import Tensor

from unified_lift.ops.segments import segment_counts, segment_mean
from unified_lift.shapes import check_shapes


def slow_fast_losses(
    fast: Tensor, fast_slot: Tensor, slow: Tensor, slow_slot: Tensor, num_segments: int
) -> tuple[Tensor, Tensor]:
    """Return the two losses that pull fast features to the slow ones of their segment, scalars.

    Source: Contrastive Lift (Bhalgat et al. 2023), slow-fast loss. With f_i and s_j the fast and slow features of two
    halves of the pixels of a view and m_k the mean of the slow features of segment k:
    concentration = - mean over segments k of ( mean over i in k of exp(-|f_i - m_k|^2) ),
    contrastive = - mean over i of log( sum_j in segment of i  exp(g_ij) / sum_j exp(g_ij) ), g_ij = exp(-|f_i - s_j|).
    Only segments with pixels in both halves count in the concentration, and only pixels of these in the contrastive
    mean; every labelled slow pixel counts in its denominator.
    Args:
        fast: [P, D].
        fast_slot: Segment of each, int32 [P], -1 = none.
        slow: Of other pixels, [Q, D].
        slow_slot: Segment of each, int32 [Q], -1 = none.
        num_segments: S; some may have no pixel.
    Returns:
        concentration in [-1, 0] and contrastive in [0, 1 + ln Q]; 0 where no segment has pixels in both halves.
    Gradient: to the fast features only. On a GPU the host does not wait.
    Differs: the original weighs concentration by a confidence of each pixel; our masks have none.
    """
    check_shapes(
        {"fast": (fast, "P D"), "fast_slot": (fast_slot, "P"), "slow": (slow, "Q D"), "slow_slot": (slow_slot, "Q")}
    )
    slow = slow.detach()
    shared = (segment_counts(fast_slot, num_segments) > 0) & (segment_counts(slow_slot, num_segments) > 0)  # [S]
    return (
        _concentration(fast, fast_slot, segment_mean(slow, slow_slot, num_segments), shared),
        _contrastive(fast, fast_slot, slow, slow_slot, shared),
    )


def _concentration(fast: Tensor, slot: Tensor, centres: Tensor, shared: Tensor) -> Tensor:
    # Pixels without segment read a row of zeros in front of the centres and then count in no mean.
    own = torch.cat([centres.new_zeros(1, centres.shape[1]), centres]).index_select(0, slot + 1)
    nearness = torch.exp(-(fast - own).square().sum(dim=1, keepdim=True))  # [P, 1]
    means = segment_mean(nearness, slot, len(centres))[:, 0]
    return -torch.where(shared, means, 0.0).sum() / shared.sum().clamp(min=1)


def _contrastive(fast: Tensor, fast_slot: Tensor, slow: Tensor, slow_slot: Tensor, shared: Tensor) -> Tensor:
    # Differences rather than |f|^2 + |s|^2 - 2 f.s, whose root is coarse where f and s nearly agree. Its slope there
    # is 0, as cdist defines it.
    distance = torch.cdist(fast, slow, compute_mode="donot_use_mm_for_euclid_dist")  # [P, Q]
    likeness = torch.exp(torch.exp(-distance)) * (slow_slot >= 0)
    same = fast_slot[:, None] == slow_slot
    counts = torch.cat([shared.new_zeros(1), shared]).index_select(0, fast_slot + 1)  # [P]
    # 1 where a pixel does not count, before the logarithm: after it, 0 times the slope at 0 would be NaN.
    own = torch.where(counts, (likeness * same).sum(dim=1), 1.0)
    everything = torch.where(counts, likeness.sum(dim=1), 1.0)
    return (everything.log() - own.log()).sum() / counts.sum().clamp(min=1)
