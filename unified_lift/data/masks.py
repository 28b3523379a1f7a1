"""Segment masks of views: found by name and read, whatever their format (`mask_formats/`)."""

import itertools
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from PIL import Image

from unified_lift.data.lookup import match_names
from unified_lift.data.mask_formats.base import MaskFile, MaskFormat, painted
from unified_lift.errors import UserError
from unified_lift.registry import members

_FOUND: list[MaskFormat] = members("unified_lift.data.mask_formats", "FORMAT")
FORMATS = sorted(_FOUND, key=lambda form: form.precedence)
"""All formats; a view's mask is read by the first that finds one."""
LOOKS_FOR = ", ".join(form.looks_for for form in FORMATS)
"""How masks may be named, for messages."""
_SUFFIXES = {suffix for form in FORMATS for suffix in form.suffixes}
_ABOUT_MASKS = ("masks.json", "metadata.csv", "Thumbs.db", "desktop.ini")
_WORDS = "masks?|segm?|segmentations?|segments?|labels?|labelids|ids?|instances?|instanceids|inst|objects?|panoptic|s"
_WORD = re.compile(rf"^(.*/)?(?:(?:{_WORDS})[_\-. ]+)?([^/]+?)(?:[_\-. ]+(?:{_WORDS}))?$", re.IGNORECASE)
"""What says that a file is a mask, before or after the name of its photo."""
_TOPS = (2**32 - 1, 2**64 - 1)  # -1, written without a sign
_MAX_ID = np.iinfo(np.int32).max


def mask_at(path: Path) -> MaskFile:
    """Return the mask that a file holds; a suffix that no format knows is taken for a picture's."""
    return MaskFile(path, next((form for form in FORMATS if path.suffix.lower() in form.suffixes), FORMATS[0]))


class FoundMasks(NamedTuple):
    """The masks of views by their names, notes on those of other names, and the files that serve no view."""

    masks: dict[str, MaskFile]
    notes: list[str]
    unused: list[Path]


def find_masks(folder: Path, names: Sequence[str]) -> FoundMasks:
    """Return the masks of views in a folder (or one file of all): by exact name, else as `named_like` finds them."""
    found, notes = {name: mask for name in names if (mask := find_mask(folder, name))}, list[str]()
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_no_mask(path))
    unused = _unused(files, found)
    if unused and len(found) < len(set(names)):
        masks = {path: mask_at(path) for path in unused if path.suffix.lower() in _SUFFIXES}
        folders = sorted({path.parent for path in masks} - {folder})
        masks |= {one.path: one for path in folders if (one := find_mask(folder, _relative(path, folder)))}
        ordered = sorted(masks, key=lambda path: (masks[path].format.precedence, path))
        alike, notes = named_like(names, folder, ordered, known={name: mask.path for name, mask in found.items()})
        found |= {name: masks[path] for name, path in alike.items()}
        unused = _unused(unused, found)
    return FoundMasks(found, notes, unused)


def _unused(files: Sequence[Path], found: Mapping[str, MaskFile]) -> list[Path]:
    """Return the files that are no mask of a view, and in none that is a folder."""
    used = {mask.path for mask in found.values()}
    return [path for path in files if path not in used and path.parent not in used]


def named_like(
    names: Sequence[str], folder: Path, paths: Sequence[Path], *, known: Mapping[str, Path] = MappingProxyType({})
) -> tuple[dict[str, Path], list[str]]:
    """Return which of the paths below a folder each view means whose path is not `known`, and notes on how.

    Names are those of `match_names`; what none of them means also without a word such as `_mask`. Of paths that differ
    in their own suffix alone the first is taken. A UserError lists the candidates where several are left.
    """
    if not paths:
        return {}, []
    found: dict[str, Path] = {}
    alike: dict[str, list[str]] = defaultdict(list)
    for elsewhere, word in itertools.product((False, True), ("", "a word for masks")):  # in its place before elsewhere
        keys: dict[str, list[Path]] = defaultdict(list)
        for path in (*paths, *known.values()):
            key = _relative(path, folder)
            key = key if path.is_dir() else os.path.splitext(key)[0]
            keys[_WORD.sub(r"\g<1>\g<2>", key) if word else key].append(path)
        matching, taken = match_names(names, keys), {*known.values(), *found.values()}
        for name in (name for name in names if name not in known and name not in found):
            match = matching.found.get(name)
            if not elsewhere and (match is None or "folder" in match.how):
                continue
            several = match is None and name in matching.unclear
            meant = matching.unclear[name] if several else [match.present] if match else []
            options = [_relative(path, folder) for key in meant for path in keys[key] if path not in taken]
            if several and len(options) > 1 or len({os.path.splitext(option)[0] for option in options}) > 1:
                what = f"the mask of {name} may be {', '.join(options[:5])}{' ...' if len(options) > 5 else ''}"
                raise UserError(f"{folder}: {what}; name masks like their photos, and remove the others")
            if options and match is not None:
                found[name] = folder / options[0]
                alike[word or match.how].append(f"{name} is {options[0]}")
    notes = [
        f"{folder.name}: {len(group)} of {len(names)} masks are found under another name ({how}): {group[0]}"
        for how, group in alike.items()
        if how
    ]
    return found, notes


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _is_no_mask(path: Path) -> bool:
    """Return whether a file beside masks is none by its name: hidden, or text about them."""
    return path.name.startswith(".") or path.name in _ABOUT_MASKS or path.suffix.lower() in (".txt", ".md", ".log")


