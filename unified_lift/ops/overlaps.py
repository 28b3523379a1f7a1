"""How many pixels two label maps share, id by id: the one table behind every segmentation score."""

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


def overlap_table(pred: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the sorted ids of two label maps of one shape (else a ValueError), [P], [T], and shared pixels [P, T]."""
    pred, true = np.asarray(pred), np.asarray(true)
    if pred.shape != true.shape:
        raise ValueError(f"label maps must have one shape, received {pred.shape} and {true.shape}")
    (pred_ids, row), (true_ids, column) = compress(pred), compress(true)
    shape = (len(pred_ids), len(true_ids))
    counts = np.bincount(row * shape[1] + column, minlength=shape[0] * shape[1]).reshape(shape)
    return pred_ids, true_ids, counts
