"""What a lifting method is: losses on rendered features, and ids read off them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from unified_lift.errors import UserError
from unified_lift.model.initialize import random_features
from unified_lift.types import Camera, ZeroId

Observation = tuple[Tensor, Tensor, int]
"""Rendered features [P, D] and slots int32 [P] of pixels of one training view, and its number of segments.

A slot is the dense index of a pixel's segment, -1 = no label; some segments of the view may have no pixel here."""


class Segmentation(NamedTuple):
    """Ids read off features: object ids int64 [...] and confidence in [0, 1] [...]."""

    object_ids: Tensor
    confidence: Tensor


class LabelledView(NamedTuple):
    """A training view with a mask, as a method may look at it before the lift.

    Attributes:
        name: Of the view; views come in the order of the dataset.
        camera: Its camera.
        slots: Dense segment index of each pixel, -1 = no label, int32 [H, W].
        segment_ids: The id that each slot has in the mask file, int64 [S], rising.
    """

    name: str
    camera: Camera
    slots: Tensor
    segment_ids: Tensor


class LiftData(NamedTuple):
    """What a method may look at before the lift: the frozen geometry and all labelled training views.

    Attributes:
        means: Centres of the Gaussians, world units, [N, 3].
        views: Walks over the views; the number of a view in this walk is what `losses` calls `view`.
    """

    means: Tensor
    views: Callable[[], Iterator[LabelledView]]


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """What every method has."""

    feature_dim: int = 16
    """D, width of the instance features [paper 4.1]."""
    zero_id: Literal["auto", "segment", "ignore"] = "auto"
    """What segment id 0 is: `auto` = what the dataset says. [ours] the released code always makes it a segment."""

    def check(self) -> None:
        """Raise a UserError naming the flag whose value makes no sense."""
        if self.feature_dim < 1:
            raise UserError(f"--feature_dim must be at least 1, received {self.feature_dim}")


