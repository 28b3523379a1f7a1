"""From unweighted loss terms to the one number that is minimised."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the sum of weight x term: the only place where weights appear. A term without weight counts once."""
    return torch.stack([weights.get(name, 1.0) * value for name, value in terms.items()]).sum()


def require_finite(total: Tensor, terms: Mapping[str, Tensor], step: int) -> None:
    """Stop before NaN spreads.

    Raises:
        FloatingPointError: The total is not finite; the message names the terms and the step.
    """
    if not bool(torch.isfinite(total)):
        values = ", ".join(f"{name} = {float(value):g}" for name, value in terms.items())
        raise FloatingPointError(f"the loss is not finite at step {step}: {values}")
