"""The coordinates that suit a scene."""

import math

import numpy as np

from unified_lift.types import Similarity

_ORDINARY = (0.5, 256.0)  # extents at which near plane, start scales and tests for zero are at home; nothing is scaled
_USUAL = 4.0  # about the extent of a scene that is scaled
_FAR_OFF = 32.0  # extents from the origin; beyond, float32 loses the last, small steps of positions


def similarity_for(centre: np.ndarray, extent: float) -> Similarity:
    """Return the frame that suits a scene of a centre [3] and an extent, above 0; the identity for an ordinary one.

    If the extent is out of 0.5..256, lengths are scaled to make it about 4; if the centre is 32 extents from the
    origin, it becomes the origin.
    """
    is_ordinary = _ORDINARY[0] <= extent <= _ORDINARY[1]
    scale = 1.0 if is_ordinary else 2.0 ** round(math.log2(_USUAL / extent))
    if np.linalg.norm(centre) <= _FAR_OFF * extent:
        return Similarity(scale=scale)
    x, y, z = (round(value, -math.floor(math.log10(extent))) for value in np.asarray(centre, np.float64).tolist())
    return Similarity(offset=(x, y, z), scale=scale)


def float32_step(places: np.ndarray) -> float:
    """Return the coarsest step of float32 at places [M, 3] if all lie on its grid: so they were rounded; else 0."""
    with np.errstate(over="ignore"):
        rounded = places.astype(np.float32)
    step = float(np.spacing(np.abs(rounded)).max(initial=0))
    return step if np.abs(places - rounded).max(initial=0) < 1e-3 * step else 0.0
