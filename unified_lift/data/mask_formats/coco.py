"""JSON with run lengths or polygons: a file per photo (segment-anything, SA-1B, LabelMe), or COCO's one file of all.

`<view>.json`: a list of masks, or an object with them under `annotations` or `shapes`. COCO: any JSON file of the mask
folder with `images` and `annotations`; images are known by their `file_name`. Ids count the masks of a photo.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from unified_lift.data.mask_formats.base import MaskFile, MaskFormat, painted
from unified_lift.errors import UserError
from unified_lift.reading import parsed_json, reading

Size = tuple[int, int]  # height, width


def locate(folder: Path, name: str) -> tuple[Path, str] | None:
    """Return the JSON file of a view, else a COCO file that lists it, which `folder` may be, and its name there."""
    own, key = folder / f"{name}.json", name.casefold()
    if own.is_file() and not _photos(own):
        return own, ""
    for path in [folder] if folder.is_file() else sorted(folder.glob("*.json")):
        for part in (key, PurePosixPath(key).name):
            if part in _photos(path):
                return path, part
    return None


def read(mask: MaskFile) -> tuple[np.ndarray, str]:
    """Return the painted ids and "RLE masks" or "polygon masks"; a UserError names what cannot be read as masks."""
    try:
        if mask.part:
            size, entries = _photos(mask.path)[mask.part]
        elif isinstance(content := parsed_json(mask.path), Mapping):
            size = _size(content) or _size(content.get("image", {}))
            entries = content["annotations" if "annotations" in content else "shapes"]
        else:
            size, entries = None, content
        shapes = [entry.get("segmentation", entry.get("points", entry)) for entry in entries]
        size = size or next((_size(shape) for shape in shapes if isinstance(shape, Mapping)), None)
        if size is None:
            raise ValueError("it tells no size of the photo")
        kind = "polygon masks" if shapes and not isinstance(shapes[0], Mapping) else "RLE masks"
        return painted((_mask(shape, size) for shape in shapes), height=size[0], width=size[1]), kind
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        what = f"no masks as run lengths or polygons ({type(error).__name__}: {error})"
        raise UserError(f"{mask.path}: {what}; write it again, or one PNG of ids per photo") from None


def _size(fields: Mapping) -> Size | None:
    """Return (height, width) as COCO's images and run lengths or LabelMe tell it."""
    if "size" in fields:
        height, width = fields["size"]
    else:
        height, width = (fields.get(key, fields.get(f"image{key.title()}")) for key in ("height", "width"))
    return (int(height), int(width)) if height and width else None


def _mask(shape: Any, size: Size) -> np.ndarray:
    """Return the mask of run lengths, or of a polygon or several, bool [H, W]."""
    if isinstance(shape, Mapping):
        counts = shape["counts"]
        return run_lengths(unpacked(counts) if isinstance(counts, str) else counts, size)
    mask = np.zeros(size, bool)
    several = bool(shape) and isinstance(shape[0], Sequence) and len(shape[0]) != 2  # LabelMe's points are pairs
    for polygon in shape if several else [shape]:
        corners = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
        mask |= inside_polygon(corners, size)
    return mask


def inside_polygon(corners: np.ndarray, size: Size) -> np.ndarray:
    """Return the pixels whose centres lie inside a polygon of corner-origin points (x, y), [K, 2], bool [H, W]."""
    crossings = np.zeros((size[0], size[1] + 1), np.int32)
    for (x, y), (next_x, next_y) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        low, high = sorted((y, next_y))
        rows = np.arange(max(0, math.ceil(low - 0.5)), min(size[0], math.ceil(high - 0.5)))
        if len(rows):
            crossed = x + (rows + 0.5 - y) * (next_x - x) / (next_y - y)
            crossings[rows, np.ceil(crossed - 0.5).clip(0, size[1]).astype(np.int64)] += 1
    return crossings.cumsum(axis=1)[:, :-1] % 2 == 1


def run_lengths(counts: Sequence[int] | np.ndarray, size: Size) -> np.ndarray:
    """Return the mask of COCO's run lengths, bool [H, W]: zeros first, column by column; a ValueError: they miss it."""
    lengths = np.asarray(counts, dtype=np.int64)
    if lengths.sum() != size[0] * size[1] or (lengths < 0).any():
        raise ValueError(f"run lengths of {lengths.sum()} pixels for {size[1]}x{size[0]}")
    flat = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return flat.reshape(size[1], size[0]).T


def unpacked(text: str) -> np.ndarray:
    """Return the run lengths in COCO's packed text, int64.

    Source: pycocotools: 5 bits a letter, the lowest first; 32 = more follows, 16 in the last = negative. From the
    fourth number on each is the difference to that two places before.
    """
    letters = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(letters & 32 == 0)
    if not len(last) or last[-1] != len(letters) - 1 or (letters < 0).any() or (letters > 63).any():
        raise ValueError("packed run lengths are cut or damaged")
    first = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(len(letters)) - np.repeat(first, last - first + 1)
    numbers = np.add.reduceat((letters & 31) << (5 * place), first)
    numbers -= np.where(letters[last] & 16, np.int64(1) << (5 * (place[last] + 1)), 0)
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers


def _photos(path: Path) -> Mapping[str, tuple[Size | None, list]]:
    """Return size and masks of the photos in a COCO file; their names are lower case without suffix, and those of files
    without folders where only one is called so. Empty for another file.
    """
    state = path.stat()
    return _tables(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=4096)  # so that each is parsed once; of others than COCO's nothing is kept
def _tables(path: Path, *_: int) -> Mapping[str, tuple[Size | None, list]]:
    with reading(path, "JSON file", fix="write it again"), path.open("rb") as file:
        is_object = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{"
    content = parsed_json(path) if is_object else {}
    if not (isinstance(content.get("images"), list) and isinstance(content.get("annotations"), list)):
        return {}
    try:
        names = {image["id"]: image["file_name"].replace("\\", "/").casefold() for image in content["images"]}
        masks: dict[object, tuple[Size | None, list]] = {image["id"]: (_size(image), []) for image in content["images"]}
        for one in content["annotations"]:
            masks[one["image_id"]][1].append(one)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: not COCO's images and annotations ({error!r}); export it again") from None
    paths = {key: PurePosixPath(name).with_suffix("") for key, name in names.items()}
    times = Counter(path.name for path in paths.values())
    alone = {path.name: masks[key] for key, path in paths.items() if times[path.name] == 1}
    return alone | {str(path): masks[key] for key, path in paths.items()}


FORMAT = MaskFormat(looks_for=".json (RLE, COCO)", suffixes=(".json",), read=read, locate=locate, precedence=60)
