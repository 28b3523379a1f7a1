"""What a lifting method is: losses on rendered features, and ids read off them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from unified_lift.model.initialize import random_features
from unified_lift.ops.rng import StepRng
from unified_lift.settings.limits import Range, check_ranges
from unified_lift.types import Camera, ZeroId


class ViewPixels(NamedTuple):
    """Pixels of one training view, as a method sees them."""

    features: Tensor  # rendered, [P, D]
    slot: Tensor  # local segment index: the dense index of each pixel's segment in its view, int32 [P], -1 = no label
    num_segments: int  # S, of the view; some may have no pixel here
    # Known where all views are walked over:
    points: Tensor | None = None  # what each pixel shows, in world units, [P, 3]
    segment_ids: Tensor | None = None  # the id that each slot has in the mask file, int64 [S], rising


class StepInfo(NamedTuple):
    """What `losses` may know beside the pixels; step and view are -1 while a GPU records a step (see `graph_key`)."""

    progress: float  # share of the schedule done, in [0, 1)
    step: int  # 0-based
    view: int  # number of the view among those that `prepare` was shown
    gaussian_features: Tensor  # of all Gaussians, [N, D], for terms on the Gaussians themselves


TrainingViews = Callable[[], Iterator[ViewPixels]]  # walks over all labelled training views with their features now


class Segmentation(NamedTuple):
    """Ids read off features: object ids int64 [...] and confidence in [0, 1] [...]."""

    object_ids: Tensor
    confidence: Tensor


class LabelledView(NamedTuple):
    """A training view with a mask, before the lift."""

    name: str
    camera: Camera
    slots: Tensor  # local segment index of each pixel, -1 = no label, int32 [H, W]
    segment_ids: Tensor  # the id that each slot has in the mask file, int64 [S], rising


class LiftData(NamedTuple):
    """The finished geometry and the masks that are to be lifted to it."""

    means: Tensor  # centres of the Gaussians, [N, 3]
    views: Callable[[], Iterator[LabelledView]]  # walks over all labelled views, in which `StepInfo.view` counts


class FinalFeatures(NamedTuple):
    """How the features of a finished model are made: each Gaussian gets a mean of unit features of the objects."""

    codes: Tensor  # the unit features, [L, D]
    power: float  # their weights: the share of the Gaussian's blending weight in the object's pixels to this power
    refine_steps: int  # that train these means to explain the training pixels; -1 = as many as the views ask for


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """What every method has. A field `weight_<term>` is the factor of that term of the loss."""

    feature_dim: Annotated[int, Range(1, 1024)] = 16
    """D, width of the instance features [paper 4.1]."""
    zero_id: Literal["auto", "segment", "ignore"] = "auto"
    """What segment id 0 is: `auto` = what the dataset says. [ours] the released code always makes it a segment."""

    def check(self) -> None:
        """Raise a UserError naming the flag whose value makes no sense; limits are the `Range` of a field."""
        check_ranges(self)


class Method(nn.Module, ABC):
    """A lifting method. It sees rendered features and ids of one view at a time, never data, renderer or trainer.

    Its own tensors are parameters and buffers. Only `losses`, `rates`, `logits` and `object_tables` must be written.
    """

    object_tables: ClassVar[tuple[str, ...]]  # names of the parameters and buffers with one row for each object
    working_tables: ClassVar[tuple[str, ...]] = ()  # names of others, which only checkpoints keep
    allows_joint: ClassVar[bool] = False  # whether it can be trained while Gaussians come and go
    is_local: ClassVar[bool] = False  # whether `losses` and `after_step` look at no Gaussians but through the pixels

    def __init__(self, settings: Any, *, zero_id: ZeroId, seed: int) -> None:
        """Create the method for a dataset in which id 0 means `zero_id`."""
        super().__init__()
        self.settings = settings
        self.feature_dim: int = settings.feature_dim
        # Whether segment id 0 means "unlabelled" (slot -1) rather than a segment of its own.
        self.ignore_zero = (zero_id if settings.zero_id == "auto" else settings.zero_id) == "ignore"
        factors = {name: value for name, value in vars(settings).items() if name.startswith("weight_")}
        self.weights = {name.removeprefix("weight_"): value for name, value in factors.items()}  # 1 for other terms
        self.summary: dict[str, Any] = {}  # facts about the finished method for manifest.json
        self.generator = torch.Generator().manual_seed(seed)  # on the CPU, so that a seed means the same everywhere
        self.step_rng, self.num_draws = StepRng(seed), 0

    # ---- training ----

    @abstractmethod
    def losses(self, pixels: ViewPixels, info: StepInfo) -> dict[str, Tensor]:
        """Return unweighted terms for pixels of one view. On a GPU the host must not wait."""

    @abstractmethod
    def rates(self, progress: float) -> dict[str, float]:
        """Return the learning rate of each own parameter and of `features` at `progress` in [0, 1]."""

    def initial_features(self, count: int) -> Tensor:
        """Return start features [count, D]; random unit vectors unless a method says otherwise."""
        return random_features(count, self.feature_dim, unit=True, generator=self.generator)

    def graph_key(self, progress: float, num_pixels: int) -> Hashable | None:
        """Return a key while which stays the same a GPU may replay the CUDA graph of `losses` on that many pixels.

        None: it must not, as where numbers are drawn, or where step or view matter.
        """
        return None

    # ---- what may be done at moments of a training ----

    def prepare(self, data: LiftData) -> None:
        """Look at geometry and masks before the first step, also of a resumed run: parameters of a checkpoint stay."""

    def before_step(self, progress: float, views: TrainingViews) -> None:
        """Do what happens once, such as starting a codebook from the data."""

    def after_step(self, features: Tensor) -> None:
        """Change the features [N, D] of all Gaussians in place after their step, under no_grad."""

    def finish(self, views: TrainingViews) -> None:
        """Do what comes after the last step, such as clustering what was learnt."""

    @property
    def statistics(self) -> dict[str, float]:
        """Return numbers about the last step for the log; reading them may wait for the device."""
        return {}

    # ---- objects ----

    @abstractmethod
    def logits(self, features: Tensor) -> Tensor:
        """Return the score of every object for features [P, D], [P, L]."""

    def association(self, features: Tensor) -> Tensor:
        """Return the probability of every object for features [P, D], [P, L]."""
        return torch.softmax(self.logits(features), dim=1)

    @property
    def num_objects(self) -> int:
        """Return the number of objects L; 0 = nothing is known yet."""
        return len(getattr(self, self.object_tables[0]))

    def segment(self, features: Tensor, *, max_association: int = 2**24) -> Segmentation:
        """Return the most probable object for features [..., D], and its probability; zeros where nothing is known.

        At most `max_association` probabilities are in memory at once.
        """
        shape = features.shape[:-1]
        if not self.num_objects:
            zeros = torch.zeros(shape, device=features.device)
            return Segmentation(zeros.long(), zeros)
        parts = features.reshape(-1, features.shape[-1]).split(max(1, max_association // self.num_objects))
        confidence, ids = zip(*(self.association(part).max(dim=1) for part in parts), strict=True)
        return Segmentation(torch.cat(ids).view(shape), torch.cat(confidence).view(shape))

    def vote(self, features: Tensor, points: Tensor) -> Tensor:
        """Return the object for which pixels of features [P, D], at points [P, 3], vote, int64 [P]; -1 = none."""
        return self.segment(features).object_ids

    def reorder(self, order: Tensor) -> None:
        """Renumber the objects: id i becomes what id `order[i]` was."""
        for name in self.object_tables:
            self._set_tensor(name, getattr(self, name)[order])

    def candidates(self) -> dict[str, Method]:
        """Return by name the segmentations among which `finish` chose; usually there is only one and none here."""
        return {}

    def final_features(self) -> FinalFeatures | None:
        """Return how features are made anew once all is trained; None: Gaussians keep what they learnt."""
        return None

    def object_state(self) -> Tensor | dict[str, Tensor]:
        """Return what `segment` needs, as it is saved beside the Gaussians: the only table itself, or all by name."""
        tables = {name: getattr(self, name).detach() for name in self.object_tables}
        return tables if len(tables) > 1 else tables[self.object_tables[0]]

    def load_object_state(self, state: Any) -> None:
        """Take what `object_state` returned."""
        for name in self.object_tables:
            table = state if isinstance(state, Tensor) else state[name]
            if table.ndim != getattr(self, name).ndim:  # many codes are wider than the features that were learnt
                raise ValueError(f"{name} is {list(table.shape)}, one row an object")
            self._set_tensor(name, table)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return everything needed to go on."""
        names = (*dict(self.named_parameters()), *self.working_tables)
        own = {name: getattr(self, name).detach().clone() for name in names}
        return own | {"generator": self.generator.get_state(), "num_draws": self.num_draws}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take what `state_dict` returned; unlike in other modules, tensors may have another length."""
        for name in (*dict(self.named_parameters()), *self.working_tables):
            if name in state_dict:  # older versions had fewer working tables
                self._set_tensor(name, state_dict[name])
        self.generator.set_state(state_dict["generator"])
        self.num_draws = state_dict.get("num_draws", 0)

    def _set_tensor(self, name: str, value: Tensor) -> None:
        """Copy `value`, of any length, to a parameter or buffer."""
        own = getattr(self, name)
        value = value.detach().to(own.device, copy=True)
        setattr(self, name, nn.Parameter(value) if isinstance(own, nn.Parameter) else value)

    def _next_draw(self, device: torch.device) -> torch.Generator:
        """Return a generator of `device` for the next of the draws, which a checkpoint counts."""
        self.num_draws += 1
        return self.step_rng.at(self.num_draws - 1, device)


class MethodEntry(NamedTuple):
    """How a method is found: `METHOD = MethodEntry(...)` in its file. Its preset is settings/presets/<name>.yaml."""

    name: str
    settings: type[MethodSettings]
    build: Callable[..., Method]
