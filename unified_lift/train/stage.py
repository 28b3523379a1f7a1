"""What the stages share: which view comes next, random draws, optimisers, and their state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from unified_lift.methods.base import Method
from unified_lift.train.optim import NamedAdam
from unified_lift.train.views import ViewOrder, ViewSource
from unified_lift.types import View

_GAUSSIAN_EPS = 1e-15  # Adam's eps for Gaussian parameters [3DGS]
_METHOD_EPS = 1e-8  # Adam's eps for the codebook [released]


class Interrupted(Exception):  # noqa: N818 (not an error: the run can be resumed)
    """The run was asked to stop and has saved a checkpoint."""


def unheard(phase: str) -> None:
    """Do nothing: nobody measures the phases of a step."""


class Stage(ABC):
    """A loop of training steps over the shared Gaussians. Gaussians and method are kept, and saved, by the trainer.

    `mark` is called with the name of each phase of a step as it begins: view, forward, losses, backward, update,
    density. Whoever measures puts a clock there.
    """

    name: str

    def __init__(self, *, num_steps: int, views: ViewSource, seed: int) -> None:
        """Start with a fresh view order, generator and optimisers."""
        self.num_steps, self.views = num_steps, views
        self.order = ViewOrder(len(views), seed=seed)
        self.generator = torch.Generator().manual_seed(seed + 1)
        self.mark: Callable[[str], None] = unheard
        self.adam, self.method_adam = NamedAdam(eps=_GAUSSIAN_EPS), NamedAdam(eps=_METHOD_EPS)

    @abstractmethod
    def train_step(self, step: int) -> dict[str, Tensor]:
        """Do 0-based `step` and return the unweighted, detached terms."""

    def next_view(self) -> tuple[int, View]:
        """Return the next view of the order and its index among the stage's views."""
        index = self.order.next_index()
        return index, self.views.get(index, then=self.order.peek())

    def progress(self, step: int) -> float:
        """Return the share of the stage that is done before a 0-based step, in [0, 1)."""
        return step / self.num_steps

    def update_method(self, method: Method, progress: float) -> None:
        """Step the method's own parameters and forget their gradients."""
        own, rates = dict(method.named_parameters()), method.rates(progress)
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
