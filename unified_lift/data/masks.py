"""Segment masks of views: found by name and read, whatever their format (`mask_formats/`)."""

from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from unified_lift.data.mask_formats.base import MaskFile, MaskFormat
from unified_lift.errors import UserError
from unified_lift.registry import members

_FOUND: list[MaskFormat] = members("unified_lift.data.mask_formats", "FORMAT")
FORMATS = sorted(_FOUND, key=lambda form: form.precedence)
"""All formats; a view's mask is read by the first that finds one."""
MASK_SUFFIXES = tuple(suffix for form in FORMATS for suffix in form.suffixes)
LOOKS_FOR = ", ".join(form.looks_for for form in FORMATS)
"""How masks may be named, for messages."""


def mask_at(path: Path) -> MaskFile:
    """Return the mask that a file holds; a suffix that no format knows is taken for a picture's."""
    return MaskFile(path, next((form for form in FORMATS if path.suffix in form.suffixes), FORMATS[0]))


def find_mask(folder: Path, name: str) -> MaskFile | None:
    """Return the mask of a view, or None: by its full relative path (`cam1/0001`), then by the stem alone (`0001`).

    Only the image suffix was cut from `name`, so `a.b` finds `a.b.png`.
    """
    names = dict.fromkeys((name, PurePosixPath(name).name))
    return next((found for n in names for form in FORMATS if (found := form.find(folder, n))), None)


def read_mask(mask: MaskFile | Path) -> np.ndarray:
    """Return the segment ids of a view, int32 [H, W]."""
    return read_stored_mask(mask)[0]


def read_stored_mask(mask: MaskFile | Path) -> tuple[np.ndarray, str]:
    """Return the segment ids of a view, int32 [H, W], and how they are stored, such as "16-bit" or "npy".

    A UserError names a file that is missing, damaged, of another shape, or holds negative or fractional ids.
    """
    mask = mask_at(mask) if isinstance(mask, Path) else mask
    path, (array, kind) = mask.path, mask.format.read(mask)
    if array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8:
        return array.astype(np.int32) @ np.array([1, 256, 65536], np.int32), kind
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim != 2 or array.size == 0:
        raise UserError(f"{path}: a mask is [H, W] ids or uint8 RGB [H, W, 3], received {list(array.shape)}")
    if array.dtype.kind not in "biuf":
        raise UserError(f"{path}: ids must be whole numbers, received {array.dtype}")
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and (array == np.round(array)).all()):
        raise UserError(f"{path}: ids must be whole numbers, received fractions or NaN; save integers")
    if array.min() < 0 or array.max() > np.iinfo(np.int32).max:
        received = f"{array.min()}..{array.max()}"
        raise UserError(f"{path}: ids must lie in 0..2^31-1, received {received}; write unlabelled as 0")
    return array.astype(np.int32), kind


def write_mask(path: Path, ids: np.ndarray) -> None:
    """Write segment ids [H, W] as 16-bit grey PNG; missing folders are made. A ValueError names ids beyond 0..65535."""
    ids = np.asarray(ids)
    if ids.ndim != 2:
        raise ValueError(f"ids must be [H, W], received {list(ids.shape)}")
    if ids.size and (ids.min() < 0 or ids.max() > 65535):
        raise ValueError(f"a 16-bit mask holds ids 0..65535, received {ids.min()}..{ids.max()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids.astype(np.uint16)).save(path)


def same_aspect(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Return whether two (width, height) sizes are one picture scaled, up to rounding to whole pixels."""
    small, large = sorted((size, other), key=lambda wh: wh[0] * wh[1])
    # A side of `s` pixels is round(x) or floor(x) of the exact x in [s - 0.5, s + 1).
    lowest = max(large[0] / (small[0] + 1), large[1] / (small[1] + 1))
    highest = min(large[0] / (small[0] - 0.5), large[1] / (small[1] - 0.5))
    return lowest < highest
