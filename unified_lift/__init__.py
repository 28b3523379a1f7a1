"""Unified-Lift: lift per-view 2D instance masks to a 3D Gaussian scene in which every object is known."""

import os

# Waiting OpenMP threads spin by default; on a shared machine a training step then takes ten times the CPU time.
# It must be set before torch is imported and gives way to the user's own setting.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
