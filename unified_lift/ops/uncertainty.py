"""How unsure the features are about each pixel's own label (Eq. 7)."""

from __future__ import annotations

import torch
from torch import Tensor


def uncertainty(similarity: Tensor, slot: Tensor) -> Tensor:
    """Return how unsure the features are about each pixel's own segment.

    Source: Eq. 7: W_u = 1 - softmax_j(similarity_uj) at the pixel's own segment.
    Args:
        similarity: Pixel-to-segment-centre similarity, already divided by its temperature, [P, S].
        slot: Segment of each pixel, int64 [P]; -1 (no label) gives 1.
    Returns:
        Values in [0, 1], 0 = certain, [P].
    Gradient: none.
    """
    with torch.no_grad():
        own = torch.softmax(similarity, dim=1).gather(1, slot.clamp(min=0)[:, None])[:, 0]
        return torch.where(slot >= 0, 1 - own, torch.ones_like(own))
