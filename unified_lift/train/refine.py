"""Refine stage: features that explain the codes of the training pixels, from those that label voting gives."""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from diff_gaussian_rasterization import PixelWeights, blend
from torch import Tensor
from torch.nn.functional import cross_entropy

from unified_lift.methods.base import Method
from unified_lift.model.gaussians import Gaussians
from unified_lift.model.render import points_seen, render
from unified_lift.modelfolder.labels import Labelling
from unified_lift.modelfolder.settings import RefineSettings
from unified_lift.ops.rng import StepRng
from unified_lift.train.batches import weights_at
from unified_lift.train.gradients import GradientSums, scatter_to, spread
from unified_lift.train.stage import Stage
from unified_lift.train.views import SegmentMaps
from unified_lift.types import Scene, View

_MAX_KEPT = 2**28  # bytes of the targets of all views, and of which pixels have them
_MAX_LOGITS = 2**24  # of pixels with codes at once: 64 MiB for each of a few tensors


def steps_of(wanted: int, settings: RefineSettings, scene: Scene) -> int:
    """Return the number of steps, which the method may leave (-1) to number and size of the labelled views."""
    pixels = sum(view.camera.width * view.camera.height for view in scene.labelled)
    long = max(settings.refine_min_steps, settings.refine_visits * len(scene.labelled))
    most = math.ceil(settings.refine_max_draws * pixels / settings.refine_pixels)
    return wanted if wanted >= 0 else min(long, most)


def temperature_for(num_codes: int) -> float:
    """Return 1 / (1 + ln L): a pixel that shows its code alone is as sure of it for every number L of codes.

    Else the pixels inside of hundreds of objects would never be sure, and outweigh the borders.
    """
    return 1 / (1 + math.log(num_codes))


