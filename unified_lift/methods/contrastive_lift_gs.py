"""Contrastive Lift on Gaussians: fast features follow their own slow average; clusters are objects (NeurIPS 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unified_lift.errors import UserError
from unified_lift.methods.base import MethodEntry
from unified_lift.methods.clustered import ClusteredMethod, ClusteredSettings
from unified_lift.methods.slow_fast import slow_fast_losses
from unified_lift.types import ZeroId


@dataclass(frozen=True, kw_only=True)
class ContrastiveLiftSettings(ClusteredSettings):
    """Defaults are those of Contrastive Lift where it has them."""

    feature_dim: int = 6
    """Numbers of a Gaussian: the first half is fast, the second slow [Contrastive Lift: 3 and 3]."""
    cluster_space: Literal["unit", "box"] = "box"
    """As of every clustered method; `box` is the original's."""
    confidence_temperature: float = 0.02
    """As of every clustered method, smaller because distances in the box are. [ours]"""

    feature_lr: float = 0.01
    """Rate of the fast features, constant. [ours] the original trains networks."""
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
        if self.view_pixels < 2:
            raise UserError(f"--view_pixels must be at least 2, received {self.view_pixels}")


class ContrastiveLift(ClusteredMethod):
    """Fast and slow features side by side in one table; only the fast ones are trained and clustered.

    Differs: the original has two networks of position, and averages their weights; here the numbers of the Gaussians
    themselves are averaged. It clusters pixels of the foreground; here all labelled ones.
    """

    settings: ContrastiveLiftSettings

    def __init__(self, settings: ContrastiveLiftSettings, *, zero_id: ZeroId, seed: int) -> None:
        """Create the method for a dataset in which id 0 means `zero_id`."""
        super().__init__(settings, zero_id=zero_id, seed=seed)
        self.num_draws, self.num_fast = 0, settings.feature_dim // 2
        self.weights = {"concentration": settings.weight_concentration, "contrastive": settings.weight_contrastive}

    def initial_features(self, count: int) -> Tensor:
        """Return start features [count, D]: random fast unit vectors, and the slow ones equal to them."""
        fast = super().initial_features(count)[:, : self.num_fast]
        fast = fast / fast.norm(dim=1, keepdim=True)
        return torch.cat([fast, fast], dim=1)

    def clustered_part(self, features: Tensor) -> Tensor:
        """Return the fast half of features [..., D]."""
        return features[..., : self.num_fast]

    def losses(
        self, features: Tensor, slot: Tensor, num_segments: int, progress: float, *, view: int
    ) -> dict[str, Tensor]:
        """Return both terms of one view, on other pixels at every call; which view it is does not matter.

        Gradient: to the fast half of the features only.
        """
        rows = self._drawn(slot)
        fast_rows, slow_rows = rows[0::2], rows[1::2]
        concentration, contrastive = slow_fast_losses(
            features[:, : self.num_fast].index_select(0, fast_rows),
            slot.index_select(0, fast_rows),
            features[:, self.num_fast :].index_select(0, slow_rows),
            slot.index_select(0, slow_rows),
            num_segments,
        )
        return {"concentration": concentration, "contrastive": contrastive}

    def after_step(self, features: Tensor) -> None:
        """Let the slow half follow the fast one."""
        fast, slow = features[:, : self.num_fast], features[:, self.num_fast :]
        slow.lerp_(fast, 1 - self.settings.slow_momentum)

    def rates(self, progress: float) -> dict[str, float]:
        """Return the rate of the features; the slow half has no gradient, so it stays as it is."""
        return {"features": self.settings.feature_lr}

    def state_dict(self) -> dict:
        """Return also the number of draws of pixels."""
        return super().state_dict() | {"num_draws": self.num_draws}

    def load_state_dict(self, state: dict) -> None:
        """Take what `state_dict` returned."""
        super().load_state_dict(state)
        self.num_draws = state["num_draws"]

    def _drawn(self, slot: Tensor) -> Tensor:
        """Return at most `view_pixels` rows in random order, labelled ones first, so that a GPU need not count them."""
        generator = self.draws.at(self.num_draws, slot.device)
        self.num_draws += 1
        key = torch.rand(len(slot), generator=generator, device=slot.device) + (slot < 0)
        return key.argsort()[: self.settings.view_pixels]


METHOD = MethodEntry("contrastive_lift_gs", ContrastiveLiftSettings, ContrastiveLift)
