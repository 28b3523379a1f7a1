"""Contrastive Lift on Gaussians: fast features follow their own slow average; clusters are objects (NeurIPS 2023)."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from unified_lift.errors import UserError
from unified_lift.methods.base import MethodEntry, StepInfo, ViewPixels
from unified_lift.methods.clustered import ClusteredMethod, ClusteredSettings
from unified_lift.ops.segments import segment_counts, segment_mean
from unified_lift.settings.limits import Range
from unified_lift.shapes import check_shapes


@dataclass(frozen=True, kw_only=True)
class ContrastiveLiftSettings(ClusteredSettings):
    """Defaults are those of Contrastive Lift where it has them."""

    feature_dim: Annotated[int, Range(1, 1024)] = 6
    """Numbers of a Gaussian: the first half is fast, the second slow [Contrastive Lift: 3 and 3]."""
    cluster_space: Literal["unit", "box"] = "box"
    """As of every clustered method; `box` is the original's."""
    confidence_temperature: Annotated[float, Range(above=0)] = 0.02
    """As of every clustered method, smaller because distances in the box are. [ours]"""

    slow_momentum: Annotated[float, Range(0, 1)] = 0.9
    """Share that the slow features keep at each step [Contrastive Lift]."""
    view_pixels: Annotated[int, Range(2)] = 1_024
    """Most labelled pixels of a step; half of them are read fast, half slow [Contrastive Lift]."""
    weight_concentration: Annotated[float, Range(0)] = 1.0
    """Weight of the concentration loss [Contrastive Lift]."""
    weight_contrastive: Annotated[float, Range(0)] = 1.0
    """Weight of the contrastive loss [Contrastive Lift]."""

    def check(self) -> None:
        super().check()
        if self.feature_dim % 2:
            raise UserError(f"--feature_dim must be even, half fast and half slow, received {self.feature_dim}")


class ContrastiveLift(ClusteredMethod):
    """Fast and slow features side by side in one table; only the fast ones are trained and clustered.

    Differs: the original has two networks of position, and averages their weights; here the numbers of the Gaussians
    themselves are averaged. It clusters pixels of the foreground; here all labelled ones.
    """

    settings: ContrastiveLiftSettings

    def initial_features(self, count: int) -> Tensor:
        """Return random fast unit vectors, and the slow ones equal to them."""
        fast = super().initial_features(count).chunk(2, dim=1)[0]
        return (fast / fast.norm(dim=1, keepdim=True)).repeat(1, 2)

    def clustered_part(self, features: Tensor) -> Tensor:
        return features.chunk(2, dim=-1)[0]

    def losses(self, pixels: ViewPixels, info: StepInfo) -> dict[str, Tensor]:
        """Return both terms, on other pixels at every call. Gradient: to the fast half of the features only."""
        (fast, slow), slot, drawn = pixels.features.chunk(2, dim=1), pixels.slot, self._drawn(pixels.slot)
        some, others = drawn[0::2], drawn[1::2]
        halves = fast.index_select(0, some), slot.index_select(0, some), slow.index_select(0, others)
        concentration, contrastive = slow_fast_losses(*halves, slot.index_select(0, others), pixels.num_segments)
        return {"concentration": concentration, "contrastive": contrastive}

    def after_step(self, features: Tensor) -> None:
        fast, slow = features.chunk(2, dim=1)
        slow.lerp_(fast, 1 - self.settings.slow_momentum)  # the slow half follows the fast one

    def _drawn(self, slot: Tensor) -> Tensor:
        """Return at most `view_pixels` pixels in random order, labelled first, so that a GPU need not count them."""
        key = torch.rand(len(slot), generator=self._next_draw(slot.device), device=slot.device) + (slot < 0)
        return key.argsort()[: self.settings.view_pixels]


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
        fast, fast_slot: Features [P, D] and segment of each pixel, int32 [P], -1 = none.
        slow, slow_slot: Of other pixels, [Q, D] and [Q].
    Returns:
        concentration in [-1, 0] and contrastive in [0, 1 + ln Q]; 0 where no segment has pixels in both halves.
    Gradient: to the fast features only. On a GPU the host does not wait.
    Differs: the original weighs concentration by a confidence of each pixel; our masks have none.
    """
    check_shapes({"fast": (fast, "P D"), "fast_slot": (fast_slot, "P")})
    check_shapes({"slow": (slow, f"Q {fast.shape[1]}"), "slow_slot": (slow_slot, "Q")})
    slow = slow.detach()
    shared = (segment_counts(fast_slot, num_segments) > 0) & (segment_counts(slow_slot, num_segments) > 0)  # [S]

    # Pixels without segment read a row of zeros in front of the centres and then count in no mean.
    own = pad(segment_mean(slow, slow_slot, num_segments), (0, 0, 1, 0)).index_select(0, fast_slot + 1)
    nearness = torch.exp(-(fast - own).square().sum(dim=1, keepdim=True))  # [P, 1]
    means = segment_mean(nearness, fast_slot, num_segments)[:, 0]
    concentration = -torch.where(shared, means, 0.0).sum() / shared.sum().clamp(min=1)

    # Differences rather than |f|^2 + |s|^2 - 2 f.s, whose root is coarse where f and s nearly agree. Its slope there
    # is 0, as cdist defines it.
    distance = torch.cdist(fast, slow, compute_mode="donot_use_mm_for_euclid_dist")  # [P, Q]
    likeness = torch.exp(torch.exp(-distance)) * (slow_slot >= 0)
    same = fast_slot[:, None] == slow_slot
    counts = pad(shared, (1, 0)).index_select(0, fast_slot + 1)  # [P]
    # 1 where a pixel does not count, before the logarithm: after it, 0 times the slope at 0 would be NaN.
    alike = torch.where(counts, (likeness * same).sum(dim=1), 1.0)
    everything = torch.where(counts, likeness.sum(dim=1), 1.0)
    return concentration, (everything.log() - alike.log()).sum() / counts.sum().clamp(min=1)


METHOD = MethodEntry("contrastive_lift_gs", ContrastiveLiftSettings, ContrastiveLift)
