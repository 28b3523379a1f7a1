"""Unified-Lift: lift per-view 2D instance masks to a 3D Gaussian scene in which every object is known."""

__version__ = "0.1.0"
