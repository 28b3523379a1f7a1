"""What the stages share: which view comes next, random draws, optimisers, and their state."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from unified_lift.engine.optim import NamedAdam
from unified_lift.engine.views import ViewOrder
from unified_lift.methods.base import Method

_GAUSSIAN_EPS = 1e-15  # Adam's eps for Gaussian parameters [3DGS]
_METHOD_EPS = 1e-8  # Adam's eps for the codebook [released]


class Stage(ABC):
    """A loop of training steps over the shared Gaussians. Gaussians and method are kept, and saved, by the trainer."""

    name: str

    def __init__(self, *, num_steps: int, num_views: int, seed: int) -> None:
        """Start with a fresh view order, generator and optimisers."""
        self.num_steps = num_steps
        self.order = ViewOrder(num_views, seed=seed)
        self.generator = torch.Generator().manual_seed(seed + 1)
        self.adam, self.method_adam = NamedAdam(eps=_GAUSSIAN_EPS), NamedAdam(eps=_METHOD_EPS)

    @abstractmethod
    def train_step(self, step: int) -> dict[str, Tensor]:
        """Do 0-based `step` and return the unweighted, detached terms."""

    def progress(self, step: int) -> float:
        """Return the share of the stage that is done before a 0-based step, in [0, 1)."""
        return step / self.num_steps

    def update_method(self, method: Method, progress: float) -> None:
        """Step the method's own parameters and forget their gradients."""
        own, rates = method.parameters(), method.rates(progress)
        self.method_adam.step(own, {name: rates[name] for name in own})
        for value in own.values():
            value.grad = None

    def state_dict(self) -> dict:
        """Return everything but Gaussians and method."""
        return {
            "order": self.order.state_dict(),
            "generator": self.generator.get_state(),
            "adam": self.adam.state_dict(),
            "method_adam": self.method_adam.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Take what `state_dict` returned."""
        self.order.load_state_dict(state["order"])
        self.generator.set_state(state["generator"])
        self.adam.load_state_dict(state["adam"])
        self.method_adam.load_state_dict(state["method_adam"])
