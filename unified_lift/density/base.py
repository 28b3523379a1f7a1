"""What a density strategy is: when and where Gaussians are added and removed while the geometry trains."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from unified_lift.model.gaussians import Gaussians
from unified_lift.model.render import blending_weights
from unified_lift.settings.limits import Range
from unified_lift.types import Camera

State = dict[str, Tensor]
"""What a strategy remembers between steps. The geometry stage owns it and saves it with its checkpoints."""


@dataclass(frozen=True, kw_only=True)
class StrategySettings:
    """The settings of a strategy; flags of their own names."""

    min_contribution: Annotated[float, Range(0, 1)] = 0.0
    """Once, when nothing is added any more, Gaussians go that have no larger share than this of any pixel of any
    training view; 0 = none do. [ours]"""


class DensityStep(NamedTuple):
    """The step that has just been taken."""

    step: int  # 0-based
    num_steps: int  # of the stage
    radius: float  # scene extent, world units
    radii: Tensor  # screen radius of each Gaussian in the view, 0 = not seen, pixels, int32 [N]
    generator: torch.Generator  # for random draws, on the CPU
    noise: torch.Generator  # for draws at every step, on the device of the Gaussians
    rate: float  # learning rate of the positions, world units


class RowOptimizer(Protocol):
    """What a strategy asks of an optimiser."""

    def keep_rows(self, keep: Tensor) -> None: ...
    def append_rows(self, count: int) -> None: ...
    def zero_moments(self, name: str) -> None: ...
    def zero_rows(self, rows: Tensor) -> None: ...


class Strategy(ABC):
    """A density strategy. It holds settings and nothing that changes; `update` must be written.

    Attributes:
        absolute_gradients: Whether `grad_sum` is of sums over pixels of absolute values [AbsGS].
    """

    absolute_gradients: bool = False

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def loss_weights(self, radius: float) -> Mapping[str, float]:
        """Return weights of losses (train/losses) that belong to it, by scene extent; --loss_weights replaces them."""
        return {}

    def begin(self, gaussians: Gaussians) -> None:  # noqa: B027 (most strategies change nothing)
        """Change, in place, the first values of Gaussians that were made from points."""

    def initial_state(self, count: int, device: torch.device) -> State:
        """Return the state for `count` Gaussians before the first step."""
        return {}

    def statistics(self, state: State, step: int, num_steps: int) -> State:
        """Return the tensors [N] of `state` that 0-based `step` is to add to, both or none; to add nothing is faster.

        grad_sum: length of d loss / d position on the screen, NDC units, or with `absolute_gradients` that of the sums
        over pixels of absolute values along both axes; num_seen: 1. Of the Gaussians that are seen.
        """
        return {}

    def last_change(self, num_steps: int) -> int:
        """Return the iteration from which on nothing is added."""
        return num_steps

    @abstractmethod
    def update(self, gaussians: Gaussians, optimizer: RowOptimizer, state: State, info: DensityStep) -> None:
        """Add, remove or change Gaussians, in place, after the Adam step; keep the rows of `state` in line."""


class StrategyEntry(NamedTuple):
    """How a strategy is found: `STRATEGY = StrategyEntry(...)` in its file."""

    name: str  # what --strategy calls it
    settings: type[StrategySettings]  # a frozen dataclass
    build: Callable[[Any], Strategy]  # of the settings


class GradientStrategy(Strategy):
    """A strategy that watches the screen-space gradient of each Gaussian until its last change."""

    def initial_state(self, count: int, device: torch.device) -> State:
        return {"grad_sum": torch.zeros(count, device=device), "num_seen": torch.zeros(count, device=device)}

    def statistics(self, state: State, step: int, num_steps: int) -> State:
        return state if step + 1 < self.last_change(num_steps) else {}

    @staticmethod
    def gradient(state: State) -> Tensor:
        """Return the mean length of the gradient over the views that saw each Gaussian, NDC units, [N]."""
        return state["grad_sum"] / state["num_seen"].clamp(min=1)


def budget(count: int, most: int, *, step: int, last: float, interval: int) -> int:
    """Return how many Gaussians there are after the round of a 0-based step, on the way from `count` to `most`.

    Source: ours, N_(k+1) = N_k (most / N_k)^(1 / rounds left), no fewer than there are. The last round is at `last`.
    """
    rounds = int((last - step) / interval) + 1
    return max(count, most if rounds <= 1 else round(count * (most / max(count, 1)) ** (1 / rounds)))


@torch.no_grad()
def contributions(gaussians: Gaussians, cameras: Iterable[Camera]) -> Tensor:
    """Return the largest blending weight of each Gaussian in any pixel of any view, [N]; 0 = not seen.

    Source: the pruning score of Fang and Wang 2024 (Mini-Splatting) and Niemeyer et al. 2024 (RadSplat), Eq. 9.
    """
    most = torch.zeros(len(gaussians), device=gaussians.device)
    for camera in cameras:
        found = blending_weights(gaussians, camera, min_weight=0.0)
        most.scatter_reduce_(0, found.gaussian_ids.long(), found.weights, "amax")
    return most


def keep_rows(gaussians: Gaussians, optimizer: RowOptimizer, state: State, keep: Tensor) -> None:
    """Remove the Gaussians where `keep` [N] is False, with their moments and their rows of `state`."""
    optimizer.keep_rows(keep)
    for name, value in list(gaussians):
        gaussians.set(name, value.detach()[keep])
    state |= {name: value[keep] for name, value in state.items()}


def append_rows(gaussians: Gaussians, optimizer: RowOptimizer, *new: dict[str, Tensor]) -> None:
    """Add Gaussians, given as tables of all parameters, with zero moments."""
    optimizer.append_rows(sum(len(table["means"]) for table in new))
    for name, value in list(gaussians):
        gaussians.set(name, torch.cat([value.detach(), *(table[name] for table in new)]))
