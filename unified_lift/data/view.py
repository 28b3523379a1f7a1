"""From what a reader describes to one loaded view: the same for all readers."""

import functools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from unified_lift.data.base import Frame, as_posed, fit_lens, make_camera, posed_size
from unified_lift.data.exclusions import ALPHA_WORDS, Excluded, pixels_left_out
from unified_lift.data.images import (
    LARGE,
    composited,
    image_size,
    one_at_a_time,
    read_photo,
    resize_image,
    target_size,
    upright,
)
from unified_lift.data.lens import Lens, undistort_ids, undistort_image
from unified_lift.data.masks import read_stored_mask, same_aspect
from unified_lift.data.settings import DataSettings
from unified_lift.data.void import TellingIds, telling_ids
from unified_lift.errors import UserError
from unified_lift.ops.resample import nearest
from unified_lift.types import Camera, View

_SMALL = 256  # px: largest side at which excluded pixels are remembered until the scene is loaded


class LoadedView(NamedTuple):
    """A view at the size in use, and what else is known of it."""

    view: View
    ids: TellingIds | None = None  # of its mask
    excluded: Excluded | None = None  # the pixels that the scene leaves out, small
    notes: Sequence[str] = ()
    was_looked_at: bool = True


def size_in_use(frame: Frame, settings: DataSettings) -> tuple[int, int]:
    """Return the (width, height) at which the photo is used, the way up that its pose is for."""
    return target_size(*posed_size(frame.stored or image_size(frame.image_path), frame), settings.resolution)


def camera_in_use(frame: Frame, settings: DataSettings) -> Camera:
    """Return the camera of the view as `load_view` makes it; no pixel is decoded."""
    stored, (width, height) = (
        posed_size(frame.stored or image_size(frame.image_path), frame),
        size_in_use(frame, settings),
    )
    decoded = (width, height) if _shrinks(stored, width, height) else stored
    return make_camera(frame, fit_lens(frame, width=decoded[0], height=decoded[1])).resized(width, height)


def load_view(
    frame: Frame, *, settings: DataSettings, background: int, keep_alpha: bool, keep: Callable[[np.ndarray], Tensor]
) -> LoadedView | str:
    """Return the view, its arrays as `keep` returns them, with ids as in the file, and notes on what was done to it.

    Of a photo that cannot be decoded it is what is wrong with it.
    """
    notes, (width, height) = list[str](), size_in_use(frame, settings)
    kept_alpha: np.ndarray | None = None
    try:
        image, alpha = _read_photo(frame, width, height)
    except UserError as error:
        return str(error)
    lens, segments, ids = fit_lens(frame, width=image.shape[1], height=image.shape[0]), None, None
    if lens.size != frame.lens.size:
        notes.append(f"intrinsics of {frame.lens.width}x{frame.lens.height} scaled to {lens.width}x{lens.height}")
    parts = []
    for exclusion in frame.exclusions:
        parts.append(as_posed(pixels_left_out(exclusion), frame))
        check_aspect(exclusion.path, parts[-1], lens, "its image", "make it from this image, or use --exclude none")
    if alpha is not None:
        notes.append(f"are partly transparent: {ALPHA_WORDS[frame.alpha]} (--alpha)")
        if frame.alpha == "background":
            image, kept_alpha = composited(image, alpha, background=background), alpha if keep_alpha else None
        elif frame.alpha == "mask":
            parts.append(alpha < 128)
    out = functools.reduce(np.logical_or, [nearest(part, lens.height, lens.width) for part in parts]) if parts else None
    if frame.mask is not None:
        stored = read_stored_mask(frame.mask, size=lens.size)
        if stored.kind.endswith(("masks", "levels")):
            place = Path(os.path.relpath(frame.mask.path, settings.source_path)).parts[0]
            notes.append(f"have {stored.kind} in {place}, made into one map of ids")
        segments, ids = as_posed(stored.ids, frame), telling_ids(frame.mask.path, stored)
        if segments is not stored.ids:
            notes.append("have a mask that is turned as their EXIF data say")
        check_aspect(frame.mask.path, segments, lens, "its image", "make the mask from this image or remove it")
        segments = nearest(segments, lens.height, lens.width)
    valid, hidden = None, None if out is None else out.astype(np.float32)
    if lens.is_distorted:
        notes.append("undistorted to a pinhole with the same intrinsics (left out where the lens saw nothing)")
        image = undistort_image(image, lens)
        kept_alpha = None if kept_alpha is None else undistort_image(kept_alpha, lens)
        segments = undistort_ids(segments, lens) if segments is not None else None
        valid = nearest(undistort_ids(np.ones((lens.height, lens.width), np.int32), lens) > 0, height, width)
        hidden = None if hidden is None else undistort_image(hidden, lens)
        out = None if out is None else undistort_ids(out.astype(np.int32), lens) > 0
    if (width, height) != lens.size:
        sizes = f"from {lens.width}x{lens.height} to {width}x{height}"
        notes.append(f"resized {sizes} (--resolution {settings.resolution})")
    if hidden is not None:  # whatever they are mixed into by resampling is left out as well; enlarged, they are black
        if width > lens.width or height > lens.height:
            image, hidden = np.where(hidden[..., None] > 0, np.uint8(0), image), nearest(hidden, height, width)
        pure = resize_image(hidden, width, height) == 0
        valid = pure if valid is None else valid & pure
    view = View(
        name=frame.name,
        camera=make_camera(frame, lens).resized(width, height),
        segments=None if segments is None else keep(nearest(segments, height, width)),
        valid=None if valid is None or valid.all() else keep(valid),
        image=keep(resize_image(image, width, height)),
        alpha=None if kept_alpha is None else keep(resize_image(kept_alpha, width, height)),
    )
    excluded = None
    if out is not None and out.any():
        small = nearest(out, min(height, _SMALL), min(width, _SMALL))
        excluded = Excluded(small, str(frame.exclusions[0].path) if frame.exclusions else "transparent")
    return LoadedView(view, ids, excluded, notes)


def _read_photo(frame: Frame, width: int, height: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Return colour and alpha of the photo the way up that its pose is for; of a large one at the size in use."""
    with one_at_a_time(size := frame.stored or image_size(frame.image_path)):
        shrinks = _shrinks(size, width, height)
        found = [upright(part, frame.turn) for part in read_photo(frame.image_path) if part is not None]
        image, *alpha = [resize_image(part, width, height) if shrinks else part for part in found]
        return image, alpha[0] if alpha else None


def _shrinks(stored: tuple[int, int], width: int, height: int) -> bool:
    """Return whether a photo is so large that it is resized at once: what follows takes many times its memory."""
    return math.prod(stored) > LARGE > width * height


def check_aspect(path: Path, mask: np.ndarray, lens: Lens, photo: str, fix: str) -> None:
    """Raise a UserError unless a mask [H, W] has the shape of its photo, scaled."""
    height, width = mask.shape
    if not same_aspect((width, height), lens.size):
        what = f"the mask is {width}x{height} but {photo} is {lens.width}x{lens.height}, another shape"
        raise UserError(f"{path}: {what}; {fix}")
