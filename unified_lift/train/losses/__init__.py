"""Further losses of the geometry stage, one file each; a file with a `LOSS` is a loss, and a weight turns it on."""

import math
from collections.abc import Mapping, Sequence

from unified_lift.errors import UserError
from unified_lift.registry import members
from unified_lift.train.losses.base import GeometryLoss

LOSSES: dict[str, GeometryLoss] = {loss.name: loss for loss in members(__name__, "LOSS")}
"""All losses by name."""


def chosen_losses(words: Sequence[str], weights: Mapping[str, float] | None = None) -> dict[GeometryLoss, float]:
    """Return the losses of `--loss_weights`, NAME=WEIGHT each, and of `weights`, which they replace, without zeros.

    A UserError names a wrong word.
    """
    chosen = {LOSSES[name]: weight for name, weight in (weights or {}).items()}
    for word in words:
        name, _, weight = word.partition("=")
        if name not in LOSSES:
            raise UserError(f"--loss_weights {word}: no such loss; there are {', '.join(sorted(LOSSES)) or 'none'}")
        try:
            chosen[LOSSES[name]] = float(weight)
            if not math.isfinite(float(weight)):
                raise ValueError(weight)
        except ValueError:
            raise UserError(f"--loss_weights {word}: write NAME=WEIGHT, such as {name}=0.1") from None
    return {loss: weight for loss, weight in chosen.items() if weight}
