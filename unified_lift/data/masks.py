"""Segment id maps on disk: PNG of every kind, .npy and .npz."""

from __future__ import annotations

import io
import threading
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from unified_lift.data.images import open_image
from unified_lift.errors import UserError

MASK_SUFFIXES = (".png", ".npy", ".npz")
_NPZ_KEYS = ("indices", "segments", "ids", "mask", "masks", "arr_0")  # `indices` is OmniSeg3D's patch map
# NumPy parses the header of an array with `ast`, which Python before 3.11.8 and 3.12.2 does not survive in two threads
# at once ("AST constructor recursion depth mismatch"); the disk is read outside of it.
_PARSING = threading.Lock()


def read_mask(path: Path) -> np.ndarray:
    """Return the segment ids of a view, int32 [H, W].

    PNG: 8- and 16-bit grey give the value; palette images give the palette *index*; RGB gives red + 256 green + 65536
    blue (an alpha channel is ignored). `.npy`, and `.npz` with one array or a known key, give the array.

    Raises:
        UserError: The file is missing, damaged, of another shape, or holds negative or fractional ids.
    """
    if path.suffix in (".npy", ".npz"):
        return _ids_from_array(_read_array(path), path)
    image = open_image(path)
    if image.mode == "PA" or image.mode == "LA":
        return np.asarray(image)[..., 0].astype(np.int32)
    if image.mode == "RGBA":
        return _ids_from_array(np.asarray(image)[..., :3], path)
    if image.mode not in ("1", "L", "P", "RGB") and not image.mode.startswith("I"):
        raise UserError(f"{path}: image mode {image.mode} holds no ids; save it as 8- or 16-bit grey PNG")
    return _ids_from_array(np.asarray(image), path)


def write_mask(path: Path, ids: np.ndarray) -> None:
    """Write segment ids [H, W] as 16-bit grey PNG; missing folders are made.

    Raises:
        ValueError: An id lies outside 0..65535 or the map is not two-dimensional.
    """
    ids = np.asarray(ids)
    if ids.ndim != 2:
        raise ValueError(f"ids must be [H, W], received {list(ids.shape)}")
    if ids.size and (ids.min() < 0 or ids.max() > 65535):
        raise ValueError(f"a 16-bit mask holds ids 0..65535, received {ids.min()}..{ids.max()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids.astype(np.uint16)).save(path)


def find_mask(folder: Path, name: str) -> Path | None:
    """Return the mask file of a view, or None.

    The full relative path is tried first (`cam1/0001`), then the stem alone (`0001`), each as .png, .npy, .npz. Only
    the image suffix was cut from `name`, so `a.b` finds `a.b.png`.
    """
    for candidate in dict.fromkeys((name, PurePosixPath(name).name)):
        for suffix in MASK_SUFFIXES:
            path = folder / f"{candidate}{suffix}"
            if path.is_file():
                return path
    return None


def same_aspect(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Return whether two (width, height) sizes are one picture scaled, up to rounding to whole pixels."""
    small, large = sorted((size, other), key=lambda wh: wh[0] * wh[1])
    # A side of `s` pixels is round(x) or floor(x) of the exact x in [s - 0.5, s + 1).
    lowest = max(large[0] / (small[0] + 1), large[1] / (small[1] + 1))
    highest = min(large[0] / (small[0] - 0.5), large[1] / (small[1] - 0.5))
    return lowest < highest


def _read_array(path: Path) -> np.ndarray:
    try:
        content = io.BytesIO(path.read_bytes())
        with _PARSING:
            loaded = np.load(content, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                return loaded
            with loaded:
                keys = list(loaded.files)
                known = [key for key in _NPZ_KEYS if key in keys] or (keys if len(keys) == 1 else [])
                if not known:
                    raise UserError(f"{path}: holds {keys}; name the id map one of {', '.join(_NPZ_KEYS)}")
                return loaded[known[0]]
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; restore it or remove it from the scene") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a readable array ({error}); write the mask again") from None


def _ids_from_array(array: np.ndarray, path: Path) -> np.ndarray:
    """Return int32 [H, W] from [H, W], [H, W, 1] or uint8 RGB [H, W, 3]."""
    if array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8:
        red, green, blue = (array[..., channel].astype(np.int32) for channel in range(3))
        return red + 256 * green + 65536 * blue
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim != 2 or array.size == 0:
        raise UserError(f"{path}: a mask is [H, W] ids or uint8 RGB [H, W, 3], received {list(array.shape)}")
    if array.dtype.kind not in "biuf":
        raise UserError(f"{path}: ids must be whole numbers, received {array.dtype}")
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and (array == np.round(array)).all()):
        raise UserError(f"{path}: ids must be whole numbers, received fractions or NaN; save integers")
    if array.min() < 0 or array.max() > np.iinfo(np.int32).max:
        raise UserError(
            f"{path}: ids must lie in 0..2^31-1, received {array.min()}..{array.max()}; write unlabelled as 0"
        )
    return array.astype(np.int32)
