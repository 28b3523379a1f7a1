"""The sparse points that each view shows: those of COLMAP's tracks, else those of the cloud that nothing hides."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from unified_lift.data.points import in_picture
from unified_lift.errors import UserError
from unified_lift.ops.cameras import project
from unified_lift.types import Scene, Similarity, View

_POINTS_OF_CELL = 4  # of a picture on average, so that a surface in front has one where it hides something
_BEHIND = 1.1  # times as far as the nearest point of its cell: hidden


def with_tracked_points(views: Sequence[View], tracks: Mapping[str, np.ndarray], frame: Similarity) -> list[View]:
    """Return the views with the points of `tracks`, name -> float64 [K, 3] outside of the frame, that they show."""
    none = np.empty((0, 3))
    return [_showing(view, frame.inside(tracks.get(view.name, none)), all_seen=True) for view in views]


def with_sparse_points(scene: Scene) -> Scene:
    """Return the scene with sparse points in its training views: as they are, else those of its cloud that are seen.

    Points that are random do not count. A UserError: no view shows any.
    """
    if all(view.points is None for view in scene.train):
        cloud = scene.points
        surface = cloud.positions[: len(cloud.positions) - cloud.num_random]
        scene = replace(scene, train=tuple(_showing(view, surface, all_seen=False) for view in scene.train))
    if all(view.points is None for view in scene.train):
        fix = "leave the loss out, or give the scene points (unified-lift sfm makes them)"
        raise UserError(f"--loss_weights: {scene.name} has no sparse points that a view shows; {fix}")
    return scene


def _showing(view: View, positions: np.ndarray, *, all_seen: bool) -> View:
    """Return the view with the points [M, 3] that lie on pixels that count; without hidden ones unless all are seen."""
    pixels, depth = project(positions, view.camera)
    inside = in_picture(pixels, depth, view.camera) & np.isfinite(depth)
    pixels, depth = pixels[inside], depth[inside]
    last = np.array([view.camera.width, view.camera.height]) - 1
    column, row = np.minimum(pixels.astype(np.int64), last).T
    counts = np.ones(len(depth), bool) if view.valid is None else view.valid.cpu().numpy()[row, column]
    if not all_seen:
        counts &= ~hidden(pixels, depth, view.camera.width, view.camera.height)
    if not counts.any():
        return view
    points = np.column_stack([column, row, depth])[counts].astype(np.float32)
    return view.having(points=torch.from_numpy(points))


def hidden(pixels: np.ndarray, depth: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return which points of a picture lie behind others, bool [K], given their pixels [K, 2] and depths [K].

    Source: ours; a z-buffer of cells so large that they hold a few points each, and a tolerance for sloped surfaces.
    """
    side = max(1.0, float(np.sqrt(_POINTS_OF_CELL * width * height / max(1, len(depth)))))
    column, row = (pixels // side).astype(np.int64).T
    nearest = np.full((int(height // side) + 1, int(width // side) + 1), np.inf)
    np.minimum.at(nearest, (row, column), depth)
    return depth > _BEHIND * nearest[row, column]
