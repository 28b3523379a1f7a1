"""Initial points of scenes that bring none: triangulated from the photos, or random inside the camera frusta.

The poses are given, so a match of SIFT points only has to be right about its pixel. Each point of a view looks for its
best candidate near its epipolar line in several other views. Each candidate proposes a depth, and the depth that most
views agree with wins; a point needs three. No chain of matches is followed, so one wrong match glues no two points.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np

from unified_lift.data.images import parallel_map
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError
from unified_lift.ops.cameras import look_at_point, project, unproject
from unified_lift.types import Camera, PointCloud, View

MIN_POINTS = 4  # three neighbours are needed for a start scale
MIN_SEEN = 0.02  # share of the points; where the cameras see less, points and poses disagree
_FAR_OF_LOOK_AT = 1.5  # frusta end at this multiple of the median distance to the look-at point
_BACKGROUND = 4.0  # the multiple at which they end for that half of random points which is for what lies behind
_ENOUGH_POINTS = 2000  # triangulated points that need no random company
_MAX_LOOKED_AT = 10_000  # points that are looked for in every view
_MAX_SIDE, _MIN_SIDE = 960, 480  # px: larger photos are shrunk for detection, smaller ones enlarged up to twice
_MAX_FEATURES = 2000  # strongest SIFT points per view
_CONTRAST = 0.004  # SIFT contrast threshold; the library's 0.04 leaves smooth walls and small photos empty
_NUM_NEIGHBORS = 10  # views in which each view looks for its points
_MIN_BASELINE, _MAX_BASELINE = 3.0, 40.0  # degrees between two views, seen from the look-at point
_MAX_EPIPOLAR = 1.0  # px from the epipolar line
_LINES_AT_ONCE = 64  # so that their distances to all pixels of a view stay in the cache
_MAX_NEAR = 0.3  # share of all pairs of points that may lie near the lines of one pair of views
_MAX_RATIO, _MAX_RATIO_SURE = 0.95, 0.75  # descriptor distance over second-best, where four and where three views agree
_MAX_ERROR = 1.5  # px of reprojection
_MIN_ANGLE = 1.5  # degrees between the rays of a track
_MIN_VIEWS, _MIN_VIEWS_UNSURE = 3, 4  # of a track, and of one of less distinct candidates; two cannot be checked
_MAX_TRACKS = 2**20  # that start in one view


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
        cameras, halves = [view.camera for view in views], missing >= 2 * MIN_POINTS and not settings.random_init
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


class Features(NamedTuple):
    """SIFT points of a view: corner-origin pixels of the view [K, 2] and RootSIFT descriptors float32 [K, 128]."""

    pixels: np.ndarray
    descriptors: np.ndarray


class Tracks(NamedTuple):
    """Observations grouped into points: view, SIFT point in it, pixel [O, 2] and track number [O] of each."""

    view: np.ndarray
    feature: np.ndarray
    pixels: np.ndarray
    track: np.ndarray

    def keep(self, mask: np.ndarray | slice) -> Tracks:
        """Return the observations where `mask` holds, with tracks numbered without gaps."""
        kept = Tracks(*(values[mask] for values in self))
        return kept._replace(track=np.unique(kept.track, return_inverse=True)[1])


def triangulate(views: Sequence[View]) -> PointCloud:
    """Return surface points seen in three or more posed photos, coloured from them; equal views give equal points.

    Points keep a reprojection error below 1.5 px in all their views, in front of them, under more than 1.5 degrees.
    """
    if len(views) < _MIN_VIEWS:
        return PointCloud(positions=np.empty((0, 3), np.float32), colors=np.empty((0, 3), np.uint8))
    cameras = [view.camera for view in views]
    features = parallel_map(detect_features, views)
    grow = partial(grow_tracks, cameras=cameras, features=features, neighbors=choose_neighbors(cameras))
    grown = Tracks(*map(np.concatenate, zip(*parallel_map(grow, range(len(views))), strict=True)))
    points, tracks = solve_tracks(best_tracks(grown.keep(slice(None))), cameras)
    return PointCloud(positions=points.astype(np.float32), colors=_mean_colors(tracks, views, len(points)))


def detect_features(view: View) -> Features:
    """Return the SIFT points of a view."""
    grey = cv2.cvtColor(view.image.numpy(), cv2.COLOR_RGB2GRAY)
    scale = min(1.0, _MAX_SIDE / max(grey.shape)) * min(2.0, max(1.0, _MIN_SIDE / max(grey.shape)))
    if scale != 1:
        grey = cv2.resize(
            grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        )
    sift = cv2.SIFT_create(nfeatures=_MAX_FEATURES, contrastThreshold=_CONTRAST)  # type: ignore[attr-defined]  # no stub
    points, descriptors = sift.detectAndCompute(grey, None)
    if not points:
        return Features(np.empty((0, 2)), np.empty((0, 128), dtype=np.float32))
    shrink = np.array([view.camera.width / grey.shape[1], view.camera.height / grey.shape[0]])
    # OpenCV puts the centre of the first pixel at 0; ours lies at 0.5.
    pixels = (np.array([point.pt for point in points]) + 0.5) * shrink
    shares = descriptors / np.maximum(np.abs(descriptors).sum(axis=1, keepdims=True), 1e-12)
    return Features(pixels, np.sqrt(shares).astype(np.float32))


def choose_neighbors(cameras: Sequence[Camera]) -> np.ndarray:
    """Return for each view the others it is compared with, those under the smallest useful angle first, int64 [C, K].

    The angle is taken at the point closest to all optical axes; views turned away from each other count as far.
    """
    axes = np.stack([camera.cam_from_world[2, :3] for camera in cameras])
    rays = _normalized(look_at_point(list(cameras)) - np.stack([camera.position for camera in cameras]))
    baseline, turn = (np.degrees(np.arccos(np.clip(ways @ ways.T, -1, 1))) for ways in (rays, axes))
    cost = np.maximum(baseline, turn)
    cost[cost > _MAX_BASELINE] += 1000.0
    cost[baseline < _MIN_BASELINE] += 500.0  # almost one view twice: no depth
    np.fill_diagonal(cost, np.inf)
    return np.argsort(cost, axis=1, kind="stable")[:, : min(_NUM_NEIGHBORS, len(cameras) - 1)]


def _normalized(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def fundamental_matrix(first: Camera, second: Camera) -> np.ndarray:
    """Return F = K2^-T [t]x R K1^-1 of two cameras, with x2^T F x1 = 0 for corner-origin pixels, [3, 3]."""
    relative = second.cam_from_world @ np.linalg.inv(first.cam_from_world)
    x, y, z = relative[:3, 3]
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    inverse = [np.linalg.inv(camera.intrinsics.astype(np.float64)) for camera in (first, second)]
    return inverse[1].T @ cross @ relative[:3, :3] @ inverse[0]


def candidates(first: Features, second: Features, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each point of `first` its best match near its line in `second`, given F [3, 3].

    The match is an index or -1, int64 [K]; with it comes whether it differs clearly from the runner-up, bool [K].
    """
    match, sure = np.full(len(first.pixels), -1, dtype=np.int64), np.zeros(len(first.pixels), dtype=bool)
    if min(len(first.pixels), len(second.pixels)) < 2:
        return match, sure
    lines = np.c_[first.pixels, np.ones(len(first.pixels))] @ matrix.T  # [K1, 3]
    lines /= np.maximum(np.linalg.norm(lines[:, :2], axis=1, keepdims=True), 1e-12)
    row, column = _near_lines(lines.astype(np.float32), second.pixels.astype(np.float32))
    if row.size > _MAX_NEAR * len(lines) * len(second.pixels):  # no baseline, no epipolar line
        row, column = row[:0], column[:0]
    similarity = np.einsum("pd,pd->p", first.descriptors[row], second.descriptors[column])
    order = np.lexsort((-similarity, row))
    row, column, similarity = row[order], column[order], similarity[order]
    is_best = np.diff(row, prepend=-1) > 0
    runner_up = np.where(np.append(is_best[1:], True), 0.0, np.append(similarity[1:], 0.0))[is_best]
    # Descriptors have length one: squared distance = 2 - 2 similarity.
    ratio = (1 - similarity[is_best]) / np.maximum(1 - np.maximum(runner_up, 0.0), 1e-12)
    match[row[is_best]] = np.where(ratio < _MAX_RATIO**2, column[is_best], -1)
    sure[row[is_best]] = ratio < _MAX_RATIO_SURE**2
    return match, sure


