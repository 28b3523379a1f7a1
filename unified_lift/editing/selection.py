"""Which object is meant, and which Gaussians really belong to it."""

from __future__ import annotations

from collections.abc import Sequence

from unified_lift.editing.scene import ObjectScene


def clean(
    scene: ObjectScene, ids: Sequence[int], *, min_confidence: float = 0.0, outliers: float = 0.0
) -> ObjectScene:
    """Return the scene in which Gaussians that hardly belong to the objects have been given to what is next to them."""
    raise NotImplementedError
