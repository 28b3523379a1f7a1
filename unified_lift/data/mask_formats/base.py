"""What a mask format tells the readers, check-data and their messages; how masks that overlap become ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unified_lift.errors import UserError

_MANY, _MOST_GROWTH = 2**24, 16  # pixels from which sizes are compared; a mask of the photo before it was shrunk


class MaskFile(NamedTuple):
    """The mask of one view: a file or folder, and which part of it where one file holds several views."""

    path: Path
    format: MaskFormat
    part: str = ""
    size: tuple[int, int] | None = None  # width, height of its photo, where that is known


@dataclass(frozen=True, kw_only=True)
class MaskFormat:
    """One way to store segment ids. A view's mask is `<view><suffix>` unless `locate` says otherwise."""

    looks_for: str  # how its files are named, for messages
    suffixes: tuple[str, ...]  # in lower case
    # ids and kind, as "16-bit"; ids are [H, W], uint8 RGB [H, W, 3] (pictures, arrays), or a stack of masks, 0 and 1
    read: Callable[[MaskFile], tuple[np.ndarray, str]]
    # (mask folder, view name) -> file or folder and the part of it, None where the view has no mask
    locate: Callable[[Path, str], tuple[Path, str] | None] | None = None
    precedence: int = 50  # where a view has masks in several formats, that with the smallest number is read

    def find(self, folder: Path, name: str) -> MaskFile | None:
        """Return the mask of a view in a folder, None where it has none in this format."""
        if self.locate is not None:
            found = self.locate(folder, name)
            return MaskFile(found[0], self, found[1]) if found else None
        paths = (folder / f"{name}{suffix}" for suffix in self.suffixes)
        return next((MaskFile(path, self) for path in paths if path.is_file()), None)


def refuse_vast(mask: MaskFile, width: int, height: int) -> None:
    """Raise a UserError, before it is decoded, where a mask of many pixels can be none of its photo."""
    if mask.size is not None and width * height > _MANY:
        (short, long), (low, high) = sorted((width, height)), sorted(mask.size)
        if long > _MOST_GROWTH * high or abs(short * high - long * low) > 0.05 * long * high:
            what = f"claims {width}x{height} pixels, its photo has {mask.size[0]}x{mask.size[1]}"
            raise UserError(f"{mask.path}: {what}; make the mask of this photo")


def painted(masks: Iterable[np.ndarray], *, height: int = 0, width: int = 0) -> np.ndarray:
    """Return the ids 1, 2, ... of masks that may overlap, each bool [H, W]; 0 = in none. int32 [H, W].

    The mask of the smallest area has a pixel that several claim, as if all were painted, the largest first. Without
    any mask the result is `height` x `width` zeros. A ValueError: they differ in size.
    """
    ids = areas = np.zeros((height, width), np.int32)
    for number, mask in enumerate(masks, start=1):
        if number == 1:
            ids, areas = np.zeros(mask.shape, np.int32), np.full(mask.shape, mask.size + 1, np.int32)
        if mask.shape != ids.shape:
            raise ValueError(f"mask {number} is {list(mask.shape)}, the first is {list(ids.shape)}")
        rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
        if len(rows):
            box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            area = np.count_nonzero(mask[box])
            won = mask[box] & (areas[box] > area)
            ids[box][won], areas[box][won] = number, area
    return ids
