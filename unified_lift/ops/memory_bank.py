"""Gaga's memory bank: masks of different views that show the same Gaussians get the same group."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from diff_gaussian_rasterization.types import NEAR

from unified_lift.ops.cameras import project
from unified_lift.types import Camera


class FrontSets(NamedTuple):
    """Which Gaussians lie in front, in each mask of one view; no Gaussian is in two of them.

    Attributes:
        gaussians: Numbers of the Gaussians, int64 [F].
        slot: The mask of each, int64 [F], rising.
        num_masks: S; a mask may have no Gaussian.
    """

    gaussians: np.ndarray
    slot: np.ndarray
    num_masks: int


class Groups(NamedTuple):
    """What the bank found.

    Attributes:
        of_masks: For each view the group of each mask, int64 [S], -1 = the mask has no Gaussian.
        num_groups: Number of groups over all views.
    """

    of_masks: list[np.ndarray]
    num_groups: int


def front_sets(
    means: np.ndarray, camera: Camera, slot: np.ndarray, num_masks: int, *, grid: int = 32, share: float = 0.2
) -> FrontSets:
    """Return the Gaussians that each mask of a view sees in front of all others.

    Centres are projected; of those that fall into a mask and into one cell of a `grid` x `grid` division of the image,
    the nearest `share` is taken, at least one. Centres that are not drawn (nearer than the near plane) or fall outside
    the image are left out. A centre falls into one pixel, so front sets of different masks are disjoint.

    Source: Gaga, memory bank.
    Args:
        means: Centres of all Gaussians, world units, [N, 3].
        camera: Of the view.
        slot: Mask of each pixel, -1 = none, [H, W].
        num_masks: S.
    """
    pixels, depth = project(means, camera)
    with np.errstate(invalid="ignore"):
        inside = (depth > NEAR) & (pixels >= 0).all(axis=1) & (pixels < [camera.width, camera.height]).all(axis=1)
    gaussians = np.flatnonzero(inside)
    column, row = pixels[gaussians].astype(np.int64).T
    mask = slot[row, column].astype(np.int64)
    cell = row * grid // camera.height * grid + column * grid // camera.width
    labelled = mask >= 0
    gaussians, region = gaussians[labelled], (mask * grid * grid + cell)[labelled]
    # One key in place of two, three times as fast: bits of positive floats rise as the floats do.
    key = region << 32 | depth[gaussians].astype(np.float32).view(np.int32)
    order = np.argsort(key, kind="stable")  # of two at the same depth the lower number is in front
    gaussians, region = gaussians[order], region[order]
    _, start, count = np.unique(region, return_index=True, return_counts=True)
    taken = np.maximum(1, np.floor(share * count + 1e-9)).astype(np.int64)  # 0.2 x 15 must not lose its third
    rank = np.arange(len(region)) - np.repeat(start, count)
    front = rank < np.repeat(taken, count)
    return FrontSets(gaussians[front], region[front] // (grid * grid), num_masks)


def memory_bank(views: Iterable[FrontSets], num_gaussians: int, *, min_score: float = 0.1) -> Groups:
    """Return the group of every mask, found view by view in the order given.

    A mask with front set A joins the group B with the highest score |A n B| / (|A| + |A n B|), the first of equals, if
    that reaches `min_score`; B then gains those of A that no group owns. Otherwise A opens a new group with all of A,
    also with what other groups own.

    Source: Gaga's code. Its paper describes the score |A n B| / |A| = s / (1 - s), so 0.1 in code is 1/9 as written.
    Differs: A mask without any Gaussian joins nothing and opens nothing; here it gets -1.
    """
    # A Gaussian may be in several groups, since a new one does not ask; each layer holds one of them, -1 = none.
    layers = [np.full(num_gaussians, -1, dtype=np.int32)]
    found, num_groups = [], 0
    for front in views:
        group = _best_groups(front, layers, num_groups, min_score)
        sizes = np.bincount(front.slot, minlength=front.num_masks)
        # The masks of a view share no Gaussian, so what one of them joins or opens cannot matter to the next.
        new = (group < 0) & (sizes > 0)
        group[new] = num_groups + np.arange(new.sum())
        num_groups += int(new.sum())
        own = group[front.slot]
        opens = new[front.slot]
        free = layers[0][front.gaussians] < 0
        layers[0][front.gaussians[free]] = own[free]
        _add(layers, front.gaussians[opens & ~free], own[opens & ~free])
        found.append(group)
    return Groups(found, num_groups)


def _best_groups(front: FrontSets, layers: list[np.ndarray], num_groups: int, min_score: float) -> np.ndarray:
    """Return the group that each mask joins, -1 where none scores enough, int64 [S]."""
    if num_groups == 0:
        return np.full(front.num_masks, -1, dtype=np.int64)
    shared = np.zeros(front.num_masks * num_groups, dtype=np.int64)
    for layer in layers:
        group = layer[front.gaussians]
        pair = (front.slot * num_groups + group)[group >= 0]
        shared += np.bincount(pair, minlength=len(shared))
    shared = shared.reshape(front.num_masks, num_groups)
    best = shared.argmax(axis=1)  # for one mask the score rises with the number it shares
    most = shared.max(axis=1)
    sizes = np.bincount(front.slot, minlength=front.num_masks)
    return np.where((most > 0) & (most / np.maximum(sizes + most, 1) >= min_score), best, -1)


def _add(layers: list[np.ndarray], gaussians: np.ndarray, group: np.ndarray) -> None:
    """Make Gaussians that have a group already members of one more."""
    depth = 1
    while len(gaussians):
        if depth == len(layers):
            layers.append(np.full_like(layers[0], -1))
        free = layers[depth][gaussians] < 0
        layers[depth][gaussians[free]] = group[free]
        gaussians, group, depth = gaussians[~free], group[~free], depth + 1
