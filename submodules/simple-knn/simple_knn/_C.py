"""The import path that existing 3DGS scripts use."""

from simple_knn import distCUDA2

__all__ = ["distCUDA2"]
