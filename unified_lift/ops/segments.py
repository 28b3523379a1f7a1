"""Sums over the pixels of each segment of one view, without a loop over segments."""

import torch
from torch import Tensor


def dense_slots(segments: Tensor, *, ignore_zero: bool) -> tuple[Tensor, Tensor]:
    """Return the dense segment index of each pixel, int32 [P], and the sorted ids those indices mean, int64 [S].

    `segments` are the ids of one view, any integer type, [P]; a negative one is a ValueError. With `ignore_zero`, id 0
    means "unlabelled" (index -1) rather than a segment of its own.
    """
    ids, slot = torch.unique(segments.long(), return_inverse=True)
    if ids.numel() and int(ids[0]) < 0:
        raise ValueError(f"segment ids must not be negative, received {int(ids[0])}")
    if ignore_zero and ids.numel() and int(ids[0]) == 0:
        slot, ids = slot - 1, ids[1:]  # ids are sorted, so 0 is the first slot
    return slot.int(), ids.clone()  # what `unique` returns may lie in memory for all pixels


def segment_sum(values: Tensor, slot: Tensor, num_segments: int) -> Tensor:
    """Return the sum of `values` [P, D] over each segment, [S, D]; pixels with slot -1 count nowhere."""
    # Row 0 collects the pixels without label, which is cheaper than leaving them out first.
    return values.new_zeros(num_segments + 1, values.shape[1]).index_add_(0, slot + 1, values)[1:]


def segment_counts(slot: Tensor, num_segments: int) -> Tensor:
    """Return the number of pixels of each segment, int64 [S]; pixels with slot -1 count nowhere."""
    ones = torch.ones(len(slot), dtype=torch.int64, device=slot.device)
    return ones.new_zeros(num_segments + 1).index_add_(0, slot + 1, ones)[1:]


def segment_mean(values: Tensor, slot: Tensor, num_segments: int) -> Tensor:
    """Return the mean of `values` [P, D] over each segment, [S, D]; an empty segment gives zero."""
    counts = segment_counts(slot, num_segments).clamp(min=1)
    return segment_sum(values, slot, num_segments) / counts[:, None]
