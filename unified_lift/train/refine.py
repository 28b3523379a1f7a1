"""After the lift: features that explain the codes of the training pixels, from the votes on.

Votes tell where a Gaussian lies, not where an object ends: one that reaches across a border gets something of both
sides, and all around it look alike. Trained to explain the pixels, its neighbours make up for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from diff_gaussian_rasterization import blend
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from unified_lift.methods.base import Method
from unified_lift.model.gaussians import Gaussians
from unified_lift.model.render import blending_weights, render
from unified_lift.ops.rng import StepRng
from unified_lift.ops.targets import pixel_targets
from unified_lift.train.optim import NamedAdam
from unified_lift.train.stage import Interrupted
from unified_lift.train.views import SegmentMaps, ViewOrder, ViewSource
from unified_lift.types import Scene

_PIXELS = 16_384
_MAX_LOGITS = 2**24  # of pixels with codes at once: 64 MiB for each of a few tensors
# More steps, more draws of each pixel and higher rates fit the errors of the masks (docs/experiments.md).
_MIN_STEPS, _VISITS, _MAX_DRAWS = 300, 2, 1.5
_RATE, _LAST_RATE, _LAST_PART = 0.005, 0.001, 1 / 3
_EPS = 1e-15


def steps_of(wanted: int, scene: Scene) -> int:
    """Return the number of steps, which the settings may leave (-1) to number and size of the labelled views."""
    if wanted >= 0:
        return wanted
    cameras = [view.camera for view in scene.train if view.segments is not None]
    pixels = sum(camera.width * camera.height for camera in cameras)
    return min(max(_MIN_STEPS, _VISITS * len(cameras)), math.ceil(_MAX_DRAWS * pixels / _PIXELS))


def temperature_for(num_codes: int) -> float:
    """Return 1 / (1 + ln L): a pixel that shows its code, and of no other anything, is as sure of it for every L.

    At one temperature for all, the pixels inside of hundreds of objects would never be sure, and outweigh the borders.
    """
    return 1 / (1 + math.log(num_codes))


def sharpened(
    scene: Scene,
    gaussians: Gaussians,
    method: Method,
    codes: Tensor,
    start: Tensor,
    *,
    num_steps: int,
    seed: int,
    should_stop: Callable[[], bool] = lambda: False,
    quiet: bool = True,
) -> Tensor:
    """Return features [N, D] whose blends explain the codes of the training pixels.

    Cross-entropy of the blended features' products with the codes, over `temperature_for(L)`, with the `pixel_targets`
    of each view.

    Source: ours (docs/experiments.md).
    Args:
        scene: Views with masks.
        gaussians: The lifted scene; its features, as learnt, tell what each pixel takes itself for.
        method: Tells the code of a feature.
        codes: Unit codes, [L, D].
        start: Features to start from, such as those of the votes, [N, D].
        num_steps: One view each.
        seed: Of the order of the views and of the draws of pixels.
        should_stop: Asked before each step.
        quiet: No progress bar.
    Raises:
        Interrupted: `should_stop` said so.
    """
    views = [view for view in scene.train if view.segments is not None]
    source = ViewSource(views, kept_on=scene.kept_on, device=gaussians.device, fields=("segments", "valid"))
    maps = SegmentMaps(ignore_zero=method.ignore_zero, keep=False)
    order, draws, adam = ViewOrder(len(views), seed=seed), StepRng(seed), NamedAdam(eps=_EPS)
    values, temperature = start.detach().clone().requires_grad_(True), temperature_for(len(codes))
    try:
        for step in tqdm(range(num_steps), desc="sharpen", disable=quiet, dynamic_ncols=True):
            if should_stop():
                raise Interrupted
            index = order.next_index()
            camera, view = views[index].camera, source.get(index, then=order.peek())
            slot, num_segments, rows = maps.of(index, view)
            with torch.no_grad():
                seen = method.segment(render(gaussians, camera).features).object_ids.flatten()
            own = seen if rows is None else seen.index_select(0, rows)
            targets = pixel_targets(own, slot, num_segments, len(codes))
            chosen = _drawn(len(targets), min(_PIXELS, _MAX_LOGITS // len(codes)), draws, step, targets.device)
            places = chosen if rows is None else rows.index_select(0, chosen).long()
            pixels = torch.stack([places % camera.width, places // camera.width], dim=1)
            blended = blend(blending_weights(gaussians, camera, pixels=pixels), values)
            target = targets.index_select(0, chosen)
            values.grad = None
            # A sum, since a mean over no labelled pixel is NaN; Adam does not care for the factor.
            cross_entropy(blended @ codes.T / temperature, target, ignore_index=-1, reduction="sum").backward()
            adam.step({"features": values}, {"features": _rate(step / num_steps)})
    finally:
        source.close()
    return values.detach()


def _drawn(count: int, wanted: int, draws: StepRng, step: int, device: torch.device) -> Tensor:
    """Return `wanted` different numbers below `count`, or all of them, int64."""
    if count <= wanted:
        return torch.arange(count, device=device)
    return torch.randperm(count, generator=draws.at(step, device), device=device)[:wanted]


def _rate(progress: float) -> float:
    return _RATE if progress < 1 - _LAST_PART else _LAST_RATE
