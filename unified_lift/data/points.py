"""Initial points of scenes that bring none: triangulated from the photos, or random inside the camera frusta."""

from collections.abc import Sequence

import numpy as np

from unified_lift.data.settings import DataSettings
from unified_lift.data.triangulation import triangulate
from unified_lift.errors import UserError
from unified_lift.ops.cameras import look_at_point, project, unproject
from unified_lift.types import Camera, PointCloud, View

MIN_POINTS = 4  # three neighbours are needed for a start scale
_FAR_OF_LOOK_AT = 1.5  # frusta end at this multiple of the median distance to the look-at point
_ENOUGH_POINTS = 2000  # triangulated points that need no random company
_GREY = 127


def initial_points(views: Sequence[View], settings: DataSettings, *, own: PointCloud | None) -> tuple[PointCloud, str]:
    """Return the points the geometry starts from and a note on where they come from.

    The scene's `own` points, else points triangulated from the training views, filled up with random ones where those
    are few. With `random_init` all points are random. A UserError says that the scene's own cloud is (almost) empty.
    """
    if own is not None and not settings.random_init:
        if len(own.positions) < MIN_POINTS:
            raise UserError(
                f"{settings.source_path}: its point cloud holds {len(own.positions)} usable points, {MIN_POINTS} are "
                "needed; add points or use --random_init"
            )
        return own, f"{len(own.positions)} initial points from the scene"
    found = triangulate([] if settings.random_init else views)
    num_found, count = len(found.positions), settings.num_random_points
    notes = [f"{num_found} initial points triangulated from the photos"] if num_found else []
    if num_found < _ENOUGH_POINTS:
        missing = max(count - num_found, MIN_POINTS) if num_found else count
        cloud = random_in_frusta([view.camera for view in views], count=missing, seed=settings.points_seed)
        found = PointCloud(
            positions=np.concatenate([found.positions, cloud.positions]),
            colors=np.concatenate([found.colors, cloud.colors]),
        )
        notes.append(f"{missing} random {'ones' if num_found else 'initial points'} in the camera frusta")
    return found, ", ".join(notes)


def random_in_frusta(cameras: Sequence[Camera], *, count: int, seed: int) -> PointCloud:
    """Return grey points, uniform in the union of the camera frusta.

    The frusta end at 1.5 x the median distance between the camera centres and the point closest to all optical axes
    [ours]; 3D-GS fills a fixed cube instead, which fits no other scene.
    Equal seeds give equal points.
    """
    if not cameras or count < MIN_POINTS:
        raise UserError(f"--num_random_points {count}: at least {MIN_POINTS} points and one camera are needed")
    rng = np.random.default_rng(seed)
    far = _FAR_OF_LOOK_AT * look_at_distance(cameras)
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
    return PointCloud(positions=positions, colors=np.full((count, 3), _GREY, dtype=np.uint8))


def look_at_distance(cameras: Sequence[Camera]) -> float:
    """Return the median distance of the cameras to the point closest to their axes, in world units.

    Where the axes do not meet in front of the cameras (parallel or outward views) the scene is taken to lie twice as
    far away as the cameras lie apart; a camera alone looks one unit far.
    """
    centres = np.stack([camera.position for camera in cameras])
    point = look_at_point(list(cameras))
    ahead = np.array([project(point[None], camera)[1][0] for camera in cameras])
    if np.median(ahead) > 1e-6:
        return float(np.median(np.linalg.norm(centres - point, axis=1)))
    spread = float(np.linalg.norm(centres - centres.mean(axis=0), axis=1).max())
    return 2 * spread if spread > 1e-9 else 1.0


def in_picture(pixels: np.ndarray, depth: np.ndarray, camera: Camera) -> np.ndarray:
    """Return which projected points, pixels [K, 2] and depth [K], the camera has in its picture, bool [K]."""
    return (pixels >= 0).all(axis=1) & (pixels <= [camera.width, camera.height]).all(axis=1) & (depth > 0)


def _not_in_earlier_frusta(points: np.ndarray, chosen: np.ndarray, cameras: Sequence[Camera], far: float) -> np.ndarray:
    """Return the indices of the points that lie in no frustum before that of their `chosen` camera, [K]."""
    alive = np.argsort(chosen, kind="stable")
    for index, camera in enumerate(cameras):
        later = alive[chosen[alive] > index]
        pixels, depth = project(points[later], camera)
        inside = in_picture(pixels, depth, camera) & (depth <= far)
        alive = np.concatenate([alive[chosen[alive] <= index], later[~inside]])
    return np.sort(alive)
