"""Lift stage: features and codebook on frozen geometry."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial

import torch
from diff_gaussian_rasterization import PixelWeights, Sample, blend, blend_sample, draw, scatter_sample
from torch import Tensor

from unified_lift.errors import UserError
from unified_lift.kernels.fused import runs_on
from unified_lift.methods.base import LabelledView, LiftData, Method, StepInfo, ViewPixels
from unified_lift.model.gaussians import Gaussians
from unified_lift.model.near import remember_views
from unified_lift.modelfolder.settings import LiftSettings
from unified_lift.ops.rng import StepRng
from unified_lift.ops.segments import dense_slots
from unified_lift.train.batches import PixelSampler, stratified
from unified_lift.train.gradients import GradientSums, Scatter, scatter_to, spread
from unified_lift.train.optim import RowAdam
from unified_lift.train.stage import Stage, share_method, weighted_sum
from unified_lift.train.views import SegmentMaps, SegmentPixels
from unified_lift.types import Camera, Scene

_TOGETHER = 128  # steps after which processes make sure that they go on with the same features
_MOST_PIXELS = 384 * 384  # of a view that count: larger photos ask for no more steps, docs/experiments.md


def steps_of(settings: LiftSettings, cameras: Sequence[Camera]) -> int:
    """Return the number of steps of a lift of these labelled views, which the settings may leave to their pixels."""
    if settings.lift_iterations >= 0:
        return settings.lift_iterations
    # Fewer than three for each pixel lose small objects of large scenes. Large photos show nothing smaller for it.
    pixels = sum(min(camera.width * camera.height, _MOST_PIXELS) for camera in cameras)
    return max(settings.lift_min_steps, int(settings.lift_draws * pixels) // settings.lift_pixels)  # more fit errors


class GradientGraph:
    """Terms and gradients of a step as a CUDA graph: one launch instead of some fifty, and no Python in between.

    Its tensors keep shape and place. The first step with a key runs as it is, which lets kernels load and memory
    settle; the second is captured, and again whenever the key changes.

    Args:
        compute: Of the progress; does forward and backward and returns detached terms. It must not make the host
            wait, draw numbers from a generator, or read what changes from step to step except out of tensors.
        leaves: What it leaves gradients at.
    """

    def __init__(
        self, compute: Callable[[float], dict[str, Tensor]], leaves: Callable[[], Mapping[str, Tensor]]
    ) -> None:
        self._compute, self._leaves = compute, leaves
        self._key: Hashable = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._terms: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor | None] = {}

    def run(self, key: Hashable, progress: float) -> dict[str, Tensor]:
        """Return the terms; afterwards the leaves have their gradients. The next run overwrites both."""
        is_new = key != self._key
        if is_new or self._graph is None:
            for leaf in self._leaves().values():
                leaf.grad = None  # backward makes it anew, in memory that a graph can keep
        if is_new:
            self._key, self._graph = key, None
            return self._compute(progress)
        if self._graph is None:
            graph = torch.cuda.CUDAGraph()
            # thread_local: other threads, which write checkpoints or read photos, may go on calling CUDA
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._terms = self._compute(progress)
            self._graph, self._gradients = graph, {name: leaf.grad for name, leaf in self._leaves().items()}
        self._graph.replay()
        for name, leaf in self._leaves().items():
            leaf.grad = self._gradients.get(name)
        return self._terms


class LiftStage(Stage):
    """One view per step: sampled pixels, the method's losses, Adam on features and on the method's parameters.

    A rendered feature is a fixed linear map of the Gaussian features. So a step needs no colour, no SSIM, and only the
    sampled pixels; the map (the blending weights) is computed once per view if it fits in memory.
    """

    name = "lift"
    method: Method

    def __init__(
        self, scene: Scene, gaussians: Gaussians, method: Method, settings: LiftSettings, *, seed: int
    ) -> None:
        """Freeze the geometry; a UserError says that no view has a mask."""
        if not scene.labelled:
            raise UserError(f"{scene.name}: no training view has a mask, nothing can be lifted; check --object_path")
        num_steps = steps_of(settings, [view.camera for view in scene.labelled])
        super().__init__(scene, scene.labelled, gaussians, method, num_steps=num_steps, seed=seed)
        self.settings, self.rng = settings, StepRng(seed)
        self.maps = SegmentMaps(ignore_zero=method.ignore_zero, keep=False, by_slot=True)
        remember_views(gaussians, [view.camera for view in scene.train])
        self.sampler = PixelSampler(self, settings, self.rng)
        method.prepare(LiftData(gaussians.means.detach(), self.labelled_views))
        self.samples: list[Sample] = []  # of the views of a step, where all steps are alike
        self.slopes, self.sums = torch.zeros(0), GradientSums()  # derivatives by pixels' features, of several views
        # Of many Gaussians views show few: only these take part in a step.
        self.rows: RowAdam | None = None
        if method.is_local and gaussians.blocks is not None and not self.sampler.keeps_weights:
            self.rows = RowAdam(self.adam, "features", gaussians.features, self.num_steps)
        self.graph = GradientGraph(
            self._replayed, lambda: {"features": gaussians.features} | dict(method.named_parameters())
        )

    def step(self, step: int) -> dict[str, Tensor]:
        """Do 0-based `step` and return the unweighted, detached terms."""
        progress = self.progress(step)
        self.before_step(self.method, step)
        self.on_phase("view")
        indices = self.next_indices()
        visits = [(step + place) // len(self.cameras) for place in range(self.ranks.batch)]
        later = self.order.upcoming(self.views.ahead)
        self.sampler.prepare(list(zip(indices, visits, strict=True)), then=later)
        views = [self.sampler.of(index, visit) for index, visit in zip(indices, visits, strict=True)]
        samples = self._fixed_samples(visits[0])
        key = self.method.graph_key(progress, self.settings.lift_pixels) if samples else None
        self.on_phase("forward")
        if key is not None:
            for place, (pixels, sample) in enumerate(zip(views, samples, strict=True)):
                draw(pixels.weights, pixels.slot, sample, stream=self.rng.number(step + place))
            self.on_phase("replay")
            terms = self.graph.run(key, progress)
            if self.ranks.batch > 1:
                scatters = [partial(scatter_sample, sample) for sample in samples]
                self._spread(self.slopes, scatters, [*self.slopes], self.gaussians.features)
        else:
            self.gaussians.zero_grad()
            terms = self._losses_of(views, indices, progress, step)
        self.on_phase("update")
        rate = self.method.rates(progress)["features"]
        if self.rows is None:
            self.adam.step(self.gaussians.table, {"features": rate})
        else:
            self.rows.step(rate)
        self.update_method(self.method, progress)
        with torch.no_grad():
            self.method.after_step(self.gaussians.features)
        if (step + self.ranks.batch) // _TOGETHER > step // _TOGETHER:
            self.ranks.same(self.gaussians.features)  # sums on a GPU depend on the order of threads
        if step + self.ranks.batch >= self.num_steps:
            self._settle()
            self.method.finish(self.labelled_pixels)
            share_method(self.method, self.ranks)
        return terms

    def labelled_pixels(self) -> Iterator[ViewPixels]:
        self._settle()
        return super().labelled_pixels()

    def state_dict(self) -> dict:
        return super().state_dict() | ({} if self.rows is None else {"rows": self.rows.state_dict()})

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        if self.rows is not None:
            self.rows.load_state_dict(state.get("rows"))

    def _settle(self) -> None:
        """Bring the features of Gaussians that the last views did not show to the last step."""
        if self.rows is not None:
            self.rows.settle()

    def labelled_views(self) -> Iterator[LabelledView]:
        """Walk over all labelled training views as the masks show them."""
        shift = 0 if self.method.ignore_zero else 1  # of the ids: 0 = no label, or the lens saw nothing
        for view in self.views.all():
            assert view.segments is not None
            segments = view.segments if view.valid is None else torch.where(view.valid, view.segments, -shift)
            slots, ids = dense_slots(segments + shift, ignore_zero=True)
            yield LabelledView(view.name, view.camera, slots, ids - shift)

    def _losses_of(
        self, views: Sequence[SegmentPixels], indices: Sequence[int], progress: float, step: int
    ) -> dict[str, Tensor]:
        """Return the detached terms of the views of a step, or of the last one of this process; leave the gradients."""
        drawn, table = self._drawn(views, indices, step), self.gaussians.features
        if self.rows is not None:
            narrow, table = self.rows.begin([weights for _, weights, _ in drawn])
            drawn = [(slot, weights, rows) for (slot, _, rows), weights in zip(drawn, narrow, strict=True)]
        if self.ranks.batch == 1:
            slot, weights, rows = drawn[0]
            pixels = ViewPixels(blend(weights, table, rows=rows), slot, views[0].num_segments)
            return self._losses(pixels, progress, view=indices[0], step=step)
        shapes = {str(place): (len(slot), self.gaussians.feature_dim) for place, (slot, *_) in enumerate(drawn)}
        parts = list(self.sums.begin(shapes, self.gaussians.device).values())
        scatters, terms = list[Scatter](), dict[str, Tensor]()
        for place, (slot, weights, rows) in enumerate(drawn):
            scatters.append(partial(scatter_to, weights, rows=rows))
            if place in self.ranks.mine:
                with torch.no_grad():
                    features = blend(weights, table, rows=rows)
                pixels = ViewPixels(features.requires_grad_(), slot, views[place].num_segments)
                self.begin_draws(step + place)
                terms = self._losses(pixels, progress, view=indices[place], step=step + place)
                if features.grad is not None:
                    parts[place].copy_(features.grad)
        self._spread(self.sums.flat, scatters, parts, table, agreed=False)
        return terms

    def _spread(
        self,
        slopes: Tensor,
        scatters: Sequence[Scatter],
        parts: Sequence[Tensor],
        features: Tensor,
        *,
        agreed: bool = True,
    ) -> None:
        """Leave the gradient of the features by the mean loss of the views of a step, as `spread` does.

        Terms on the Gaussians themselves have left theirs: in all processes alike, or that is not `agreed`.
        """
        total, own = torch.zeros_like(features), features.grad
        spread(self.ranks, slopes, scatters, parts, total)
        if self.ranks.sums(own is not None)[0] if not agreed else own is not None:
            own = torch.zeros_like(total) if own is None else own
            self.shared_out(own)
            total.add_(own)
        features.grad = total

    def _drawn(
        self, views: Sequence[SegmentPixels], indices: Sequence[int], step: int
    ) -> list[tuple[Tensor, PixelWeights, Tensor | None]]:
        """Return for each view of a step the slots of the pixels drawn, or of all there are, and their weights.

        These are the rows of the weights that come last; None: the weights are of these pixels alone.
        """
        found, makes = list[tuple[Tensor, PixelWeights | None, Tensor | None]](), list[Callable[[], PixelWeights]]()
        for place, (slot, _, pixel_ids, weights, _) in enumerate(views):
            chosen = None
            if len(slot) > self.settings.lift_pixels:
                chosen = stratified(len(slot), self.settings.lift_pixels, self.rng.at(step + place, slot.device))
                slot = slot.index_select(0, chosen)
            if weights is None:
                assert pixel_ids is not None  # since they are in the order of slots
                drawn = pixel_ids if chosen is None else pixel_ids.index_select(0, chosen)
                makes.append(partial(self.sampler.weights_at, indices[place], drawn))
                chosen = None
            found.append((slot, weights, chosen))
        made = iter(self.ranks.each(makes))
        return [(slot, next(made) if weights is None else weights, rows) for slot, weights, rows in found]

    def _losses(self, pixels: ViewPixels, progress: float, *, view: int, step: int) -> dict[str, Tensor]:
        """Return the detached terms and leave the gradients of their weighted sum."""
        self.on_phase("losses")
        terms = self.method.losses(pixels, StepInfo(progress, step, view, self.gaussians.features))
        total = weighted_sum(terms, self.weights)
        self.on_phase("backward")
        total.backward()
        return {name: term.detach() for name, term in terms.items()}

    # ---- steps that a CUDA graph replays ----

    def _fixed_samples(self, visit: int) -> list[Sample]:
        """Return samples in fixed memory if all steps are alike: on a GPU, weights kept, enough pixels; else none."""
        count, device = self.settings.lift_pixels, self.gaussians.device
        if not self.samples and device.type == "cuda" and runs_on(self.gaussians.features):
            if self.sampler.keeps_weights and self.sampler.extremes(visit)[0] >= count:
                self.samples = [Sample.empty(count, device) for _ in range(self.ranks.batch)]
                several = self.ranks.batch if self.ranks.batch > 1 else 0
                self.slopes = torch.zeros(several, count, self.gaussians.feature_dim, device=device)
        return self.samples

    def _replayed(self, progress: float) -> dict[str, Tensor]:
        num_segments, terms = self.sampler.extremes(0)[1], dict[str, Tensor]()
        if self.ranks.batch > 1:
            self.slopes.zero_()
        for place in self.ranks.mine:
            sample, table = self.samples[place], self.gaussians.features
            features = blend_sample(sample, table if self.ranks.batch == 1 else table.detach())
            if self.ranks.batch > 1:
                features.requires_grad_()
            terms = self._losses(ViewPixels(features, sample.slot, num_segments), progress, view=-1, step=-1)
            if self.ranks.batch > 1 and features.grad is not None:
                self.slopes[place].copy_(features.grad)
        return terms
