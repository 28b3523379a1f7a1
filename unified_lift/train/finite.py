"""The watch that no loss and nothing that is saved is NaN or infinite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

_CAPACITY = 1_000  # steps that are recorded without a check


class TermRecord:
    """The loss terms of recent steps, kept where they were computed: one small copy per step, no waiting for a GPU.

    `require_finite` comes before anything is written or reported; then the host waits, once for all steps.
    """

    def __init__(self) -> None:
        self._recent: list[tuple[int, tuple[str, ...], Tensor]] = []
        self._last: dict[str, float] = {}

    def add(self, step: int, terms: Mapping[str, Tensor]) -> None:
        """Record the scalar terms of a 0-based step; the tensors may be overwritten afterwards."""
        self._recent.append((step, tuple(terms), torch.stack(tuple(terms.values()))))
        if len(self._recent) >= _CAPACITY:
            self.require_finite()

    def require_finite(self) -> dict[str, float]:
        """Return the terms of the last recorded step; those of all steps since the last call are checked.

        Raises:
            FloatingPointError: A term is NaN or infinite; the message names the first such step and its terms.
        """
        if not self._recent:
            return self._last
        values = iter(torch.cat([row for _, _, row in self._recent]).tolist())
        steps = [(step, {name: next(values) for name in names}) for step, names, _ in self._recent]
        self._recent.clear()
        self._last = steps[-1][1]
        for step, terms in steps:
            if not all(map(math.isfinite, terms.values())):
                listed = ", ".join(f"{name} = {value:g}" for name, value in terms.items())
                raise FloatingPointError(f"the loss is not finite at step {step}: {listed}")
        return self._last


def require_finite_state(tensors: Iterable[tuple[str, Tensor]], step: int) -> None:
    """Check what is about to be saved: a finite loss may have had a gradient that was not.

    Args:
        tensors: Name and value of each tensor; those of integers count as finite.
        step: Steps done, for the message.
    Raises:
        FloatingPointError: A tensor holds NaN or infinity; the message names the first such one.
    """
    for name, value in tensors:
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            count = int((~torch.isfinite(value)).sum())
            raise FloatingPointError(f"{name} holds {count} values that are not finite after {step} steps")