class RefineStage(Stage):
    """One view per step: cross-entropy of blended features and codes, with the `pixel_targets` of the view; Adam.

    Votes give a Gaussian that reaches across a border something of both sides; trained to explain the pixels, its
    neighbours make up for it. The scene keeps its features as learnt, which tell the code that each pixel has;
    `features` are trained, [N, D]. Source: ours (docs/experiments.md).
    """

    name = "refine"
    saves_end = False  # the results are written at once
    method: Method

    def __init__(
        self, scene: Scene, gaussians: Gaussians, method: Method, settings: RefineSettings, labels: Labelling, seed: int
    ) -> None:
        final = method.final_features()
        assert final is not None
        assert labels.features is not None
        assert labels.codes is not None
        num_steps = steps_of(final.refine_steps, settings, scene)
        super().__init__(scene, scene.labelled, gaussians, method, num_steps=num_steps, seed=seed)
        self.settings, self.labels, self.weights, self.codes = settings, labels, {}, labels.codes
        self.maps, self.rng = SegmentMaps(ignore_zero=method.ignore_zero, keep=False), StepRng(seed)
        self.features = labels.features.detach().clone().requires_grad_(True)
        size = 6 * sum(camera.width * camera.height for camera in self.cameras)
        self.keeps_targets = num_steps > len(self.cameras) and size <= _MAX_KEPT and len(self.codes) < 2**15
        self.kept: dict[int, tuple[Tensor, Tensor | None]] = {}
        self.sums = GradientSums()

    def step(self, step: int) -> dict[str, Tensor]:
        self.on_phase("view")
        indices = self.next_indices()
        mine = {place: self._pixels(indices, place, step + place) for place in self.ranks.mine}
        if self.ranks.batch == 1:
            (weights, target), self.features.grad = mine[0], None
            loss = self._loss(blend(weights, self.features), target)
        else:
            loss = self._losses_of(mine)
        self.on_phase("update")
        is_late = self.progress(step) >= 1 - self.settings.refine_lr_final_share
        rate = self.settings.refine_lr_final if is_late else self.settings.refine_lr
        self.adam.step({"features": self.features}, {"features": rate})
        return {"refine": loss.detach()}

    def _pixels(self, indices: Sequence[int], place: int, step: int) -> tuple[PixelWeights, Tensor]:
        """Return the weights of the pixels that a step draws from a view, and the codes that they are to have."""
        view = self.view_of(indices, place)
        self.on_phase("targets")
        targets, pixel_ids = self._targets(indices[place], view)
        chosen = self._drawn(len(targets), step)
        self.on_phase("forward")
        drawn = chosen if pixel_ids is None else pixel_ids.index_select(0, chosen)
        return weights_at(self.gaussians, view.camera, drawn), targets.index_select(0, chosen).long()

    def _loss(self, blended: Tensor, target: Tensor) -> Tensor:
        """Return the loss of pixels, whose gradient is left."""
        self.on_phase("losses")
        logits = blended @ self.codes.T / temperature_for(len(self.codes))
        # A sum, since a mean over no labelled pixel is NaN; Adam does not care for the factor.
        loss = cross_entropy(logits, target, ignore_index=-1, reduction="sum")
        self.on_phase("backward")
        loss.backward()
        return loss

    def _losses_of(self, mine: Mapping[int, tuple[PixelWeights, Tensor]]) -> Tensor:
        """Return the loss of the last of this process's views; leave the gradient of the mean over all views."""
        own = {place: weights for place, (weights, _) in mine.items()}
        all_weights = self.ranks.each([partial(own.__getitem__, place) for place in range(self.ranks.batch)])
        shapes = {str(place): (weights.num_rows, self.features.shape[1]) for place, weights in enumerate(all_weights)}
        parts, loss = list(self.sums.begin(shapes, self.features.device).values()), torch.zeros(())
        for place, (weights, target) in mine.items():
            blended = blend(weights, self.features.detach()).requires_grad_()
            loss = self._loss(blended, target)
            assert blended.grad is not None
            parts[place].copy_(blended.grad)
        self.features.grad = torch.zeros_like(self.features)
        scatters = [partial(scatter_to, weights) for weights in all_weights]
        spread(self.ranks, self.sums.flat, scatters, parts, self.features.grad)
        return loss

    def statistics(self) -> dict[str, float]:
        return {}  # those of the method belong to the lift

    def state_dict(self) -> dict:
        labels = {name: value for name, value in vars(self.labels).items() if name not in ("features", "filled")}
        return super().state_dict() | {"features": self.features.detach(), "labels": labels}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)  # the labels are given to `__init__`
        if state["features"].shape != self.features.shape:
            raise ValueError(f"features are {list(state['features'].shape)}, not {list(self.features.shape)}")
        self.features = state["features"].to(self.features.device, copy=True).requires_grad_(True)

    @torch.no_grad()
    def _targets(self, index: int, view: View) -> tuple[Tensor, Tensor | None]:
        """Return the code that each pixel of a view is to have, and which pixels these are, None = all.

        They stay as they are through the stage, as do what they are made of: scene, learnt features and codes.
        """
        if index in self.kept:
            return self.kept[index]
        pixels = self.maps.of(index, view)
        out = render(self.gaussians, view.camera)
        own = self.method.vote(out.features.flatten(0, 1), points_seen(out, view.camera))
        own = own if pixels.pixel_ids is None else own.index_select(0, pixels.pixel_ids)
        found = pixel_targets(own, pixels.slot, pixels.num_segments, len(self.codes)), pixels.pixel_ids
        if self.keeps_targets:
            self.kept[index] = found[0].short(), found[1]
        return found

    def _drawn(self, count: int, step: int) -> Tensor:
        """Return so many different numbers below `count` as a step draws pixels, or all of them, int64."""
        wanted, device = min(self.settings.refine_pixels, _MAX_LOGITS // len(self.codes)), self.gaussians.device
        if count <= wanted:
            return torch.arange(count, device=device)
        return torch.randperm(count, generator=self.rng.at(step, device), device=device)[:wanted]


def pixel_targets(own: Tensor, slot: Tensor, num_segments: int, num_codes: int) -> Tensor:
    """Return the code that each pixel of a view is to have, int64 [P]; -1 = its mask says nothing. Source: ours.

    It is the code of most of its segment, so that errors of the features at the segment's border are put right. Except
    where another object lies in it: pixels of a code keep it of which the segment holds most of what the view shows.

    Args:
        own: Code that each pixel's feature has, below `num_codes`, int64 [P].
        slot: Segment of each pixel, below `num_segments`, -1 = none, int32 [P].
    """
    # Row 0: pixels without label; the last column: pixels near no code.
    pair = (slot.long() + 1) * (num_codes + 1) + torch.where(own < 0, num_codes, own)
    # Summed by index_add_: told the size, it lets a GPU go on without waiting.
    table = torch.zeros((num_segments + 1) * (num_codes + 1), device=own.device)
    table = table.index_add_(0, pair, torch.ones_like(own.float())).view(-1, num_codes + 1)
    most, dominant = table[:, :num_codes].max(dim=1)
    dominant = torch.where(most > 0, dominant, -1)[slot.long() + 1]
    held = 2 * table > table.sum(dim=0)
    return torch.where(slot < 0, -1, torch.where((own >= 0) & held.view(-1)[pair], own, dominant))
