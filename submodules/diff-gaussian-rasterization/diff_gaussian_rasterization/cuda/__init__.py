"""The compiled implementation for float32 tensors on an NVIDIA GPU."""

from .adam import adam_step, adam_steps
from .photometric import photometric_loss, ssim
from .rasterize import allow_matrix_units, constants, pixel_weights, rasterize
from .rows import blend, splat
from .step import TrainingStep

__all__ = [
    "TrainingStep",
    "adam_step",
    "adam_steps",
    "allow_matrix_units",
    "blend",
    "constants",
    "photometric_loss",
    "pixel_weights",
    "rasterize",
    "splat",
    "ssim",
]
