"""The compiled implementation for float32 tensors on an NVIDIA GPU."""

from .rasterize import allow_matrix_units, blend, pixel_weights, rasterize, scatter
from .step import TrainingStep

__all__ = ["TrainingStep", "allow_matrix_units", "blend", "pixel_weights", "rasterize", "scatter"]
