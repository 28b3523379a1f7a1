"""Adam with one state per named parameter, which survives adding and removing rows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from diff_gaussian_rasterization import AdamState, PixelWeights, adam_steps
from torch import Tensor


class NamedAdam:
    """Adam (Kingma and Ba) of named leaf tensors; rows can be kept, appended and zeroed as Gaussians come and go.

    A gradient that is the mean of `batch` views moves as far as they would one by one: rates are times sqrt(batch) and
    betas to the power of batch. Source: Zhao et al. 2024 (Grendel-GS). `steps` counts views.
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


class RowAdam:
    """Adam of a matrix whose gradient is zero but for some rows: only these are read and written.

    A row that has no gradient moves on by what its moments say. When it is touched again, or asked for, it makes up for
    all steps since step s at once: with r = beta1 / sqrt(beta2), until step t it has moved by m / (sqrt(v) + eps) times
    sum over u = s + 1 ... t of rate_u sqrt(1 - beta2^u) / (1 - beta1^u) r^(u - s). So every step costs what it touches,
    and the result is that of `NamedAdam` within rounding, where eps is far below the gradients.

    Source: ours; Algorithm 1 of Kingma and Ba 2015 with gradients of zero.
    """

    _WINDOW = 400  # r^400 = 6e-19: a row that was not touched for longer stays where it is

    def __init__(self, adam: NamedAdam, name: str, value: Tensor, num_steps: int) -> None:
        """Share moments and step of parameter `name` of an optimiser with it; `value` [N, D] is changed in place."""
        self._adam, self._name, self._value = adam, name, value.detach()
        beta1, beta2 = (adam.constants[which] for which in ("beta1", "beta2"))
        ratio = torch.tensor(beta1 / beta2**0.5, dtype=torch.float64, device=value.device)
        self._powers = ratio ** torch.arange(self._WINDOW, 0, -1, device=value.device)
        self._last = torch.zeros(len(value), dtype=torch.int32, device=value.device)  # step that touched each row last
        self._drift = torch.zeros(num_steps + 1, dtype=torch.float64, device=value.device)  # the sum above, of each s
        self._place = torch.zeros_like(self._last)  # scratch: of rows among those of a step
        self._open: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    @property
    def _step(self) -> int:
        return -(-self._adam.steps.get(self._name, 0) // self._adam.batch)

    def begin(self, weights: Sequence[PixelWeights]) -> tuple[list[PixelWeights], Tensor]:
        """Return the weights as of the rows that they mention alone, and these rows as they are now, a leaf [R, D]."""
        is_mentioned = torch.zeros(len(self._value), dtype=torch.bool, device=self._value.device)
        for each in weights:
            is_mentioned.index_fill_(0, each.gaussian_ids.long(), True)
        rows = is_mentioned.nonzero()[:, 0]
        self._place[rows] = torch.arange(len(rows), dtype=torch.int32, device=rows.device)
        narrow = [
            replace(each, gaussian_ids=self._place.index_select(0, each.gaussian_ids), num_gaussians=len(rows))
            for each in weights
        ]
        return narrow, self.rows(rows).requires_grad_(True)

    @torch.no_grad()
    def rows(self, rows: Tensor) -> Tensor:
        """Begin a step of rows, int64 [R], and return them as they are now, [R, D]."""
        constants, last = self._adam.constants, self._last.index_select(0, rows)
        m, v = (moment.index_select(0, rows) for moment in self._moments())
        value, away = self._value.index_select(0, rows), (self._step - last).double()[:, None]
        moved = self._drift.index_select(0, last)[:, None].to(value.dtype)
        value -= moved * m / (v.sqrt() + constants["eps"])
        m *= (constants["beta1"] ** away).to(m.dtype)
        v *= (constants["beta2"] ** away).to(v.dtype)
        self._open = rows, value, m, v
        return value

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Take the step of the rows that were begun, by their gradient."""
        assert self._open is not None
        _, value, m, v = self._open
        gradient = torch.zeros_like(value) if value.grad is None else value.grad
        _, _, rate, step = self._adam.states({self._name: self._value}, {self._name: rate})[self._name]
        adam_steps([(value.detach(), gradient, AdamState(m, v, rate, step))], **self._adam.constants)
        beta1, beta2 = (self._adam.constants[which] for which in ("beta1", "beta2"))
        count, size = min(step, self._WINDOW), rate * (1 - beta2**step) ** 0.5 / (1 - beta1**step)
        self._drift[step - count : step].add_(self._powers[self._WINDOW - count :], alpha=size)
        self._put_back()

    @torch.no_grad()
    def settle(self) -> None:
        """Bring all rows to the last step."""
        for rows in torch.arange(len(self._value), device=self._last.device).split(2**18):
            self.rows(rows)
            self._put_back()

    def state_dict(self) -> dict[str, Any]:
        """Return what is not in the state of the optimiser."""
        return {"last": self._last, "drift": self._drift[: self._step + 1], "batch": self._adam.batch}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Take what `state_dict` returned; None, or steps of another number of views: all rows are at the last step."""
        if state is None or state["batch"] != self._adam.batch:
            self._last.fill_(self._step)
        else:
            self._last.copy_(state["last"])
            self._drift[: len(state["drift"])] = state["drift"].to(self._drift.device)

    def _moments(self) -> tuple[Tensor, Tensor]:
        moments = self._adam.moments
        found = moments.get(self._name) or (torch.zeros_like(self._value), torch.zeros_like(self._value))
        first, second = (moment.to(self._value.device) for moment in found)  # from a checkpoint: on the CPU
        moments[self._name] = first, second
        return first, second

    def _put_back(self) -> None:
        assert self._open is not None
        rows, *values = self._open
        for whole, part in zip((self._value, *self._moments()), values, strict=True):
            whole.index_copy_(0, rows, part.detach())
        self._last.index_fill_(0, rows, self._step)
        self._open = None
