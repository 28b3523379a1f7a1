"""Unified-Lift: lift per-view 2D instance masks to a 3D Gaussian scene in which every object is known."""

import os
from importlib.metadata import version

# Waiting OpenMP threads spin by default; on a shared machine a training step then takes ten times the CPU time.
# It must be set before torch is imported and gives way to the user's own setting.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Densification changes the size of every array time and again. Memory that can grow and shrink in place keeps a
# training's reserved memory near what it uses: one scene reserved ten times as much without. torch reads it when CUDA
# memory is first asked for.
_NAMES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")  # torch warns about the first from 2.9 on
if not any(name in os.environ for name in _NAMES):
    _is_new = tuple(int(part) for part in version("torch").split(".")[:2]) >= (2, 9)
    os.environ[_NAMES[_is_new]] = "expandable_segments:True"

__version__ = "0.1.0"