def _near_lines(lines: np.ndarray, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return line and pixel of each pair that lies within reach, about one in a hundred, ordered by line."""
    (x, y), found = pixels.T, []
    for start in range(0, len(lines), _LINES_AT_ONCE):
        lx, ly, lz = lines[start : start + _LINES_AT_ONCE].T[:, :, None]
        offset = lx * x
        offset += ly * y
        offset += lz
        found.append(np.flatnonzero(np.abs(offset, out=offset) <= _MAX_EPIPOLAR) + start * len(pixels))
    return np.divmod(np.concatenate(found), len(pixels))


def grow_tracks(
    index: int, *, cameras: Sequence[Camera], features: Sequence[Features], neighbors: np.ndarray
) -> Tracks:
    """Return the tracks that start at the points of view `index`, its own observation first.

    Source: along the ray of a pixel, a neighbour sees a z + b (homogeneous); its candidate x gives z by least squares
    of (a - x a_w) z = -(b - x b_w). Each candidate's z is tried on all other candidates.
    """
    own, others = features[index], neighbors[index]
    found = [candidates(own, features[j], fundamental_matrix(cameras[index], cameras[j])) for j in others]
    match, sure = (np.stack(columns, axis=1) for columns in zip(*found, strict=True))  # [K, V]
    slope = (own.pixels - [cameras[index].cx, cameras[index].cy]) / [cameras[index].fx, cameras[index].fy]
    direction = np.c_[slope, np.ones(len(slope))] @ cameras[index].cam_from_world[:3, :3]  # [K, 3], world
    projections = _projections([cameras[j] for j in others])
    a = np.einsum("vij,kj->kvi", projections[:, :, :3], direction)  # [K, V, 3]
    b = projections[:, :, :3] @ cameras[index].position + projections[:, :, 3]  # [V, 3]
    seen = np.full((*match.shape, 2), np.nan)
    for k, j in enumerate(others):
        matched = match[:, k] >= 0
        seen[matched, k] = features[j].pixels[match[matched, k]]
    left, right = a[..., :2] - seen * a[..., 2:], b[:, :2] - seen * b[:, 2:]
    with np.errstate(invalid="ignore", divide="ignore"):  # NaN marks views without a candidate; it never counts below
        z = -(left * right).sum(axis=-1) / (left * left).sum(axis=-1)  # [K, V] proposals
        image = a[:, None] * z[..., None, None] + b  # [K, proposals, views, 3]
        error = np.linalg.norm(image[..., :2] / image[..., 2:] - seen[:, None], axis=-1)
        agrees = (error < _MAX_ERROR) & (image[..., 2] > 0) & (z > 0)[..., None]
    score = agrees.sum(axis=-1) - np.where(agrees, error, 0).sum(axis=-1) / (_MAX_ERROR * (len(others) + 1))
    inliers = agrees[np.arange(len(match)), score.argmax(axis=1)]  # [K, V]
    enough = (inliers & sure).sum(axis=1) + 1 >= _MIN_VIEWS
    enough |= inliers.sum(axis=1) + 1 >= _MIN_VIEWS_UNSURE
    point, column = np.nonzero(inliers & enough[:, None])
    start = np.flatnonzero(enough)
    return Tracks(
        view=np.r_[np.full(len(start), index), others[column]],
        feature=np.r_[start, match[point, column]],
        pixels=np.r_[own.pixels[start], seen[point, column]],
        track=np.r_[start, point] + index * _MAX_TRACKS,
    )


def best_tracks(tracks: Tracks) -> Tracks:
    """Return the tracks that are the longest through at least half of their observations: one per surface point."""
    length = np.bincount(tracks.track)
    _, node = np.unique(tracks.view * (tracks.feature.max(initial=0) + 1) + tracks.feature, return_inverse=True)
    order = np.lexsort((tracks.track, -length[tracks.track], node))
    _, first = np.unique(node[order], return_index=True)
    owner = tracks.track[order[first]]
    owned = np.bincount(tracks.track, weights=owner[node] == tracks.track)
    return tracks.keep(2 * owned[tracks.track] >= length[tracks.track])


def solve_tracks(tracks: Tracks, cameras: Sequence[Camera]) -> tuple[np.ndarray, Tracks]:
    """Return the accepted points, float64 [M, 3], and their observations under track numbers 0..M-1."""
    points = linear_triangulation(tracks, cameras)
    of_observation, projections = points[tracks.track], _projections(cameras)[tracks.view]
    image = np.einsum("okl,ol->ok", projections[:, :, :3], of_observation) + projections[:, :, 3]
    depth = image[:, 2]
    pixels = image[:, :2] / np.where(np.abs(depth) < 1e-12, 1e-12, depth)[:, None]
    fits = (np.linalg.norm(pixels - tracks.pixels, axis=1) < _MAX_ERROR) & (depth > 0)

    rays = _normalized(of_observation - np.stack([camera.position for camera in cameras])[tracks.view])
    first = np.unique(tracks.track, return_index=True)[1]
    cosine = np.einsum("ok,ok->o", rays, rays[first][tracks.track])
    angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))  # between the first ray of a track and each other

    good = np.bincount(tracks.track, weights=~fits, minlength=len(points)) == 0
    good[np.setdiff1d(np.arange(len(points)), tracks.track[angle > _MIN_ANGLE])] = False
    return points[good], tracks.keep(good[tracks.track])


def linear_triangulation(tracks: Tracks, cameras: Sequence[Camera]) -> np.ndarray:
    """Return the point of every track by the direct linear transform, float64 [T, 3].

    Source: each observation gives the rows x P3 - P1 and y P3 - P2 of a homogeneous system; the smallest eigenvector
    of their normal matrix is the point. A second pass divides each row by its depth: the pixel error counts.
    """
    centre = np.mean([camera.position for camera in cameras], axis=0)
    scale = max(float(np.max([np.linalg.norm(camera.position - centre) for camera in cameras])), 1e-9)
    projections = _projections(cameras, centre, scale)[tracks.view]  # [O, 3, 4]; so that the system is well conditioned
    equations = projections[:, 2:3] * tracks.pixels[:, :, None] - projections[:, :2]  # [O, 2, 4]
    weight = np.ones(len(equations))
    for _ in range(2):
        weighted = equations * weight[:, None, None]
        normal = np.zeros((int(tracks.track.max(initial=-1)) + 1, 4, 4))
        np.add.at(normal, tracks.track, np.einsum("oik,oil->okl", weighted, weighted))
        solution = np.linalg.eigh(normal)[1][:, :, 0]  # [T, 4]
        homogeneous = np.where(np.abs(solution[:, 3:]) > 1e-12, solution[:, 3:], 1e-12)
        points = solution[:, :3] / homogeneous
        depth = np.einsum("ok,ok->o", projections[:, 2, :3], points[tracks.track]) + projections[:, 2, 3]
        weight = 1.0 / np.maximum(np.abs(depth), 1e-3)
    return points * scale + centre


def _projections(cameras: Sequence[Camera], centre: np.ndarray | float = 0.0, scale: float = 1.0) -> np.ndarray:
    """Return K [R | t] for world coordinates from which `centre` [3] is taken and that `scale` divides, [C, 3, 4]."""
    found = []
    for camera in cameras:
        rotation, translation = camera.cam_from_world[:3, :3], camera.cam_from_world[:3, 3]
        moved = np.c_[rotation * scale, rotation @ (centre * np.ones(3)) + translation] / scale
        found.append(np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1.0]]) @ moved)
    return np.stack(found)


def _mean_colors(tracks: Tracks, views: Sequence[View], count: int) -> np.ndarray:
    """Return the mean colour of each track's pixels, uint8 [count, 3]."""
    total = np.zeros((count, 3))
    for index in np.unique(tracks.view):
        here, image = tracks.view == index, views[index].image.numpy()
        at = np.floor(tracks.pixels[here]).astype(np.int64)
        at = np.clip(at, 0, [image.shape[1] - 1, image.shape[0] - 1])
        np.add.at(total, tracks.track[here], image[at[:, 1], at[:, 0]])
    return np.round(total / np.bincount(tracks.track, minlength=count)[:, None]).astype(np.uint8)
