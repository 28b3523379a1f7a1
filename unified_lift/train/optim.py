"""Adam with one state per named parameter, which survives adding and removing rows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diff_gaussian_rasterization import AdamState, adam_steps
from torch import Tensor


class NamedAdam:
    """Adam over a table of named leaf tensors; rows can be kept, appended and zeroed as Gaussians come and go.

    Source: Kingma and Ba; eps 1e-15 for Gaussians [3DGS], so that a global factor on a loss changes nothing.
    """

    def __init__(self, *, eps: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        """Create an optimiser without state; moments appear with the first step of each name."""
        self.eps, self.betas = eps, betas
        self.moments: dict[str, tuple[Tensor, Tensor]] = {}
        self.steps: dict[str, int] = {}

    def step(self, table: Mapping[str, Tensor], rates: Mapping[str, float]) -> None:
        """Update in place every parameter of `table` that has a gradient, with its rate from `rates`."""
        states = self.states(table, {name: rate for name, rate in rates.items() if table[name].grad is not None})
        updates = [(table[name].detach(), table[name].grad, state) for name, state in states.items()]
        adam_steps(updates, beta1=self.betas[0], beta2=self.betas[1], eps=self.eps)

    def states(self, table: Mapping[str, Tensor], rates: Mapping[str, float]) -> dict[str, AdamState]:
        """Return moments, rate and step of the parameters in `rates`, for a step that is about to be taken."""
        return {name: self._next(name, table[name], rate) for name, rate in rates.items()}

    def _next(self, name: str, value: Tensor, rate: float) -> AdamState:
        """Count a step of one parameter; see that its moments exist and are where it is."""
        if name not in self.moments:
            self.moments[name] = (torch.zeros_like(value), torch.zeros_like(value))
            self.steps[name] = 0
        self.steps[name] += 1
        first, second = self.moments[name]
        if first.device != value.device:  # loaded from a checkpoint
            self.moments[name] = first, second = first.to(value.device), second.to(value.device)
        return AdamState(first, second, rate, self.steps[name])

    def keep_rows(self, keep: Tensor) -> None:
        """Drop the moments of the rows where `keep` [N] is False."""
        self.moments = {name: (m[keep], v[keep]) for name, (m, v) in self.moments.items()}

    def append_rows(self, count: int) -> None:
        """Give `count` new rows zero moments."""
        self.moments = {
            name: tuple(torch.cat([x, x.new_zeros(count, *x.shape[1:])]) for x in pair)
            for name, pair in self.moments.items()
        }

    def zero_moments(self, name: str) -> None:
        """Forget the moments of one parameter, as an opacity reset does."""
        for moment in self.moments.get(name, ()):
            moment.zero_()

    def state_dict(self) -> dict:
        """Return moments, not copies, and step counts."""
        return {"moments": dict(self.moments), "steps": dict(self.steps)}

    def load_state_dict(self, state: dict) -> None:
        """Take what `state_dict` returned."""
        self.moments = {k: (m.clone(), v.clone()) for k, (m, v) in state["moments"].items()}
        self.steps = dict(state["steps"])
