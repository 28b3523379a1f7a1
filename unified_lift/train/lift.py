"""Lift stage: features and codebook on frozen geometry."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

import torch
from diff_gaussian_rasterization import Sample, blend, blend_sample, draw
from torch import Tensor

from unified_lift.errors import UserError
from unified_lift.kernels.fused import runs_on
from unified_lift.methods.base import LabelledView, LiftData, Method, StepInfo, ViewPixels
from unified_lift.model.gaussians import Gaussians
from unified_lift.modelfolder.settings import LiftSettings
from unified_lift.ops.rng import StepRng
from unified_lift.ops.segments import dense_slots
from unified_lift.train.batches import PixelSampler, stratified
from unified_lift.train.stage import Stage, weighted_sum
from unified_lift.train.views import SegmentMaps, SegmentPixels
from unified_lift.types import Camera, Scene

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
        gaussians.freeze_geometry()
        self.sampler = PixelSampler(self, settings, self.rng)
        method.prepare(LiftData(gaussians.means.detach(), self.labelled_views))
        self.sample: Sample | None = None
        self.graph = GradientGraph(
            self._replayed, lambda: {"features": gaussians.features} | dict(method.named_parameters())
        )

    def step(self, step: int) -> dict[str, Tensor]:
        """Do 0-based `step` and return the unweighted, detached terms."""
        progress = self.progress(step)
        self.method.before_step(progress, self.labelled_pixels)
        self.on_phase("view")
        index, visit = self.order.next_index(), step // len(self.cameras)
        pixels = self.sampler.of(index, visit)
        sample = self._fixed_sample(visit)
        key = None if sample is None else self.method.graph_key(progress, self.settings.lift_pixels)
        self.on_phase("forward")
        if key is not None:
            draw(pixels.weights, pixels.slot, sample, stream=self.rng.number(step))
            self.on_phase("replay")
            terms = self.graph.run(key, progress)
        else:
            drawn = self._drawn(index, pixels, step)
            self.gaussians.zero_grad()
            terms = self._losses(drawn, progress, view=index, step=step)
        self.on_phase("update")
        self.adam.step(self.gaussians.table, {"features": self.method.rates(progress)["features"]})
        self.update_method(self.method, progress)
        with torch.no_grad():
            self.method.after_step(self.gaussians.features)
        if step + 1 == self.num_steps:
            self.method.finish(self.labelled_pixels)
        return terms

    def labelled_views(self) -> Iterator[LabelledView]:
        """Walk over all labelled training views as the masks show them."""
        shift = 0 if self.method.ignore_zero else 1  # of the ids: 0 = no label, or the lens saw nothing
        for view in self.views.all():
            assert view.segments is not None
            segments = view.segments if view.valid is None else torch.where(view.valid, view.segments, -shift)
            slots, ids = dense_slots(segments + shift, ignore_zero=True)
            yield LabelledView(view.name, view.camera, slots, ids - shift)

    def _drawn(self, index: int, pixels: SegmentPixels, step: int) -> ViewPixels:
        """Return the blended features of the pixels that a step draws from those of a view, or of all there are."""
        slot, num_segments, pixel_ids, weights, _ = pixels
        chosen = None
        if len(slot) > self.settings.lift_pixels:
            chosen = stratified(len(slot), self.settings.lift_pixels, self.rng.at(step, slot.device))
            slot = slot.index_select(0, chosen)
        if weights is not None:
            features = blend(weights, self.gaussians.features, rows=chosen)
        else:
            assert pixel_ids is not None  # since they are in the order of slots
            drawn = pixel_ids if chosen is None else pixel_ids.index_select(0, chosen)
            features = blend(self.sampler.weights_at(index, drawn), self.gaussians.features)
        return ViewPixels(features, slot, num_segments)

    def _losses(self, pixels: ViewPixels, progress: float, *, view: int, step: int) -> dict[str, Tensor]:
        """Return the detached terms and leave the gradients of their weighted sum."""
        self.on_phase("losses")
        terms = self.method.losses(pixels, StepInfo(progress, step, view, self.gaussians.features))
        total = weighted_sum(terms, self.weights)
        self.on_phase("backward")
        total.backward()
        return {name: term.detach() for name, term in terms.items()}

    # ---- steps that a CUDA graph replays ----

    def _fixed_sample(self, visit: int) -> Sample | None:
        """Return a sample in fixed memory if all steps are alike: on a GPU, weights kept, enough pixels."""
        if self.sample is None and self.gaussians.device.type == "cuda" and runs_on(self.gaussians.features):
            if self.sampler.keeps_weights and self.sampler.extremes(visit)[0] >= self.settings.lift_pixels:
                self.sample = Sample.empty(self.settings.lift_pixels, self.gaussians.device)
        return self.sample

    def _replayed(self, progress: float) -> dict[str, Tensor]:
        assert self.sample is not None
        features, slot = blend_sample(self.sample, self.gaussians.features), self.sample.slot
        return self._losses(ViewPixels(features, slot, self.sampler.extremes(0)[1]), progress, view=-1, step=-1)
