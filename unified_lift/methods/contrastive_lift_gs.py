"""Contrastive Lift on Gaussians: fast features follow their own slow average; clusters are objects (NeurIPS 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unified_lift.errors import UserError
from unified_lift.methods.base import MethodEntry, StepInfo, ViewPixels
from unified_lift.methods.clustered import ClusteredMethod, ClusteredSettings
from unified_lift.methods.slow_fast import slow_fast_losses


@dataclass(frozen=True, kw_only=True)
class ContrastiveLiftSettings(ClusteredSettings):
    """Defaults are those of Contrastive Lift where it has them."""

    feature_dim: int = 6
    """Numbers of a Gaussian: the first half is fast, the second slow [Contrastive Lift: 3 and 3]."""
    cluster_space: Literal["unit", "box"] = "box"
    """As of every clustered method; `box` is the original's."""
    confidence_temperature: float = 0.02
    """As of every clustered method, smaller because distances in the box are. [ours]"""

    slow_momentum: float = 0.9
    """Share that the slow features keep at each step [Contrastive Lift]."""
    view_pixels: int = 1_024
    """Most labelled pixels of a step; half of them are read fast, half slow [Contrastive Lift]."""
    weight_concentration: float = 1.0
    """Weight of the concentration loss [Contrastive Lift]."""
    weight_contrastive: float = 1.0
    """Weight of the contrastive loss [Contrastive Lift]."""

    def check(self) -> None:
        """Raise a UserError naming the flag whose value makes no sense."""
        super().check()
        if self.feature_dim % 2:
            raise UserError(f"--feature_dim must be even, half fast and half slow, received {self.feature_dim}")
        if not 0 <= self.slow_momentum <= 1:
            raise UserError(f"--slow_momentum must be in [0, 1], received {self.slow_momentum}")
        self.require_at_least(2, "view_pixels")


class ContrastiveLift(ClusteredMethod):
    """Fast and slow features side by side in one table; only the fast ones are trained and clustered.

    Differs: the original has two networks of position, and averages their weights; here the numbers of the Gaussians
    themselves are averaged. It clusters pixels of the foreground; here all labelled ones.
    """

    settings: ContrastiveLiftSettings

    @property
    def num_fast(self) -> int:
        """Return how many of the numbers of a Gaussian are fast; as many are slow."""
        return self.feature_dim // 2

    def initial_features(self, count: int) -> Tensor:
        """Return start features [count, D]: random fast unit vectors, and the slow ones equal to them."""
        fast = super().initial_features(count)[:, : self.num_fast]
        fast = fast / fast.norm(dim=1, keepdim=True)
        return torch.cat([fast, fast], dim=1)

    def clustered_part(self, features: Tensor) -> Tensor:
        """Return the fast half of features [..., D]."""
        return features[..., : self.num_fast]

    def losses(self, pixels: ViewPixels, info: StepInfo) -> dict[str, Tensor]:
        """Return both terms of one view, on other pixels at every call.

        Gradient: to the fast half of the features only.
        """
        features, slot, num_segments = pixels
        drawn = self._drawn(slot)
        fast, slow = drawn[0::2], drawn[1::2]
        concentration, contrastive = slow_fast_losses(
            features[:, : self.num_fast].index_select(0, fast),
            slot.index_select(0, fast),
            features[:, self.num_fast :].index_select(0, slow),
            slot.index_select(0, slow),
            num_segments,
        )
        return {"concentration": concentration, "contrastive": contrastive}

    def after_step(self, features: Tensor) -> None:
        """Let the slow half follow the fast one."""
        fast, slow = features[:, : self.num_fast], features[:, self.num_fast :]
        slow.lerp_(fast, 1 - self.settings.slow_momentum)

    def _drawn(self, slot: Tensor) -> Tensor:
        """Return at most `view_pixels` pixels in random order, labelled first, so that a GPU need not count them."""
        key = torch.rand(len(slot), generator=self._next_draw(slot.device), device=slot.device) + (slot < 0)
        return key.argsort()[: self.settings.view_pixels]


METHOD = MethodEntry("contrastive_lift_gs", ContrastiveLiftSettings, ContrastiveLift)