class Method(ABC):
    """A lifting method. It sees rendered features and ids of one view at a time, never data, renderer or trainer.

    Only `losses`, `rates`, `segment` and `num_objects` must be written; the rest does nothing unless a method needs it.
    """

    weights: dict[str, float]
    """Factor of each term; a term without one counts once."""
    allows_joint = False
    """Whether it can be trained in one loop with the geometry, while Gaussians come and go."""

    def __init__(self, settings: Any, *, zero_id: ZeroId, seed: int) -> None:
        """Create the method for a dataset in which id 0 means `zero_id`."""
        self.settings = settings
        self.feature_dim: int = settings.feature_dim
        self.ignore_zero = (zero_id if settings.zero_id == "auto" else settings.zero_id) == "ignore"
        """Whether segment id 0 means "unlabelled" (slot -1) rather than a segment of its own."""
        self.generator = torch.Generator().manual_seed(seed)
        """For draws on the CPU, so that a seed means the same everywhere."""
        self.device = torch.device("cpu")
        self.weights = {}

    # ---- what must be written ----

    @abstractmethod
    def losses(
        self, features: Tensor, slot: Tensor, num_segments: int, progress: float, *, view: int
    ) -> dict[str, Tensor]:
        """Return unweighted terms for one view. On a GPU the host must not wait.

        Args:
            features: Rendered features, [P, D].
            slot: Segment of each pixel, int32 [P], -1 = none.
            num_segments: S; some may have no pixel here.
            progress: Share of the schedule done, in [0, 1).
            view: Number of the view among those that `prepare` was shown; -1 while a GPU records a step (see `phase`).
        """

    @abstractmethod
    def rates(self, progress: float) -> dict[str, float]:
        """Return the learning rate of each own parameter and of `features` at `progress` in [0, 1]."""

    @abstractmethod
    def segment(self, features: Tensor) -> Segmentation:
        """Return object ids of features [..., D]; zeros where nothing is known yet."""

    @property
    @abstractmethod
    def num_objects(self) -> int:
        """Return how many ids `segment` chooses from; 0 = nothing is known yet."""

    # ---- what a method may also do ----

    @property
    def statistics(self) -> dict[str, float]:
        """Return numbers about the last step for the log; reading them may wait for the device."""
        return {}

    def initial_features(self, count: int) -> Tensor:
        """Return start features [count, D]; random unit vectors unless a method says otherwise."""
        return random_features(count, self.feature_dim, unit=True, generator=self.generator)

    def parameters(self) -> dict[str, Tensor]:
        """Return the method's own leaf tensors (the features belong to the Gaussians)."""
        return {}

    def prepare(self, data: LiftData) -> None:
        """Look at geometry and masks before the first step, also of a resumed run.

        What is made here must follow from the data alone; parameters that a checkpoint has brought stay.
        """

    def before_step(self, progress: float, observe: Callable[[], Iterable[Observation]]) -> None:
        """Do what happens once, such as starting a codebook from the data; `observe` walks over all training views."""

    def gaussian_terms(self, features: Tensor, means: Tensor, step: int) -> dict[str, Tensor]:
        """Return unweighted terms on the Gaussians themselves: features [N, D], means [N, 3], 0-based step."""
        return {}

    def after_step(self, features: Tensor) -> None:
        """Change the features [N, D] of all Gaussians in place after their step, under no_grad."""

    def finish(self, observe: Callable[[], Iterable[Observation]]) -> None:
        """Do what comes after the last step, such as clustering what was learnt."""

    def summary(self) -> dict[str, Any]:
        """Return what is worth keeping about the finished method beside its scores, ready for JSON."""
        return {}

    def phase(self, progress: float, num_pixels: int) -> Hashable | None:
        """Return what tells apart the programs that `losses` runs on that many pixels: equal phases, equal programs.

        A GPU then replays a program instead of running Python again. None: it must not, as where numbers are drawn,
        the view matters, or `gaussian_terms` depends on the step.
        """
        return None

    def final_features(self) -> FinalFeatures | None:
        """Return how features are made anew once all is trained; None: Gaussians keep what they learnt."""
        return None

    def association(self, features: Tensor) -> Tensor:
        """Return the probability of every object for features [..., D], [..., L]; only evaluation asks.

        A method that is never in doubt gives all of it to the id that `segment` returns.
        """
        ids = self.segment(features).object_ids[..., None]
        return features.new_zeros(*features.shape[:-1], self.num_objects).scatter_(-1, ids, 1.0)

    @property
    def candidates(self) -> tuple[str, ...]:
        """Return the names of the segmentations among which `finish` chose; usually there is only one and none here."""
        return ()

    @property
    def chosen_candidate(self) -> str | None:
        """Return which of them `segment` uses."""
        return None

    def with_candidate(self, name: str) -> Method:
        """Return a method that segments as the candidate `name` does; only evaluation asks."""
        raise KeyError(name)

    # ---- state ----

    def to(self, device: torch.device) -> None:
        """Move the own parameters to `device`."""
        self.device = device
        for name, value in self.parameters().items():
            setattr(self, name, value.detach().to(device).requires_grad_(True))

    @abstractmethod
    def reorder(self, order: Tensor) -> None:
        """Renumber the objects: id i becomes what id `order[i]` was."""

    def object_state(self) -> Tensor | dict[str, Tensor]:
        """Return what `segment` needs, as it is saved beside the Gaussians."""
        return {name: value.detach() for name, value in self.parameters().items()}

    def load_object_state(self, state: Tensor | Mapping[str, Tensor]) -> None:
        """Take what `object_state` returned."""
        for name, value in state.items():
            setattr(self, name, value.to(self.device, copy=True).requires_grad_(True))

    def state_dict(self) -> dict:
        """Return everything needed to go on."""
        own = {name: value.detach().clone() for name, value in self.parameters().items()}
        return own | {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict) -> None:
        """Take what `state_dict` returned."""
        for name, value in state.items():
            if isinstance(value, Tensor) and name != "generator":
                setattr(self, name, value.to(self.device, copy=True).requires_grad_(True))
        self.generator.set_state(state["generator"])


class FinalFeatures(NamedTuple):
    """How the features of a finished model are made.

    Attributes:
        codes: Unit feature of each object, [L, D]. Each Gaussian gets their mean, weighted by the share of its blending
            weight in the pixels of each object to a power.
        power: The power.
        sharpen_steps: Steps that train these means to explain the training pixels; -1 = as many as the views ask for.
    """

    codes: Tensor
    power: float
    sharpen_steps: int


class MethodEntry(NamedTuple):
    """How a method is found: `METHOD = MethodEntry(...)` in its file.

    Attributes:
        name: What --method calls it; `unified_lift/settings/presets/<name>.yaml` holds its preset.
        settings: Its settings, a frozen dataclass.
        build: Makes it: (settings, zero_id=..., seed=...).
    """

    name: str
    settings: type[MethodSettings]
    build: Callable[..., Method]
