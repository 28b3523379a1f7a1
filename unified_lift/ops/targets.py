"""What pixels are to be called, from what they look like and which segment they lie in."""

from __future__ import annotations

import torch
from torch import Tensor


def pixel_targets(own: Tensor, slot: Tensor, num_segments: int, num_codes: int) -> Tensor:
    """Return the code that each pixel of a view is to have, int64 [P]; -1 = its mask says nothing.

    Source: ours. A pixel is to have the code of most of its segment, so that errors of the features at the segment's
    border are put right. Except where another object lies in it: a code of which the segment holds most of what the
    view shows was missed or swallowed there, and its pixels keep it.

    Args:
        own: Code that each pixel's feature has, int64 [P].
        slot: Segment of each pixel, int32 [P], -1 = none.
        num_segments: S.
        num_codes: L.
    """
    pair = (slot.long() + 1) * num_codes + own  # row 0: pixels without label
    # Summed by index_add_: told the size, it lets a GPU go on without waiting.
    table = torch.zeros((num_segments + 1) * num_codes, device=own.device).index_add_(
        0, pair, torch.ones_like(own.float())
    )
    table = table.view(-1, num_codes)
    dominant = table.argmax(dim=1)[slot.long() + 1]
    held = 2 * table > table.sum(dim=0)
    is_swallowed = held.view(-1)[pair]
    return torch.where(slot < 0, -1, torch.where(is_swallowed, own, dominant))
