"""Frames of black pixels that undistortion leaves around photos: no colour was seen there, none is to be learnt."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import repeat

import cv2
import numpy as np
import torch
from torch import Tensor

from unified_lift.types import View

_DARK = 24  # brightest channel of a black pixel after JPEG and resizing
_SHARE_OF_VIEWS = 0.9  # a pixel dark in nearly every view lies outside the lens, not on a dark object
_MIN_VIEWS = 8  # fewer views say nothing about chance
_MARGIN = 2  # pixels beside the frame into which its black was blended
_MAX_SHARE_OF_IMAGE = 0.25  # a larger dark area is the scene itself (night, a black backdrop)


def black_frame(
    images: Iterable[np.ndarray], looked_at: Iterable[np.ndarray | None] = repeat(None)
) -> np.ndarray | None:
    """Return where photos uint8 [H, W, 3] of one camera are black in nearly every view, connected to the image border.

    bool [H, W], None where there is no such frame; photos are looked at one by one, with what counts of them, None =
    all. What never counts is not black.
    """
    num_images, num_dark, num_seen = 0, np.zeros((), dtype=np.int32), np.zeros((), dtype=np.int32)
    for image, counts in zip(images, looked_at, strict=False):
        red, green, blue = np.moveaxis(image <= _DARK, 2, 0)  # ten times faster than the largest of three channels
        dark, seen = red & green & blue, np.ones(image.shape[:2], bool) if counts is None else counts
        num_images, num_dark, num_seen = num_images + 1, num_dark + (dark & seen), num_seen + seen
    if num_images < _MIN_VIEWS:
        return None
    dark = (num_dark / np.maximum(num_seen, 1) >= _SHARE_OF_VIEWS) & (num_seen > 0)
    _, regions = cv2.connectedComponents(dark.astype(np.uint8), connectivity=8)
    edge = np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]])
    frame = np.isin(regions, np.setdiff1d(edge, 0))
    if not frame.any() or frame.mean() > _MAX_SHARE_OF_IMAGE:
        return None
    return cv2.dilate(frame.astype(np.uint8), np.ones((2 * _MARGIN + 1,) * 2, np.uint8)).astype(bool)


def black_frames(
    views: Sequence[View], with_exclusions: Sequence[bool] = ()
) -> tuple[dict[tuple[int, int], Tensor], list[str]]:
    """Return what lies inside the black frame of views of a size (width, height), bool [H, W], where they have one.

    And notes on these. Of views `with_exclusions` what is left out already says nothing.
    """
    excluded = [*with_exclusions, *[False] * (len(views) - len(with_exclusions))]
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, view in enumerate(views):
        groups[view.camera.width, view.camera.height].append(index)
    inside, notes = dict[tuple[int, int], Tensor](), []
    for size, indices in groups.items():
        known = (views[index].valid if excluded[index] else None for index in indices)
        counts = (None if valid is None else valid.numpy() for valid in known)
        frame = black_frame((views[index].image.numpy() for index in indices), counts)
        if frame is None:
            continue
        inside[size] = torch.from_numpy(~frame)
        what = f"{len(indices)} of {len(views)} views have a black frame, as undistortion leaves it"
        notes.append(f"{what}: {frame.mean():.1%} of their pixels neither train nor count")
    return inside, notes


def without_frame(valid: Tensor | None, inside: Tensor | None) -> Tensor | None:
    """Return which pixels of a view count, of those that do so, both None = all, where its black frame does not."""
    return inside if valid is None else valid if inside is None else inside & valid
