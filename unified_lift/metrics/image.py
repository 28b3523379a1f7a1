"""8-bit rounding, as stored pictures have it."""

import torch
from torch import Tensor


def quantize_uint8(image: Tensor) -> Tensor:
    """Return floor(clamp(255 x + 0.5, 0, 255)) as uint8: what a stored picture holds.

    Args:
        image: Values, nominally in [0, 1], any shape.
    """
    return (image * 255 + 0.5).clamp(0, 255).floor().to(torch.uint8)
