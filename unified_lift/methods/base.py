"""What a lifting method is: losses on rendered features, and ids read off them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Observation = tuple[Tensor, Tensor, int]
"""Rendered features [P, D] and slots int32 [P] of pixels of one training view, and its number of segments.

A slot is the dense index of a pixel's segment, -1 = no label; some segments of the view may have no pixel here."""


class Segmentation(NamedTuple):
    """Ids read off features: object ids int64 [...] and confidence in [0, 1] [...]."""

    object_ids: Tensor
    confidence: Tensor


class Method(Protocol):
    """A lifting method. It sees rendered features and ids of one view at a time, never data, renderer or trainer."""

    feature_dim: int
    weights: dict[str, float]
    ignore_zero: bool
    """Whether segment id 0 means "unlabelled" (slot -1) rather than a segment of its own."""

    @property
    def statistics(self) -> dict[str, float]:
        """Return numbers about the last step for the log; reading them may wait for the device."""

    def initial_features(self, count: int) -> Tensor:
        """Return start features [count, D]."""

    def parameters(self) -> dict[str, Tensor]:
        """Return the method's own leaf tensors (the features belong to the Gaussians)."""

    def rates(self, progress: float) -> dict[str, float]:
        """Return the learning rate of each own parameter and of `features` at `progress` in [0, 1]."""

    def before_step(self, progress: float, observe: Callable[[], Iterable[Observation]]) -> None:
        """Do what happens once, such as starting a codebook from the data; `observe` walks over all training views."""

    def losses(self, features: Tensor, slot: Tensor, num_segments: int, progress: float) -> dict[str, Tensor]:
        """Return unweighted terms for one view: features [P, D], slot int32 [P]. On a GPU the host must not wait."""

    def phase(self, progress: float, num_pixels: int) -> Hashable | None:
        """Return what tells apart the programs that `losses` runs on that many pixels: equal phases, equal programs.

        A GPU then replays a program instead of running Python again. None: it must not, as where numbers are drawn.
        """

    def segment(self, features: Tensor) -> Segmentation:
        """Return object ids of features [..., D]."""

    def to(self, device: torch.device) -> None:
        """Move the own parameters to `device`."""

    def reorder(self, order: Tensor) -> None:
        """Renumber the objects: id i becomes what id `order[i]` was."""

    def state_dict(self) -> dict:
        """Return everything needed to go on."""

    def load_state_dict(self, state: dict) -> None:
        """Take what `state_dict` returned."""
