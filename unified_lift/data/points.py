"""Initial points of scenes that bring none: triangulated from the photos, or random inside the camera frusta."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unified_lift.data.settings import DataSettings
from unified_lift.data.triangulation import triangulate
from unified_lift.errors import UserError
from unified_lift.ops.cameras import look_at_point, project, unproject
from unified_lift.types import Camera, PointCloud, View

MIN_POINTS = 4  # three neighbours are needed for a start scale
MIN_SEEN = 0.02  # share of the points; where the cameras see less, points and poses disagree
_FAR_OF_LOOK_AT = 1.5  # frusta end at this multiple of the median distance to the look-at point
_BACKGROUND = 4.0  # the multiple at which they end for that half of random points which is for what lies behind
_ENOUGH_POINTS = 2000  # triangulated points that need no random company
_MOST_FRUSTA = 256  # that random points are drawn in, evenly spaced
_MAX_LOOKED_AT = 10_000  # points that are looked for in every view


def initial_points(views: Sequence[View], settings: DataSettings, *, own: PointCloud | None) -> tuple[PointCloud, str]:
    """Return the points the geometry starts from and a note on where they come from.

    The scene's `own` points, else points triangulated from the training views, filled up with random ones where those
    are few. With `random_init` all points are random. A cloud of its own that is (almost) empty counts as none.
    """
    if own is not None and len(own.positions) >= MIN_POINTS and not settings.random_init:
        return own, f"{len(own.positions)} initial points from the scene"
    found = triangulate([] if settings.random_init else views)
    num_found, count = len(found.positions), settings.num_random_points
    empty = own is not None and not settings.random_init
    notes = [f"the scene's own cloud holds {len(own.positions) if own else 0} usable points"] if empty else []
    notes += [f"{num_found} initial points triangulated from the photos"] if num_found else []
    if num_found < _ENOUGH_POINTS:
        missing = max(count - num_found, MIN_POINTS) if num_found else count
        some = views[:: -(-len(views) // _MOST_FRUSTA)]  # each point is looked for in each
        cameras, halves = [view.camera for view in some], missing >= 2 * MIN_POINTS and not settings.random_init
        behind = missing // 2 if halves else 0
        clouds = [found, random_in_frusta(cameras, count=missing - behind, seed=settings.points_seed)]
        if behind:
            clouds.append(random_in_frusta(cameras, count=behind, seed=settings.points_seed + 1, far=_BACKGROUND))
        positions, colors = (np.concatenate([getattr(one, key) for one in clouds]) for key in ("positions", "colors"))
        found = PointCloud(positions=positions, colors=colors, num_random=missing)
        notes.append(f"{missing} random {'ones' if num_found else 'initial points'} in the camera frusta")
    return found, ", ".join(notes)


def random_in_frusta(cameras: Sequence[Camera], *, count: int, seed: int, far: float = _FAR_OF_LOOK_AT) -> PointCloud:
    """Return grey points, uniform in the union of the camera frusta; equal seeds give equal points.

    The frusta end at `far` x the median distance between the camera centres and the point closest to all optical axes
    [ours]; 3D-GS fills a fixed cube instead, which fits no other scene.
    """
    if not cameras or count < MIN_POINTS:
        raise UserError(f"--num_random_points {count}: at least {MIN_POINTS} points and one camera are needed")
    rng, far = np.random.default_rng(seed), far * look_at_distance(cameras)
    volumes = np.array([camera.width * camera.height / (camera.fx * camera.fy) for camera in cameras])
    kept: list[np.ndarray] = []
    while sum(map(len, kept)) < count:
        chosen = rng.choice(len(cameras), size=4 * count, p=volumes / volumes.sum())
        uniform = rng.random((4 * count, 3))
        points = np.empty((4 * count, 3))
        for index in np.unique(chosen):
            camera, of_camera = cameras[index], chosen == index
            pixels = uniform[of_camera, :2] * [camera.width, camera.height]
            points[of_camera] = unproject(pixels, far * np.cbrt(uniform[of_camera, 2]), camera)
        # A point in several frusta counts only for the first of them: that makes the union uniform.
        kept.append(points[_not_in_earlier_frusta(points, chosen, cameras, far)])
    positions = np.concatenate(kept)[:count].astype(np.float32)
    return PointCloud(positions=positions, colors=np.full((count, 3), 127, dtype=np.uint8))


def look_at_distance(cameras: Sequence[Camera]) -> float:
    """Return the median distance of the cameras to the point closest to their axes, in world units.

    Where the axes do not meet in front of the cameras (parallel or outward views) the scene is taken to lie twice as
    far away as the cameras lie apart; a camera alone looks one unit far.
    """
    centres, point = np.stack([camera.position for camera in cameras]), look_at_point(list(cameras))
    ahead = np.array([project(point[None], camera)[1][0] for camera in cameras])
    if np.median(ahead) > 1e-6:
        return float(np.median(np.linalg.norm(centres - point, axis=1)))
    spread = float(np.linalg.norm(centres - centres.mean(axis=0), axis=1).max())
    return 2 * spread if spread > 1e-6 else 1.0


def in_picture(pixels: np.ndarray, depth: np.ndarray, camera: Camera) -> np.ndarray:
    """Return which projected points, pixels [K, 2] and depth [K], the camera has in its picture, bool [K]."""
    return (pixels >= 0).all(axis=1) & (pixels <= [camera.width, camera.height]).all(axis=1) & (depth > 0)


def in_pictures(positions: np.ndarray, cameras: Sequence[Camera]) -> np.ndarray:
    """Return which world points, every k-th of float [M, 3] where there are many, each camera sees, bool [V, K]."""
    positions = positions[:: max(1, len(positions) // _MAX_LOOKED_AT)]
    return np.stack([in_picture(*project(positions, camera), camera) for camera in cameras])


def hardly_seen(seen: np.ndarray, what: str) -> str | None:
    """Return that the cameras hardly see the points named `what`, if so by `seen`, bool [V, K]; else None.

    So it is if a view has too few of them on average, or if most views have none.
    """
    blind = int((~seen.any(axis=1)).sum())
    if seen.mean() >= MIN_SEEN and 2 * blind <= len(seen):
        return None
    none = f", {blind} of {len(seen)} views show none" if blind else ""
    return f"the cameras hardly see {what} ({100 * seen.mean():.1f} % of them in a view){none}"


def _not_in_earlier_frusta(points: np.ndarray, chosen: np.ndarray, cameras: Sequence[Camera], far: float) -> np.ndarray:
    """Return the indices of the points that lie in no frustum before that of their `chosen` camera, [K]."""
    alive = np.argsort(chosen, kind="stable")
    for index, camera in enumerate(cameras):
        later = alive[chosen[alive] > index]
        pixels, depth = project(points[later], camera)
        inside = in_picture(pixels, depth, camera) & (depth <= far)
        alive = np.concatenate([alive[chosen[alive] <= index], later[~inside]])
    return np.sort(alive)
