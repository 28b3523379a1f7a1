"""Adam with one state per named parameter, which survives adding and removing rows."""

import math
from collections.abc import Mapping

import torch
from diff_gaussian_rasterization import AdamState, adam_steps
from torch import Tensor


class NamedAdam:
    """Adam (Kingma and Ba) of named leaf tensors; rows can be kept, appended and zeroed as Gaussians come and go.

    A gradient that is the mean of `batch` views moves as far as they would one by one: rates are times sqrt(batch) and
    betas to the power of batch. Source: Zhao et al. 2024 (Grendel-GS), section 4.3. `steps` counts views.
    """

    def __init__(self, *, eps: float, batch: int = 1) -> None:
        self.batch = batch
        self.constants = {"beta1": 0.9**batch, "beta2": 0.999**batch, "eps": eps}
        self.moments: dict[str, tuple[Tensor, Tensor]] = {}
        self.steps: dict[str, int] = {}

    def step(self, table: Mapping[str, Tensor], rates: Mapping[str, float]) -> None:
        """Update in place every parameter of `table` that has a gradient, with its rate from `rates`."""
        states = self.states(table, {name: rate for name, rate in rates.items() if table[name].grad is not None})
        updates = [(table[name].detach(), table[name].grad, state) for name, state in states.items()]
        adam_steps(updates, **self.constants)

    def states(self, table: Mapping[str, Tensor], rates: Mapping[str, float]) -> dict[str, AdamState]:
        """Return moments, rate and step of the parameters in `rates`, for a step that is about to be taken."""
        for name in rates:
            value = table[name]
            first, second = self.moments.get(name) or (torch.zeros_like(value), torch.zeros_like(value))
            self.moments[name] = first.to(value.device), second.to(value.device)  # from a checkpoint: on the CPU
            self.steps[name] = self.steps.get(name, 0) + self.batch
        factor = math.sqrt(self.batch)
        return {
            name: AdamState(*self.moments[name], factor * rate, -(-self.steps[name] // self.batch))
            for name, rate in rates.items()
        }

    def keep_rows(self, keep: Tensor) -> None:
        """Drop the moments of the rows where `keep` [N] is False."""
        self.moments = {name: (m[keep], v[keep]) for name, (m, v) in self.moments.items()}

    def append_rows(self, count: int) -> None:
        """Give `count` new rows zero moments."""
        for name, (m, v) in self.moments.items():
            zeros = m.new_zeros(count, *m.shape[1:])
            self.moments[name] = torch.cat([m, zeros]), torch.cat([v, zeros])

    def zero_moments(self, name: str) -> None:
        """Forget the moments of one parameter, as an opacity reset does."""
        for moment in self.moments.get(name, ()):
            moment.zero_()

    def zero_rows(self, rows: Tensor) -> None:
        """Forget the moments of these rows, int64 [n], of all parameters."""
        for moments in self.moments.values():
            for moment in moments:
                moment.index_fill_(0, rows, 0)

    def state_dict(self) -> dict:
        return {"moments": dict(self.moments), "steps": dict(self.steps)}

    def load_state_dict(self, state: dict) -> None:
        self.moments = {name: (m.clone(), v.clone()) for name, (m, v) in state["moments"].items()}
        self.steps = dict(state["steps"])
