"""Reading and resizing photos, and the loop that does it in parallel."""

import math
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal, TypeVar

import cv2
import numpy as np
from PIL import Image

from unified_lift.errors import UserError
from unified_lift.reading import reading

Alpha = Literal["auto", "ignore", "mask", "background"]
"""What the alpha of photos means: what they tell, nothing, which pixels count, or where the background shows."""
Progress = Callable[[int, int], None]
"""Called with (done, total) after each loaded view."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff")
"""Kinds of photos that are looked for in folders, in lower case; files may have them in any case."""

In = TypeVar("In")
Out = TypeVar("Out")


LARGE = 2**27  # pixels from which photos are decoded one at a time; they are some hundred megabytes each
_MOST = 2**32  # pixels that are ever decoded
_SUSPECT, _PER_BYTE = 178_956_970, 2**14  # beyond Pillow's own limit of pixels, no photo has so many in a byte
_OPENING, _DECODING_LARGE = threading.Lock(), threading.RLock()
_EXIF_ORIENTATION = 0x0112
_MARGIN = 2  # pixels beside what does not count in which its edge makes corners


def _naming(path: Path) -> AbstractContextManager[None]:
    """Return a context that turns what Pillow raises into an error that names the file."""
    missing = "no such file; restore it or remove it from the scene"
    return reading(path, "image", fix="copy or export it again", missing=missing)


def open_image(path: Path) -> Image.Image:
    """Return the decoded picture in its own mode, not rotated as EXIF says; a UserError names a damaged file."""
    with _naming(path):
        image = opened(path)
        with one_at_a_time(image.size):
            image.load()
        return image


def image_size(path: Path) -> tuple[int, int]:
    """Return (width, height) from the file's header; a UserError names a missing or damaged file."""
    with _naming(path), opened(path) as image:
        return image.size


def has_alpha(image: Image.Image) -> bool:
    """Return whether a picture has an alpha channel, or a colour that is transparent."""
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def exif_orientation(path: Path) -> int:
    """Return by which of EXIF's eight orientations the stored picture is to be shown, 1 = as it is stored."""
    with _naming(path), opened(path) as image:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Return a picture [H, W, ...] that is stored in an EXIF orientation as it is to be shown; 5 to 8 swap its axes."""
    turned = image.swapaxes(0, 1) if orientation > 4 else image
    rows, cols = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(turned[:: -1 if rows else 1, :: -1 if cols else 1])


def one_at_a_time(size: tuple[int, int]) -> AbstractContextManager[object]:
    """Return a context in which no two pictures of a large size (width, height) are at the same time."""
    return _DECODING_LARGE if math.prod(size) > LARGE else nullcontext()


def opened(path: Path) -> Image.Image:
    """Return a picture with only its header read; a ValueError says that it claims more pixels than it can hold."""
    with _OPENING:  # Pillow's own limit is that of a program which opens pictures of strangers, and no photo's
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    pixels, num_bytes = math.prod(image.size), path.stat().st_size
    if pixels > _MOST or (pixels > _SUSPECT and pixels > _PER_BYTE * num_bytes):
        raise ValueError(f"its {num_bytes} bytes claim {image.width}x{image.height} pixels")
    return image


def read_photo(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the photo of 8 or 16 bits as uint8 RGB, [H, W, 3], and its alpha, uint8 [H, W], None = opaque.

    Grey, palette and CMYK are converted; colours are those below the alpha.
    """
    image = open_image(path)
    if image.mode.startswith(("I", "F")):  # 16-bit grey
        deep = np.clip(np.asarray(image, dtype=np.float64) / 257.0, 0, 255)
        return np.repeat(np.round(deep).astype(np.uint8)[..., None], 3, axis=-1), None
    if not has_alpha(image):
        return np.array(image.convert("RGB")), None
    rgba = np.asarray(image.convert("RGBA"))
    return np.ascontiguousarray(rgba[..., :3]), None if rgba[..., 3].min() == 255 else rgba[..., 3]


def composited(image: np.ndarray, alpha: np.ndarray, *, background: int) -> np.ndarray:
    """Return colours uint8 [H, W, 3] of some alpha uint8 [H, W] over grey of a value in 0..255, uint8 [H, W, 3]."""
    share = alpha[..., None].astype(np.uint32)
    return ((image * share + background * (255 - share) + 127) // 255).astype(np.uint8)


def read_image(path: Path, *, alpha: Alpha = "ignore") -> np.ndarray:
    """Return the photo as uint8 RGB, [H, W, 3], as `read_photo` does; with alpha = `background` over black."""
    image, opacity = read_photo(path)
    return composited(image, opacity, background=0) if alpha == "background" and opacity is not None else image


def counted_grey(image: np.ndarray, valid: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Return a photo uint8 [H, W, 3] in grey, black where `valid` is not, and where to look for corners, uint8 [H, W].

    That is a few pixels away from what does not count; None = everywhere.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if valid is None:
        return grey, None
    away = cv2.erode(valid.astype(np.uint8), np.ones((2 * _MARGIN + 1,) * 2, np.uint8), borderValue=1)
    return np.where(valid, grey, np.uint8(0)), away


def write_image(path: Path, image: np.ndarray) -> None:
    """Write uint8 RGB [H, W, 3] or RGBA [H, W, 4]; the suffix chooses the format, missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def photos_in(folder: Path, pattern: str = "**/*") -> list[Path]:
    """Return the photos below a folder, sorted, hidden files left out; none where there is no such folder."""
    files = folder.glob(pattern) if folder.is_dir() else ()
    return sorted(p for p in files if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))


def target_size(width: int, height: int, resolution: int) -> tuple[int, int]:
    """Return the (width, height) at which an image is used.

    Source: the -r rule of 3D-GS: 1, 2, 4, 8 divide, rounded to nearest; -1 shrinks only what is wider than 1600 px; any
    other positive number is the target width, the height being cut to whole pixels.
    """
    if resolution in (1, 2, 4, 8):
        return max(1, round(width / resolution)), max(1, round(height / resolution))
    if resolution == -1:
        resolution = min(width, 1600)
    if resolution < 1:
        raise UserError(f"--resolution {resolution}: choose 1, 2, 4, 8, a target width in pixels, or -1 for automatic")
    return resolution, max(1, height * resolution // width)


def resize_image(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return the photo [H, W, ...] at another size, [height, width, ...]: area average to shrink, bilinear to grow."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = width <= image.shape[1] and height <= image.shape[0]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def parallel_map(function: Callable[[In], Out], items: Sequence[In], progress: Progress | None = None) -> list[Out]:
    """Return [function(item) for item in items], computed by a pool of threads; order and first error are kept."""
    results: list[Out] = []
    most = 8  # more wait for Python's lock: first points of 120 views took 4.3 s with 16 on 16 cores, 3.2 with 8
    with ThreadPoolExecutor(max_workers=min(most, 2 * (os.cpu_count() or 1))) as pool:
        try:
            for result in pool.map(function, items):
                results.append(result)
                if progress is not None:
                    progress(len(results), len(items))
        finally:
            pool.shutdown(cancel_futures=True)
    return results
