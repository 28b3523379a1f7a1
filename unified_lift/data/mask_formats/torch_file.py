"""PyTorch files, `.pt` and `.pth`: a tensor of ids or a stack of masks, as SegAnyGAussians keeps SAM's."""

import pickle

import numpy as np
import torch

from unified_lift.data.mask_formats.base import MaskFile, MaskFormat
from unified_lift.errors import UserError


def read(mask: MaskFile) -> tuple[np.ndarray, str]:
    """Return the array of a file's tensor and the word for it; code in the file is never run."""
    try:
        content = torch.load(mask.path, map_location="cpu", weights_only=True)
        return (torch.stack(content) if isinstance(content, list) else content).numpy(), "tensor"
    except (OSError, RuntimeError, EOFError, ValueError, AttributeError, TypeError, pickle.UnpicklingError) as error:
        what = f"not a readable tensor ({str(error).splitlines()[0]})"
        raise UserError(f"{mask.path}: {what}; save the masks as one tensor [N, H, W]") from None


FORMAT = MaskFormat(looks_for=".pt", suffixes=(".pt", ".pth"), read=read, precedence=30)
