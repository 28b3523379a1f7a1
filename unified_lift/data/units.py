"""Units and place of a scene: the frame that it is worked on in, and seed points that would do harm in it."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.spatial import cKDTree

from unified_lift.ops.similarity import float32_step, similarity_for
from unified_lift.types import STILL, PointCloud, Similarity, View, distances

_BULK = 0.9  # share of the cameras that the extent holds, so that single wrong poses do not count
_MAY_TURN = 0.5  # a smaller extent may be the trembling of a tripod, which the points tell
_ROUNDING = 1e-12  # of coordinates in float64 and sums of them
_SAME, _NEARLY_SAME = 1e-6, 1e-3  # of the distance of the nearest points: as near to each other, two are one
_COARSE = 1e-4  # of the distance of the nearest points: as coarse a grid of float32 shows
_MANY_TWICE = 0.25  # share of points that are nearly the same; fewer are left alone
_BEYOND, _ALONE = 1e3, 0.5  # usual distances from the cameras; a neighbour's distance as a share of that
_AXIS = (math.sqrt(2), math.sqrt(3), math.sqrt(5))  # different cells have different numbers along it


def frame_of(views: Sequence[View], read_points: Callable[[], PointCloud | None]) -> Similarity:
    """Return the frame to work in on views in the user's coordinates; the identity for an ordinary scene.

    The extent is the distance from the middle of the cameras that 90 % of them keep; where they only turn, that of half
    of the points.
    """
    positions = np.stack([view.camera.position for view in views])
    centre = np.median(positions, axis=0)
    extent = float(np.quantile(np.linalg.norm(positions - centre, axis=1), _BULK))
    if extent < _MAY_TURN:
        cloud = read_points()
        near, usual = (0.0, 1.0) if cloud is None else distances(cloud.positions, centre)
        only_turn = extent <= max(STILL * near, _ROUNDING * float(np.abs(positions).max()))
        extent = (usual or 1.0) if only_turn else extent
    return similarity_for(centre, extent)


def frame_notes(frame: Similarity, views: Sequence[View]) -> list[str]:
    """Return notes on how a scene is worked on, if not in the user's coordinates, of its views inside of the frame."""
    if frame.is_identity:
        return []
    moved = [f"less {' '.join(f'{value:.10g}' for value in frame.offset)}"] if any(frame.offset) else []
    scaled = [f"times {frame.scale:.10g}"] if frame.scale != 1 else []
    notes = [f"trained in coordinates {' and '.join(moved + scaled)}, saved in yours (frame.json)"]
    inside = np.stack([view.camera.position for view in views])
    step = float32_step(frame.outside(inside))
    if any(frame.offset) and step * frame.scale > _COARSE * np.ptp(inside, axis=0).max():
        notes.append(f"the cameras' places are rounded to {step:g} units by float32; write the poses with all digits")
    return notes


def seeds_inside(cloud: PointCloud, frame: Similarity, views: Sequence[View]) -> tuple[PointCloud, list[str]]:
    """Return a scene's own points as they start in a frame, float32, and notes on those that are left out.

    Left out are all but one of points at one place, whose sizes would be nothing, and points alone a thousand times as
    far off as is usual, whose sizes would be beyond all measure. Far from the origin, points of float32 files stand on
    a coarse grid: they are spread over its cells. `views` are inside of the frame.
    """
    positions, notes = frame.inside(cloud.positions), list[str]()
    if len(positions) == 0:
        return cloud, notes
    centre = np.median([view.camera.position for view in views], axis=0)
    near, usual = distances(positions, centre)
    if any(frame.offset) and (step := float32_step(cloud.positions)) * frame.scale > _COARSE * near:
        cells = frame.scale * np.spacing(np.abs(cloud.positions).astype(np.float32)).astype(np.float64)
        positions = positions + cells * np.random.default_rng(0).uniform(-0.5, 0.5, cells.shape)
        notes.append(f"points are spread again over the {step:g} units to which float32 has rounded them")
    kept, nearly = (_one_of_each(positions, share * near) for share in (_SAME, _NEARLY_SAME))
    kept = nearly if len(nearly) < (1 - _MANY_TWICE) * len(kept) else kept
    if len(kept) < len(positions):
        notes.append(f"{len(positions) - len(kept)} of {len(positions)} points are where another is: left out")
    with np.errstate(over="ignore"):
        distance = np.linalg.norm(positions - centre, axis=1)
    if (beyond := distance[kept] > _BEYOND * usual).any():
        far = kept[beyond]
        third = cKDTree(positions[far]).query(positions[far], k=4)[0][:, 3]  # infinite where there are fewer
        beyond[beyond] = alone = ~(third < _ALONE * distance[far])
        kept = kept[~beyond]
        if alone.any():
            notes.append(f"{alone.sum()} points alone in the far distance are left out")
    if len(kept) == len(positions):
        return PointCloud(positions=positions.astype(np.float32, copy=False), colors=cloud.colors), notes
    return PointCloud(positions=positions[kept].astype(np.float32), colors=cloud.colors[kept]), notes


def _one_of_each(points: np.ndarray, size: float) -> np.ndarray:
    """Return the first point of every cell of this size, rising indices; then of cells half a cell further on."""
    kept, at = np.arange(len(points)), points.astype(np.float64) / max(size, 1e-30)  # float32 has too few numbers
    for shift in (0.0, 0.5):
        along = np.zeros(len(kept))
        for axis, weight in enumerate(_AXIS):
            along += weight * np.rint(at[kept, axis] + shift)
        kept = kept[np.sort(np.unique(along, return_index=True)[1])]
    return kept
