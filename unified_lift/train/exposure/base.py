"""What a kind of exposure compensation is: a map of colours per training photo, learnt and never used elsewhere."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from unified_lift.modelfolder.settings import GeometrySettings


class ExposureKind(NamedTuple):
    """How a kind is found: `EXPOSURE = ExposureKind(...)` in a file of this folder; `--exposure NAME` turns it on.

    Its parameters are one tensor of any shape per photo. `apply` and `penalty` are differentiable.
    """

    name: str  # what --exposure calls it
    what: str  # in a few words, for the line that is printed
    identity: Callable[[GeometrySettings, int, int], Tensor]  # of photos so wide and high: what changes no colour
    apply: Callable[[Tensor, Tensor], Tensor]  # parameters, rendering [H, W, 3] -> as the photo has it [H, W, 3]
    matrix: Callable[[Tensor], Tensor]  # parameters in short, for people: a colour matrix [3, 4]
    centred: Callable[[Tensor], Tensor]  # of all photos [V, ...] -> moved alike, so that their mean changes no colour
    rate: float  # first rate of Adam
    last_share: float  # of it, at the end
    warm_up: float = 0.0  # share of the steps over which the first rate is reached
    penalty: Callable[[Tensor], Tensor] | None = None  # parameters -> a scalar that keeps them plain
