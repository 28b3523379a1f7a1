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
from unified_lift.model.near import remember_views
from unified_lift.model.render import points_seen, render
from unified_lift.modelfolder.labels import Labelling
from unified_lift.modelfolder.settings import RefineSettings
from unified_lift.ops.rng import StepRng
from unified_lift.train.batches import weights_at
from unified_lift.train.gradients import GradientSums, scatter_to, spread
from unified_lift.train.optim import RowAdam
from unified_lift.train.stage import Stage
from unified_lift.train.views import SegmentMaps
from unified_lift.types import Scene, View

_MAX_KEPT = 2**30  # bytes of the targets of all views, and of which pixels have them
_ALL_CODES, _FEWEST_CODES = 1_024, 256  # up to so many codes, pixels are compared with all; else with so many, or more
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
        size = 8 * sum(camera.width * camera.height for camera in self.cameras)
        self.keeps_targets = num_steps > len(self.cameras) and size <= _MAX_KEPT
        self.kept: dict[int, tuple[Tensor, Tensor | None, int]] = {}
        self.sums = GradientSums()
        remember_views(gaussians, self.cameras)
        self._watch_rows()

    def step(self, step: int) -> dict[str, Tensor]:
        self.on_phase("view")
        indices = self.next_indices()
        mine = {place: self._pixels(indices, place, step + place) for place in self.ranks.mine}
        if self.ranks.batch == 1:
            (weights, target, wanted), self.features.grad, table = mine[0], None, self.features
            if self.rows is not None:
                (weights,), table = self.rows.begin([weights])
            loss = self._loss(blend(weights, table), target, wanted, step)
        else:
            loss = self._losses_of(mine, step)
        self.on_phase("update")
        is_late = self.progress(step) >= 1 - self.settings.refine_lr_final_share
        rate = self.settings.refine_lr_final if is_late else self.settings.refine_lr
        if self.rows is None:
            self.adam.step({"features": self.features}, {"features": rate})
        else:
            self.rows.step(rate)
            if step + self.ranks.batch >= self.num_steps:
                self.rows.settle()
        return {"refine": loss.detach()}

    def _watch_rows(self) -> None:
        """Step only the features of the Gaussians that views show, where there are many."""
        many = self.gaussians.blocks is not None
        self.rows = RowAdam(self.adam, "features", self.features, self.num_steps) if many else None

    def _pixels(self, indices: Sequence[int], place: int, step: int) -> tuple[PixelWeights, Tensor, int]:
        """Return the weights of the pixels that a step draws from a view, the codes that they are to have, and with
        how many codes they are compared.
        """
        view = self.view_of(indices, place)
        self.on_phase("targets")
        targets, pixel_ids, num_segments = self._targets(indices[place], view)
        wanted = len(self.codes)
        if wanted > _ALL_CODES:
            wanted = min(wanted, max(_FEWEST_CODES, 2 * num_segments))
        chosen = self._drawn(len(targets), step, width=wanted)
        self.on_phase("forward")
        drawn = chosen if pixel_ids is None else pixel_ids.index_select(0, chosen)
        return weights_at(self.gaussians, view.camera, drawn), targets.index_select(0, chosen).long(), wanted

    def _loss(self, blended: Tensor, target: Tensor, wanted: int, step: int) -> Tensor:
        """Return the loss of pixels, whose gradient is left, by as many codes as are wanted."""
        self.on_phase("losses")
        codes, temperature = self.codes, temperature_for(len(self.codes))
        if wanted < len(codes):
            generator = self.rng.at(-1 - step, codes.device)
            some, stand_for, target = some_codes(target, len(codes), wanted, generator)
            logits = blended @ codes.index_select(0, some).T / temperature + stand_for.log()
        else:
            logits = blended @ codes.T / temperature
        # A sum, since a mean over no labelled pixel is NaN; Adam does not care for the factor.
        loss = cross_entropy(logits, target, ignore_index=-1, reduction="sum")
        self.on_phase("backward")
        loss.backward()
        return loss

    def _losses_of(self, mine: Mapping[int, tuple[PixelWeights, Tensor, int]], step: int) -> Tensor:
        """Return the loss of the last of this process's views; leave the gradient of the mean over all views."""
        own = {place: weights for place, (weights, *_) in mine.items()}
        all_weights = self.ranks.each([partial(own.__getitem__, place) for place in range(self.ranks.batch)])
        table = self.features
        if self.rows is not None:
            all_weights, table = self.rows.begin(all_weights)
        shapes = {str(place): (weights.num_rows, table.shape[1]) for place, weights in enumerate(all_weights)}
        parts, loss = list(self.sums.begin(shapes, table.device).values()), torch.zeros(())
        for place, (_, target, wanted) in mine.items():
            blended = blend(all_weights[place], table.detach()).requires_grad_()
            loss = self._loss(blended, target, wanted, step + place)
            assert blended.grad is not None
            parts[place].copy_(blended.grad)
        table.grad = torch.zeros_like(table)
        scatters = [partial(scatter_to, weights) for weights in all_weights]
        spread(self.ranks, self.sums.flat, scatters, parts, table.grad)
        return loss

    def statistics(self) -> dict[str, float]:
        return {}  # those of the method belong to the lift

    def state_dict(self) -> dict:
        labels = {name: value for name, value in vars(self.labels).items() if name not in ("features", "filled")}
        rows = {} if self.rows is None else {"rows": self.rows.state_dict()}
        return super().state_dict() | {"features": self.features.detach(), "labels": labels} | rows

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)  # the labels are given to `__init__`
        if state["features"].shape != self.features.shape:
            raise ValueError(f"features are {list(state['features'].shape)}, not {list(self.features.shape)}")
        self.features = state["features"].to(self.features.device, copy=True).requires_grad_(True)
        self._watch_rows()
        if self.rows is not None:
            self.rows.load_state_dict(state.get("rows"))

    @torch.no_grad()
    def _targets(self, index: int, view: View) -> tuple[Tensor, Tensor | None, int]:
        """Return the code that each pixel of a view is to have, which pixels these are, None = all, and its segments.

        They stay as they are through the stage, as do what they are made of: scene, learnt features and codes.
        """
        if index in self.kept:
            return self.kept[index]
        pixels = self.maps.of(index, view)
        out = render(self.gaussians, view.camera)
        own = self.method.vote(out.features.flatten(0, 1), points_seen(out, view.camera))
        own = own if pixels.pixel_ids is None else own.index_select(0, pixels.pixel_ids)
        target, count = pixel_targets(own, pixels.slot, pixels.num_segments, len(self.codes)), len(self.codes)
        if self.keeps_targets:
            small = target.short() if count < 2**15 else target.int()
            self.kept[index] = small, pixels.pixel_ids, pixels.num_segments
        return target, pixels.pixel_ids, pixels.num_segments

    def _drawn(self, count: int, step: int, *, width: int) -> Tensor:
        """Return so many different numbers below `count` as a step draws pixels, or all of them, int64."""
        wanted, device = min(self.settings.refine_pixels, _MAX_LOGITS // width), self.gaussians.device
        if count <= wanted:
            return torch.arange(count, device=device)
        return torch.randperm(count, generator=self.rng.at(step, device), device=device)[:wanted]


def some_codes(
    target: Tensor, num_codes: int, wanted: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes that stand for all, and how many each stands for; and the targets as indices of these.

    They are the targets, which stand for themselves, and as many of the others as are wanted, at random. With them the
    sum that a softmax divides by is right on average. Targets that find no room become -1 for this time.

    Source: Bengio and Senecal 2008, importance sampling of the normaliser, here uniform over the other codes.
    Args:
        target: Code of each pixel, -1 = none, int64 [P].
        wanted: C, less than the number of codes L.
        generator: Of the draws, on the device of the targets.
    Returns:
        int64 [C]; float32 [C]; int64 [P]. The host need not wait for a GPU.
    """
    is_target = torch.zeros(num_codes + 1, device=target.device).index_fill_(0, target + 1, 1.0)[1:]
    order = is_target + torch.rand(num_codes, generator=generator, device=target.device)
    some = order.topk(wanted).indices
    own, count = is_target.index_select(0, some), is_target.sum()
    others = (num_codes - count) / (wanted - count).clamp(min=1)
    place = torch.full((num_codes + 1,), -1, device=target.device)
    place.index_copy_(0, some + 1, torch.arange(wanted, device=target.device))
    return some, torch.where(own > 0, 1.0, others), place.index_select(0, target + 1)


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