def find_mask(folder: Path, name: str) -> MaskFile | None:
    """Return the mask of a view, or None: by its full relative path (`cam1/0001`), then by the stem alone (`0001`).

    Only the image suffix was cut from `name`, so `a.b` finds `a.b.png`.
    """
    names = dict.fromkeys((name, PurePosixPath(name).name))
    return next((found for n in names for form in FORMATS if (found := form.find(folder, n))), None)


def read_mask(mask: MaskFile | Path) -> np.ndarray:
    """Return the segment ids of a view, int32 [H, W]; errors as in `read_stored_mask`, and for negative ids."""
    stored = read_stored_mask(mask)
    if stored.lowest < 0:
        path = mask if isinstance(mask, Path) else mask.path
        received = f"{stored.lowest}..{stored.highest}"
        raise UserError(f"{path}: ids must lie in 0..2^31-1, received {received}; write unlabelled as 0")
    return stored.ids


class StoredMask(NamedTuple):
    """A mask as its file has it: ids, int32 [H, W], how they are stored, such as "16-bit" or "npy", and their range."""

    ids: np.ndarray
    kind: str
    lowest: int
    highest: int


def read_stored_mask(mask: MaskFile | Path, *, size: tuple[int, int] | None = None) -> StoredMask:
    """Return the ids of a file. Of masks that overlap, [N, H, W] or [H, W, N], the smallest wins a pixel.

    `size` is the photo's (width, height), by which the order of a stack's axes is known. NaN, and -1 written without a
    sign, become -1. A UserError names a file that is missing, damaged, of another shape, or holds fractions.
    """
    mask = mask_at(mask) if isinstance(mask, Path) else mask
    path, (array, kind) = mask.path, mask.format.read(mask._replace(size=size))
    is_rgba = array.ndim == 3 and array.shape[2] == 4 and array.size > 0 and array.max() > 1
    if array.dtype == np.uint8 and (array.ndim == 3 and array.shape[2] == 3 or is_rgba):
        ids = np.empty(array.shape[:2], np.int32)
        for first in range(0, len(ids), 256):  # in bands: whole, it would take five times the memory
            rows = slice(first, first + 256)
            ids[rows] = array[rows, :, :3].astype(np.int32) @ np.array([1, 256, 65536], np.int32)
        return StoredMask(ids, kind, int(ids.min()), int(ids.max()))
    if array.ndim > 2 and array.dtype.kind in "biuf":
        array, kind = _flattened(array, kind, size)
    if array.ndim != 2 or array.size == 0:
        what = "a mask is [H, W] ids, uint8 RGB [H, W, 3] or a stack of masks of 0 and 1, [N, H, W]"
        raise UserError(f"{path}: {what}, received {list(array.shape)} {array.dtype}; save one of these")
    if array.dtype.kind not in "biuf":
        raise UserError(f"{path}: ids must be whole numbers, received {array.dtype}")
    if array.dtype.kind == "f":
        array = np.where(np.isnan(array), -1, array)
        if not (np.isfinite(array).all() and (array == np.round(array)).all()):
            raise UserError(f"{path}: ids must be whole numbers, received fractions or infinity; save integers")
    lowest, highest = int(array.min()), int(array.max())
    if highest in _TOPS:
        array = np.where(array == array.dtype.type(highest), -1, array.astype(np.int64))
        lowest, highest = -1, int(array.max())
    if max(highest, -lowest) > _MAX_ID:
        raise UserError(f"{path}: ids must lie in 0..2^31-1, received {lowest}..{highest}; write unlabelled as 0")
    return StoredMask(array.astype(np.int32), kind, lowest, highest)


def _flattened(array: np.ndarray, kind: str, size: tuple[int, int] | None) -> tuple[np.ndarray, str]:
    """Return a stack of masks painted into ids, of LangSplat's levels of ids the coarsest; other arrays as they are."""
    while array.ndim > 2 and 1 in (alone := (array.shape[-1], array.shape[-3], array.shape[0])):
        array = array.squeeze((-1, -3, 0)[alone.index(1)])
    if array.ndim != 3:
        return array, kind
    sizes = array.shape[:0:-1], array.shape[1::-1]  # (width, height) if the masks are counted by the first or last axis
    first, last = (0 not in one and same_aspect(one, size or one) for one in sizes)
    layers = np.moveaxis(array, 2, 0) if last and (not first or array.shape[2] < array.shape[0]) else array
    if array.dtype == bool or ((layers == 0) | (layers == layers.max(initial=0))).all():
        ids = painted((layer > 0 for layer in layers), height=layers.shape[1], width=layers.shape[2])
        return ids, f"{kind} masks"
    if len(layers) in (3, 4) and (layers == np.round(layers)).all():  # default, small, medium, large [LangSplat]
        return layers[-1], f"{kind}, coarsest of {len(layers)} levels"
    return array, kind


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
