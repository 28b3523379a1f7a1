"""What the three stages share: the order of views, optimisers, the weighted sum, and the state a checkpoint keeps."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from unified_lift import ranks
from unified_lift.methods.base import Method, ViewPixels
from unified_lift.model.gaussians import Gaussians
from unified_lift.model.render import render
from unified_lift.train.optim import NamedAdam
from unified_lift.train.views import Prefetcher, SegmentMaps, ViewOrder
from unified_lift.types import Scene, View

_MOST_DRAWS = 16  # of random numbers in the losses of a view; methods draw once


def no_op(phase: str) -> None:
    """Do nothing with the phase of a step: no profiler listens."""


class Stage(ABC):
    """Training steps over the shared Gaussians, done by `fit`. Gaussians and method are saved beside its state.

    Attributes:
        name: What logs, checkpoints and tables call it.
        saves_end: Whether a checkpoint is kept of its end.
        first, steps_before: 0-based step to begin with, where a checkpoint was taken; steps of the stages before it.
        ranks: The processes that share out the views of a step. Steps are counted by views: `ranks.batch` at a time.
        cameras, frame: Of the views that it trains on; what they and the Gaussians are inside of.
        maps: Labelled pixels of the views, where it needs them.
        weights: Factor of each loss term; a term without one counts once.
        on_phase: Profiler hook: called with the name of each phase of a step as it begins.
    """

    name: ClassVar[str]
    saves_end: ClassVar[bool] = True
    maps: SegmentMaps

    def __init__(
        self,
        scene: Scene,
        views: Sequence[View],
        gaussians: Gaussians,
        method: Method | None,
        *,
        num_steps: int,
        seed: int,
        fields: Sequence[str] = ("segments", "valid"),
    ) -> None:
        """Prepare to train on these views of the scene, with their `fields` on the device of the Gaussians."""
        if method is not None and gaussians.feature_dim != method.feature_dim:
            gaussians.set("features", method.initial_features(len(gaussians)).to(gaussians.device))
        self.gaussians, self.method, self.num_steps, self.ranks = gaussians, method, num_steps, ranks.current()
        self.views = Prefetcher(views, fields, kept_on=scene.kept_on, device=gaussians.device)
        self.cameras, self.frame = [view.camera for view in views], scene.frame
        self.first = self.steps_before = 0
        self.weights: Mapping[str, float] = {} if method is None else method.weights
        self.order = ViewOrder(len(views), seed=seed)
        self.generator = torch.Generator().manual_seed(seed + 1)
        self.on_phase: Callable[[str], None] = no_op
        batch = self.ranks.batch
        self.adam, self.method_adam = (
            NamedAdam(eps=1e-15, batch=batch),
            NamedAdam(eps=1e-8, batch=batch),
        )  # [3DGS], [released]

    @abstractmethod
    def step(self, step: int) -> dict[str, Tensor]:
        """Do 0-based `step` and return the unweighted, detached loss terms."""

    @property
    def num_gaussians(self) -> int:
        """Return how many Gaussians there are in all processes."""
        return len(self.gaussians)

    def whole(self) -> Gaussians:
        """Return the Gaussians of all processes; all have to ask, and wait for one another."""
        return self.gaussians

    def table(self) -> dict[str, Tensor]:
        """Return the parameters of all Gaussians for a checkpoint, in the first process; all have to ask."""
        return self.gaussians.state_dict()

    def statistics(self) -> Mapping[str, float]:
        """Return more numbers about the last step for the log; reading them may wait for the device."""
        return {} if self.method is None else self.method.statistics

    def next_indices(self) -> list[int]:
        """Return the indices of the views of a step, of all processes, among the stage's views."""
        return [self.order.next_index() for _ in range(self.ranks.batch)]

    def view_of(self, indices: Sequence[int], place: int) -> View:
        """Return the view of a step that is in a place of this process."""
        count, ahead = self.ranks.count, self.views.ahead
        self.order.peek(self.ranks.index)
        later = self.order.upcoming(ahead * count)[self.ranks.index :: count]
        return self.views.get(indices[place], then=[*indices[place + count :: count], *later][:ahead])

    def before_step(self, method: Method, step: int) -> None:
        """Let the method begin a step; if it looks at the data, all go on with what the first process sees there."""
        looked = False

        def views() -> Iterator[ViewPixels]:
            nonlocal looked
            looked = True
            return self.labelled_pixels()

        method.before_step(self.progress(step), views)
        if looked:
            share_method(method, self.ranks)

    def begin_draws(self, iteration: int) -> None:
        """Give the method the random numbers of a 0-based iteration, whichever process does it."""
        if self.method is not None:
            self.method.num_draws = _MOST_DRAWS * iteration

    def shared_out(self, *tensors: Tensor) -> None:
        """Make gradients, of sums over this process's views, those of the mean over all views of a step."""
        self.ranks.add(*tensors)
        for tensor in tensors:
            tensor.div_(self.ranks.batch)

    @torch.no_grad()
    def labelled_pixels(self) -> Iterator[ViewPixels]:
        """Walk over all labelled views: rendered features, slots and number of segments."""
        for index, view in enumerate(self.views.all()):
            if view.has_mask:
                yield self.maps.of(index, view).seen(render(self.gaussians, view.camera), view.camera)

    def progress(self, step: int) -> float:
        """Return the share of the stage that is done before a 0-based step, in [0, 1)."""
        return step / self.num_steps

    def update_method(self, method: Method, progress: float) -> None:
        """Step the method's own parameters and forget their gradients."""
        own, rates = dict(method.named_parameters()), method.rates(progress)
        if self.ranks.batch > 1:
            some = {name: value for name, value in own.items() if value.numel()}
            for value in some.values():
                value.grad = torch.zeros_like(value) if value.grad is None else value.grad
            self.shared_out(*(value.grad for value in some.values() if value.grad is not None))
        self.method_adam.step(own, {name: rates[name] for name in own})
        for value in own.values():
            value.grad = None

    def state_dict(self) -> dict:
        """Return everything but Gaussians and method."""
        parts = {name: getattr(self, name).state_dict() for name in ("order", "adam", "method_adam")}
        return parts | {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict) -> None:
        """Take what `state_dict` returned; it raises something where that does not fit Gaussians, views and method."""
        for name in ("order", "adam", "method_adam"):
            getattr(self, name).load_state_dict(state[name])
        self.generator.set_state(state["generator"])
        own = {} if self.method is None else dict(self.method.named_parameters())
        for adam, table in ((self.adam, self.gaussians.table), (self.method_adam, own)):
            for name, moments in adam.moments.items():
                if {moment.shape for moment in moments} != {table[name].shape}:
                    raise ValueError(f"moments of {name} are of {len(moments[0])} rows, it has {len(table[name])}")


def share_method(method: Method, together: ranks.Ranks) -> None:
    """Give the method what it is in the first process: sums on a GPU depend on the order of threads."""
    if together.count > 1:
        state, objects, method.summary = together.of_first(
            lambda: (method.state_dict(), method.object_state(), method.summary)
        )
        method.load_state_dict(state)
        method.load_object_state(objects)


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the sum of weight x term: the only place where weights appear. A term without weight counts once."""
    # On a GPU each operation is a launch, here and on the way back: none for a weight of 1.
    scaled = [value if weights.get(name, 1.0) == 1 else weights[name] * value for name, value in terms.items()]
    return sum(scaled[1:], start=scaled[0])
