"""Whether neighbouring views show the same ids at the same places: no ground truth is asked."""

import numpy as np

from unified_lift.metrics.base import Metric
from unified_lift.ops.cameras import project, unproject
from unified_lift.types import Camera

_TOLERANCE = 0.02  # relative difference of depths, up to which two views see the same surface

METRICS = (Metric(name="neighbour_consistency", label="pixels with the same id in the nearest held-out view"),)


def neighbour_consistency(
    ids: tuple[np.ndarray, np.ndarray], depths: tuple[np.ndarray, np.ndarray], cameras: tuple[Camera, Camera]
) -> float | None:
    """Return the share of a view's pixels that have the same id in another view, of those which that view sees too.

    A pixel's point, by its depth, is seen where it falls into the other picture (nearest pixel) and its depth there is
    the rendered one within 2 %.

    Args:
        ids: Of the view and of the other one, integers [H, W] each.
        depths: Along the camera's axis, in the units of the poses, 0 where nothing is, [H, W] each.
        cameras: Of both, of these sizes.
    Returns:
        None where no pixel is seen by both.
    """
    rows, columns = np.nonzero(depths[0] > 0)
    points = unproject(np.column_stack([columns, rows]) + 0.5, depths[0][rows, columns], cameras[0])
    pixels, depth = project(points, cameras[1])
    height, width = depths[1].shape
    framed = (depth > 0) & (pixels >= 0).all(axis=1) & (pixels < [width, height]).all(axis=1)
    there = tuple(pixels[framed].astype(np.int64).T[::-1])
    both = np.abs(depths[1][there] - depth[framed]) <= _TOLERANCE * depth[framed]
    same = ids[0][rows, columns][framed] == ids[1][there]
    return float(same[both].mean()) if both.any() else None
