"""How many pixels two label maps share, id by id: the one table behind every segmentation score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Up to this many cells a table is counted directly; a wider range of ids is first renumbered.
MAX_DIRECT_CELLS = 1 << 22


def compress(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted distinct ids [S] of integers of any shape, and the index of each among them, int64 [P]."""
    flat = np.asarray(ids).reshape(-1)
    if flat.dtype.kind not in "iub":
        raise ValueError(f"ids must be integers, received {flat.dtype}")
    flat = flat.astype(np.int64)
    if not flat.size:
        return flat, flat
    low, high = int(flat.min()), int(flat.max())
    if high - low >= MAX_DIRECT_CELLS:
        values, index = np.unique(flat, return_inverse=True)
        return values, index.reshape(-1)
    # Counting beats sorting as long as the range is small: one pass over the pixels.
    shifted = flat - low
    present = np.flatnonzero(np.bincount(shifted, minlength=high - low + 1))
    lookup = np.zeros(high - low + 1, dtype=np.int64)
    lookup[present] = np.arange(len(present))
    return present + low, lookup[shifted]


class Overlaps(NamedTuple):
    """The E pairs of an id of one label map and one of another that share pixels: of many objects each meets few."""

    pred_ids: np.ndarray  # sorted distinct ids, [P]
    true_ids: np.ndarray  # [T]
    pred: np.ndarray  # index of the ids of each pair, rising, int64 [E]
    true: np.ndarray  # int64 [E]
    shared: np.ndarray  # pixels of both, above 0, int64 [E]

    def areas(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the pixels of each id, int64 [P] and [T]."""
        pairs = ((self.pred, self.pred_ids), (self.true, self.true_ids))
        pred, true = (np.bincount(index, self.shared, len(ids)).astype(np.int64) for index, ids in pairs)
        return pred, true

    def iou(self) -> np.ndarray:
        """Return the IoU of each pair, [E]; of all others it is 0."""
        pred, true = self.areas()
        return self.shared / (pred[self.pred] + true[self.true] - self.shared)

    def of(self, pairs: np.ndarray) -> Overlaps:
        """Return some of the pairs, bool [E]; ids stay."""
        return self._replace(pred=self.pred[pairs], true=self.true[pairs], shared=self.shared[pairs])

    @classmethod
    def merged(cls, parts: Sequence[Overlaps]) -> Overlaps:
        """Return the overlaps of several maps, one at least, as if these were one."""
        pred_ids, true_ids = (np.unique(np.concatenate(ids)) for ids in list(zip(*parts, strict=True))[:2])
        rows = np.concatenate([np.searchsorted(pred_ids, part.pred_ids)[part.pred] for part in parts])
        columns = np.concatenate([np.searchsorted(true_ids, part.true_ids)[part.true] for part in parts])
        pair, index = np.unique(rows * len(true_ids) + columns, return_inverse=True)
        shared = np.bincount(index, np.concatenate([part.shared for part in parts]), len(pair)).astype(np.int64)
        width = max(len(true_ids), 1)
        return cls(pred_ids, true_ids, pair // width, pair % width, shared)


def overlaps_of(pred: np.ndarray, true: np.ndarray) -> Overlaps:
    """Return which ids of two label maps of one shape (else a ValueError), integers, share pixels."""
    pred, true = np.asarray(pred), np.asarray(true)
    if pred.shape != true.shape:
        raise ValueError(f"label maps must have one shape, received {pred.shape} and {true.shape}")
    (pred_ids, row), (true_ids, column) = compress(pred), compress(true)
    pair, cells = row * len(true_ids) + column, len(pred_ids) * len(true_ids)
    if cells <= MAX_DIRECT_CELLS:
        counts = np.bincount(pair, minlength=cells)
        pair = np.flatnonzero(counts)
        shared = counts[pair]
    else:
        pair, shared = np.unique(pair, return_counts=True)
    width = max(len(true_ids), 1)
    return Overlaps(pred_ids, true_ids, pair // width, pair % width, shared)


def overlap_table(pred: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the sorted ids of two label maps of one view, [P], [T], and shared pixels [P, T]; as `overlaps_of`."""
    found = overlaps_of(pred, true)
    counts = np.zeros((len(found.pred_ids), len(found.true_ids)), dtype=np.int64)
    counts[found.pred, found.true] = found.shared
    return found.pred_ids, found.true_ids, counts
