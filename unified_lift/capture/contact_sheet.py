"""One picture of many masks: photos beside their ids in colour."""

from collections.abc import Sequence

import cv2
import numpy as np

from unified_lift.evaluation.pictures import overlay

TILE = 320  # longest side of a photo on the sheet, in pixels
_GAP = 6  # pixels between tiles
_INK = 0.75  # share of the ids' colour, as in the video of render.py: shading stays visible
_PAPER = 24  # grey value between tiles


def evenly_spaced(count: int, wanted: int) -> list[int]:
    """Return `wanted` of the indices 0..count-1, spread evenly and including both ends; all if there are no more."""
    return [round(index) for index in np.linspace(0, count - 1, min(count, wanted))]


def tile(image: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return a photo, uint8 [H, W, 3], beside its ids [H, W] in colour, shrunk to the size of the sheet."""
    scale = min(1.0, TILE / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    photo = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    small = cv2.resize(ids.astype(np.float32), size, interpolation=cv2.INTER_NEAREST).astype(np.int32)
    return np.hstack([photo, overlay(photo, small, share=_INK)])


def contact_sheet(tiles: Sequence[np.ndarray], *, columns: int = 3) -> np.ndarray:
    """Return the tiles, uint8 [h, w, 3] of any sizes, row by row in columns of equal width."""
    height, width = (max(tile.shape[axis] for tile in tiles) for axis in (0, 1))
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = np.full((rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, 3), _PAPER, dtype=np.uint8)
    for index, picture in enumerate(tiles):
        top, left = _GAP + index // columns * (height + _GAP), _GAP + index % columns * (width + _GAP)
        sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return sheet
