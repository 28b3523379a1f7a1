"""Pixels that neither train nor count: marked by black-and-white pictures, or by the alpha of photos."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unified_lift.data.base import DYNAMIC_MASK, Exclusion, Frame, listed
from unified_lift.data.images import Alpha, has_alpha, open_image, opened, photos_in, read_photo
from unified_lift.data.masks import named_like
from unified_lift.data.points import MIN_POINTS, in_picture
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError
from unified_lift.ops.cameras import project
from unified_lift.types import PointCloud, View

FOLDER = "masks"
"""Where COLMAP, nerfstudio and others keep pictures that are black where pixels are left out."""
ALPHA_WORDS = {
    "ignore": "alpha is ignored",
    "mask": "pixels of alpha below one half neither train nor count",
    "background": "they lie over the background",
}
"""What is done with photos by their alpha, for messages."""
_LOSSY = (".jpg", ".jpeg", ".webp")
_WITH_ALPHA = (".png", ".webp", ".tif", ".tiff", ".gif")
_LOOKED_AT = 8  # files or photos by which it is decided what all of them are
_LEAST_EXTREME = 0.98  # share of the pixels of a black-and-white picture that are near its black or its white
_ENOUGH_VIEWS = 64  # by which it is decided whether a point lies among excluded pixels
_MISTAKEN = 0.9  # share of excluded pixels that looks like a mistake
_MUCH_TRANSPARENT, _MUCH_OF_BORDER = 0.3, 0.5  # in photos of which one thing was cut out


def with_exclusions(frames: Sequence[Frame], settings: DataSettings, *, ids: Path) -> tuple[list[Frame], list[str]]:
    """Return the frames with the pictures that leave out pixels, as --exclude says, and notes on what was found.

    `ids` is the folder of the masks that are lifted, which are no such pictures.
    """
    wanted, names = settings.exclude, [frame.name for frame in frames]
    if wanted == "none":
        return [replace(frame, exclusions=()) for frame in frames], []
    folder = settings.source_path / (FOLDER if wanted == "auto" else wanted)
    if wanted == "auto":
        frames, named = [_with_dynamic_mask(frame) for frame in frames], any(frame.exclusions for frame in frames)
        files = [] if named or folder.resolve() == ids.resolve() else photos_in(folder)
        if not all(map(_is_black_and_white, _some(files))):
            return list(frames), [f"{folder}: holds ids, not black and white; --object_path {FOLDER} lifts them"]
    else:
        files = photos_in(folder)
    found, notes = named_like(names, folder, files)
    if wanted != "auto" and not found:
        raise UserError(f"{folder}: holds no picture of a photo; correct --exclude, or use none")
    if files and (without := [name for name in names if name not in found]):
        notes.append(f"{folder}: {len(without)} of {len(names)} photos have no picture there: {listed(without)}")
    return [
        replace(frame, exclusions=(*frame.exclusions, Exclusion(found[frame.name]))) if frame.name in found else frame
        for frame in frames
    ], notes


def pixels_left_out(exclusion: Exclusion) -> np.ndarray:
    """Return the pixels that a picture leaves out, bool [H, W]; a UserError names a damaged file."""
    grey = _grey(exclusion.path)
    marked = grey > (127 if exclusion.path.suffix.lower() in _LOSSY else 0)
    return marked if exclusion.is_white else ~marked


class Excluded(NamedTuple):
    """Pixels that a view leaves out, bool [h, w] at any size, and what says so."""

    pixels: np.ndarray
    source: str


def without_excluded(
    cloud: PointCloud, views: Sequence[View], excluded: Sequence[Excluded | None]
) -> tuple[PointCloud, list[str]]:
    """Return the points but those among excluded pixels in most of the views that show them, and notes on both.

    `excluded` are those of the `views`, of which there may be fewer, and of others that count in the notes.
    """
    marked = [one for one in excluded if one is not None]
    if not marked:
        return cloud, []
    share = float(np.mean([one.pixels.mean() for one in marked]))
    what = f"{len(marked)} of {len(excluded)} views have pixels that neither train nor count"
    notes = [f"{what}: {share:.1%} of theirs ({marked[0].source}{', ...' if len(marked) > 1 else ''})"]
    if share > _MISTAKEN:
        notes[0] += "; is black there what was to be left out? --exclude none and --alpha ignore keep all"
    shown, hidden = np.zeros((2, len(cloud.positions)), np.int64)
    for view, one in list(zip(views, excluded, strict=False))[:: -(-len(views) // _ENOUGH_VIEWS)]:
        pixels, depth = project(cloud.positions, view.camera)
        inside = in_picture(pixels, depth, view.camera)
        shown += inside
        if one is not None:
            last = np.array(one.pixels.shape[::-1]) - 1
            at = np.where(inside[:, None], pixels, 0) * (last + 1) / (view.camera.width, view.camera.height)
            column, row = np.minimum(at.astype(np.int64), last).T
            hidden += inside & one.pixels[row, column]
    kept = 2 * hidden <= shown
    if kept.all() or kept.sum() < MIN_POINTS:
        return cloud, notes
    notes.append(f"{(~kept).sum()} points lie among such pixels in most views that show them and are left out")
    num_random = int(kept[len(kept) - cloud.num_random :].sum())
    return PointCloud(positions=cloud.positions[kept], colors=cloud.colors[kept], num_random=num_random), notes


def with_alpha(frames: Sequence[Frame], settings: DataSettings) -> list[Frame]:
    """Return the frames with what alpha means, as --alpha and their reader say.

    Where neither does, photos that are mostly transparent, and so along most of their border, were cut out and lie over
    the background; in others alpha says which pixels count.
    """
    given = settings.alpha != "auto"
    asked = [] if given else [frame.image_path for frame in frames if frame.alpha == "auto"]
    alpha = _meaning(asked) if asked else settings.alpha
    return [replace(frame, alpha=alpha) if given or frame.alpha == "auto" else frame for frame in frames]


def _meaning(photos: Sequence[Path]) -> Alpha:
    shares = []
    for path in _some([path for path in photos if path.suffix.lower() in _WITH_ALPHA and path.is_file()]):
        try:
            with opened(path) as image:
                alpha = read_photo(path)[1] if has_alpha(image) else None
        except (OSError, SyntaxError, ValueError, UserError):
            continue  # whoever loads it names it
        clear = np.zeros((1, 1), bool) if alpha is None else alpha < 128
        border = np.concatenate([clear[0], clear[-1], clear[:, 0], clear[:, -1]])
        shares.append((clear.mean(), border.mean()))
    much = np.mean(shares, axis=0) >= (_MUCH_TRANSPARENT, _MUCH_OF_BORDER) if shares else np.zeros(1, bool)
    return "background" if much.all() else "mask"


def _with_dynamic_mask(frame: Frame) -> Frame:
    path = frame.image_path.with_name(f"{DYNAMIC_MASK}{frame.image_path.stem}.png")
    return replace(frame, exclusions=(*frame.exclusions, Exclusion(path, is_white=True))) if path.is_file() else frame


def _is_black_and_white(path: Path) -> bool:
    """Return whether a picture has hardly another value than 0 and its largest one."""
    grey = _grey(path).astype(np.float64)
    share = grey / max(grey.max(), 1)
    return float(((share < 0.1) | (share > 0.9)).mean()) >= _LEAST_EXTREME


def _grey(path: Path) -> np.ndarray:
    """Return the values of a picture, [H, W], of a colour picture the brightest channel."""
    image = open_image(path)
    if image.mode not in ("L", "1") and not image.mode.startswith(("I", "F")):
        return np.asarray(image.convert("RGB")).max(axis=-1)
    return np.asarray(image)


def _some(paths: Sequence[Path]) -> Sequence[Path]:
    """Return a few paths, evenly spaced."""
    return [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, _LOOKED_AT).astype(int))] if paths else []
