"""The compiled implementation for float32 tensors on an NVIDIA GPU."""

from .adam import adam_step, adam_steps
from .lift import assign, associate, codebook_terms, contrastive_loss, uncertainty
from .photometric import photometric_loss, ssim
from .rasterize import allow_matrix_units, constants, pixel_weights, rasterize
from .rows import blend, blend_sample, draw, splat
from .step import TrainingStep

__all__ = [
    "TrainingStep",
    "adam_step",
    "adam_steps",
    "allow_matrix_units",
    "assign",
    "associate",
    "blend",
    "blend_sample",
    "codebook_terms",
    "constants",
    "contrastive_loss",
    "draw",
    "photometric_loss",
    "pixel_weights",
    "rasterize",
    "splat",
    "ssim",
    "uncertainty",
]
