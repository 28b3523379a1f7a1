"""Gaga: a memory bank of Gaussians says which masks of different views are one object; then Gaussian Grouping's lift.

Users of the original report far more groups than objects, 389 to over 1,000. Ours are counted in manifest.json.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import torch
from diff_gaussian_rasterization.types import NEAR

from unified_lift.methods.base import LiftData, MethodEntry
from unified_lift.methods.classifier import KnownClasses, KnownClassesSettings
from unified_lift.ops.cameras import project
from unified_lift.settings.limits import Range
from unified_lift.types import Camera


@dataclass(frozen=True, kw_only=True)
class GagaSettings(KnownClassesSettings):
    """The memory bank, and what every method with known classes has."""

    bank_grid: Annotated[int, Range(1)] = 32
    """Cells per image side, in each of which the nearest Gaussians of a mask are taken [Gaga]."""
    bank_share: Annotated[float, Range(above=0, most=1)] = 0.2
    """Share of a mask's Gaussians in a cell that counts as its front [Gaga]."""
    bank_min_score: Annotated[float, Range(above=0, most=0.5)] = 0.1  # 0.5: the front set lies wholly in one group
    """Overlap from which a mask joins a group rather than opening one [Gaga]."""


class Gaga(KnownClasses):
    """Masks that see the same Gaussians are one class; a classifier learns it on frozen geometry.

    Where id 0 is a segment (the background), it is a mask as any other: objects that the detector missed in some views
    may join its large front set there.

    Source: Gaga (Lyu et al.), memory bank and lift.
    Differs: Classes are the groups; theirs are one more, class 0 of pixels without mask, which here train nothing.
        Group numbers are not stored in 8 bits, in which theirs wrap above 255. A mask without any Gaussian opens no
        group. Numbers in names count as such, where theirs sort as text; for padded names it is the same.
    """

    settings: GagaSettings

    def segment_classes(self, data: LiftData) -> tuple[list[torch.Tensor], int]:
        s, means = self.settings, data.means.double().cpu().numpy()
        names, fronts = [], []
        for view in data.views():
            slots, count = view.slots.cpu().numpy(), len(view.segment_ids)
            names.append(_natural(view.name))
            fronts.append(front_sets(means, view.camera, slots, count, grid=s.bank_grid, share=s.bank_share))
        order = sorted(range(len(names)), key=names.__getitem__)
        groups, num_groups = memory_bank((fronts[index] for index in order), len(means), min_score=s.bank_min_score)
        of_masks = np.concatenate([*groups, []])
        self.summary = {"num_groups": num_groups, "num_masks": len(of_masks)}
        self.summary["num_masks_without_gaussians"] = int((of_masks < 0).sum())
        return [torch.from_numpy(groups[place]) for place in np.argsort(order)], num_groups


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts names as a person would: numbers in them by value."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


class FrontSets(NamedTuple):
    """Gaussians in front of all others in each mask of one view, none in two masks; a mask may have none."""

    gaussians: np.ndarray  # index of each, int64 [F]
    slot: np.ndarray  # mask of each, rising, int64 [F]
    num_masks: int


def front_sets(
    means: np.ndarray, camera: Camera, slot: np.ndarray, num_masks: int, *, grid: int = 32, share: float = 0.2
) -> FrontSets:
    """Return the Gaussians that each of `num_masks` masks of a view sees in front of all others.

    Centres `means` [N, 3] in world units are projected; of those that fall into a mask (`slot` [H, W], -1 = none) and
    into one cell of a `grid` x `grid` division of the image, the nearest `share` is taken, at least one. Centres that
    are nearer than the near plane or fall outside the image are left out. Source: Gaga, memory bank.
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


def memory_bank(
    views: Iterable[FrontSets], num_gaussians: int, *, min_score: float = 0.1
) -> tuple[list[np.ndarray], int]:
    """Return the group of every mask, found view by view in the order given, and the number of groups.

    A mask with front set A joins the group B with the highest score |A n B| / (|A| + |A n B|), the first of equals, if
    that reaches `min_score`; B then gains those of A that no group owns. Otherwise A opens a new group with all of A,
    also with what other groups own.

    A mask without any Gaussian joins and opens nothing: -1. The groups of each view are int64 [S].
    Source: Gaga's code. Its paper describes the score |A n B| / |A| = s / (1 - s), so 0.1 in code is 1/9 as written.
    """
    owned = np.zeros(num_gaussians, dtype=bool)
    members = groups_of = np.zeros(0, dtype=np.int32)  # pairs: a Gaussian may be in several groups
    found, num_groups = [], 0
    for front in views:
        sizes = np.bincount(front.slot, minlength=front.num_masks)
        mask_of = np.full(num_gaussians, -1, dtype=np.int32)
        mask_of[front.gaussians] = front.slot
        mask = mask_of[members]
        seen = mask >= 0
        shape = front.num_masks, num_groups + 1  # the last group is still empty
        pairs = mask[seen].astype(np.int64) * shape[1] + groups_of[seen]
        shared = np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape)
        most = shared.max(axis=1)  # for one mask the score rises with the number it shares
        joins = (most > 0) & (most / np.maximum(sizes + most, 1) >= min_score)
        group = np.where(joins, shared.argmax(axis=1), -1)
        # The masks of a view share no Gaussian, so what one of them joins or opens cannot matter to the next.
        new = ~joins & (sizes > 0)
        group[new] = num_groups + np.arange(new.sum())
        num_groups += int(new.sum())
        gained = new[front.slot] | ~owned[front.gaussians]
        members = np.append(members, front.gaussians[gained].astype(np.int32))
        groups_of = np.append(groups_of, group[front.slot][gained].astype(np.int32))
        owned[front.gaussians] = True
        found.append(group)
    return found, num_groups


METHOD = MethodEntry("gaga", GagaSettings, Gaga)
