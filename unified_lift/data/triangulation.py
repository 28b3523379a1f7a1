"""Points triangulated from posed photos.

The poses are given, so a match only has to be right about its pixel, and corners need no orientation of their own: the
image of one direction of the world tells how each view is turned. Each corner of a view looks for its best candidate
near its epipolar line in several other views. Each candidate proposes a depth, and the depth that most views agree with
wins; a point needs three. No chain of matches is followed, so one wrong match glues no two points.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import repeat
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from unified_lift.data.images import counted_grey, parallel_map
from unified_lift.kernels.candidates import nearest_two
from unified_lift.ops.cameras import look_at_point
from unified_lift.ops.resample import nearest
from unified_lift.types import Camera, PointCloud, View

_MAX_SIDE, _MIN_SIDE = 960, 480  # px: larger photos are shrunk for detection, smaller ones enlarged up to twice
_MAX_CORNERS = 2000  # of a view
_MIN_CORNER = 2e-4  # share of the strongest corner of a view; a larger one leaves smooth walls empty
_MIN_DISTANCE, _MIN_PART = 5.0, 96  # px between corners, or 1/96 of a side: spread, they tell of more surfaces
_BLUR = 1.0  # px, so that corners are those of surfaces and not of noise
_PATCH = 3.4  # px: the "size" that OpenCV knows of a SIFT point; a descriptor is about six times as wide
_MAX_ZOOM = 2.0  # by which patches follow the focal length
_NUM_NEIGHBORS = 6  # views in which each view looks for its points
_MIN_BASELINE, _MAX_BASELINE = 3.0, 40.0  # degrees between two views, seen from the look-at point
_MAX_EPIPOLAR = 1.5  # px from the epipolar line
_MAX_REACH = 1 / 16  # radians that such a pixel may be; nearer to the epipole there is no telling lines apart
_MAX_RATIO, _MAX_RATIO_SURE = 0.95, 0.75  # descriptor distance over second-best, where four and where three views agree
_MAX_ERROR = 1.5  # px of reprojection
_MIN_ANGLE = 1.5  # degrees between the rays of a track
_MIN_VIEWS, _MIN_VIEWS_UNSURE = 3, 4  # of a track, and of one of less distinct candidates; two cannot be checked
_MAX_TRACKS = 2**20  # that start in one view
_LENGTH = 512  # of a descriptor; its largest entries are about half of it, so that bytes hold them


class Features(NamedTuple):
    """Corners of a view: corner-origin pixels, rays in the world and RootSIFT descriptors of length `_LENGTH`."""

    pixels: Tensor  # float64 [K, 2]
    directions: Tensor  # float64 [K, 3], one long along the camera's axis
    descriptors: Tensor  # uint8 [K, 128]


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
    """Return surface points seen in three or more posed photos, coloured from them.

    Points keep a reprojection error below 1.5 px in all their views, in front of them, under more than 1.5 degrees.
    Pixels are those of pictures at the size at which corners are found.
    Equal views give equal points, whatever the number of threads. All of it runs on the CPU, whose kernel compares
    corners faster than a GPU starts so many small ones.
    """
    if len(views) < _MIN_VIEWS:
        return PointCloud(positions=np.empty((0, 3), np.float32), colors=np.empty((0, 3), np.uint8))
    cameras, features = find_features(views)
    tracks = matched_tracks(cameras, features)
    points, tracks = solve_tracks(best_tracks(tracks), cameras)
    return PointCloud(positions=points.astype(np.float32), colors=_mean_colors(tracks, views, cameras, len(points)))


def find_features(views: Sequence[View]) -> tuple[list[Camera], list[Features]]:
    """Return the corners of views, and the cameras whose pixels they are in: those of the pictures at their size."""
    cameras = [_detection_camera(view.camera) for view in views]
    focal, upright = float(np.median([camera.fx for camera in cameras])), upright_of(cameras)
    return cameras, parallel_map(partial(detect_features, upright=upright, focal=focal), views)


def matched_tracks(cameras: Sequence[Camera], features: Sequence[Features]) -> Tracks:
    """Return the tracks that start at the corners of each view; those of one surface point are there many times."""
    grow = partial(grow_tracks, cameras=cameras, features=features, neighbors=choose_neighbors(cameras))
    own = torch.get_num_threads()
    torch.set_num_threads(1)  # of each view's small tensors: the pool has a thread for each core already
    try:
        grown = parallel_map(grow, range(len(cameras)))
    finally:
        torch.set_num_threads(own)
    return Tracks(*map(np.concatenate, zip(*grown, strict=True))).keep(slice(None))


def detect_features(view: View, *, upright: np.ndarray, focal: float) -> Features:
    """Return the corners of a view, and what they look like at focal length `focal`, px, with `upright` [3] on top.

    Source: Shi and Tomasi 1994 for corners, Lowe 2004 for descriptors, Arandjelovic and Zisserman 2012 for their root.
    """
    camera, valid = _detection_camera(view.camera), None if view.valid is None else view.valid.numpy()
    grey, where = counted_grey(view.image.numpy(), valid)
    if (size := (camera.width, camera.height)) != (view.camera.width, view.camera.height):
        shrinks = camera.width < view.camera.width
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
        where = None if where is None else nearest(where, *grey.shape)
    corners = _corners(cv2.GaussianBlur(grey, (0, 0), _BLUR), where)  # [K, 2]
    pixels = corners + 0.5  # OpenCV puts the centre of the first pixel at 0; ours lies at 0.5.
    slope = (pixels - [camera.cx, camera.cy]) / [camera.fx, camera.fy]
    top = camera.cam_from_world[:3, :3] @ upright
    way = (top[:2] - slope * top[2]) * [camera.fx, camera.fy]  # of `upright` in the picture, [K, 2]
    angles = np.degrees(np.arctan2(way[:, 1], way[:, 0])) % 360
    patch = _PATCH * float(np.clip(camera.fx / focal, 1 / _MAX_ZOOM, _MAX_ZOOM))
    # class_id: SIFT may leave out points and change their order
    columns = (*corners.T.tolist(), repeat(patch), angles.tolist(), repeat(1), repeat(0), range(len(corners)))
    points = list(map(cv2.KeyPoint, *columns))
    points, found = cv2.SIFT_create().compute(grey, points)  # type: ignore[attr-defined]  # no stub
    kept = np.array([point.class_id for point in points], dtype=np.int64)
    found = np.empty((0, 128), np.float32) if found is None else found
    shares = found / np.maximum(found.sum(axis=1, keepdims=True), 1e-12)
    descriptors = np.rint(_LENGTH * np.sqrt(shares)).clip(0, 255).astype(np.uint8)
    directions = np.c_[slope, np.ones(len(slope))] @ camera.cam_from_world[:3, :3]
    return Features(*map(torch.from_numpy, (pixels[kept], directions[kept], descriptors)))


def _detection_camera(camera: Camera) -> Camera:
    """Return the camera of the photo at the size at which corners are found; all pixels and errors below are of it."""
    side = max(camera.width, camera.height)
    scale = min(1.0, _MAX_SIDE / side) * min(2.0, max(1.0, _MIN_SIDE / side))
    return camera.resized(*(max(1, round(scale * size)) for size in (camera.width, camera.height)))


def _corners(grey: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
    """Return the corners of a picture uint8 [H, W], float64 [K, 2], between pixels where a parabola has its top.

    Pixels at which `where`, uint8 [H, W], is 0 are none.
    """
    distance = min(_MIN_DISTANCE, max(grey.shape) / _MIN_PART)
    found = cv2.goodFeaturesToTrack(grey, _MAX_CORNERS, _MIN_CORNER, distance, mask=where)
    if found is None:
        return np.empty((0, 2))
    measure, (x, y) = cv2.cornerMinEigenVal(grey, 3), found[:, 0].astype(np.int64).T  # none of them at the border
    middle = measure[y, x]

    def top(before: np.ndarray, after: np.ndarray) -> np.ndarray:
        bend = np.maximum(2 * middle - before - after, 1e-12)
        return np.clip((after - before) / (2 * bend), -0.5, 0.5)

    offset = top(measure[y, x - 1], measure[y, x + 1]), top(measure[y - 1, x], measure[y + 1, x])
    return found[:, 0].astype(np.float64) + np.stack(offset, axis=1)


def upright_of(cameras: Sequence[Camera]) -> np.ndarray:
    """Return the direction that the cameras look along the least, [3]: its image tells how each view is turned."""
    axes = np.stack([camera.cam_from_world[2, :3] for camera in cameras])
    return np.linalg.eigh(axes.T @ axes)[1][:, 0]


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


def pencils(camera: Camera, others: Sequence[Camera]) -> np.ndarray:
    """Return the directions of angle 0 and of 90 degrees, of the epipolar planes of a camera and each other, [V, 2, 3].

    The planes turn about the line from camera to camera. Where both look is angle 0, so that what they see hardly ever
    lies where angles jump. All is NaN where two cameras are in one place.
    """
    line = np.stack([other.position - camera.position for other in others])
    line /= np.where(np.linalg.norm(line, axis=1) > 1e-12, np.linalg.norm(line, axis=1), np.nan)[:, None]
    ahead = np.stack([camera.cam_from_world[2, :3] + other.cam_from_world[2, :3] for other in others])
    across = np.eye(3)[np.abs(line).argmin(axis=1)]  # of cameras that move where they look
    ahead, across = (ways - (ways * line).sum(axis=1, keepdims=True) * line for ways in (ahead, across))
    zero = _normalized(np.where(np.linalg.norm(ahead, axis=1, keepdims=True) > 0.1, ahead, across))
    return np.stack([zero, np.cross(line, zero)], axis=1)


def plane_angles(directions: Tensor, axes: np.ndarray) -> Tensor:
    """Return the angle of the epipolar plane of each ray, float64 [K, 3], about `axes` [2, 3], float32 [K]."""
    x, y = (directions @ directions.new_tensor(axes).T).unbind(dim=1)
    return torch.atan2(y, x).float()


def plane_reach(directions: Tensor, camera: Camera, axes: np.ndarray) -> Tensor:
    """Return by what the angle of each ray of a camera changes over `_MAX_EPIPOLAR` px, to first order, float32 [K].

    It is -1 too near the epipole.
    """
    x, y = (directions @ directions.new_tensor(axes).T).unbind(dim=1)
    right, down = (axes @ camera.cam_from_world[row, :3] / focal for row, focal in ((0, camera.fx), (1, camera.fy)))
    turns = ((x * right[1] - y * right[0]) ** 2 + (x * down[1] - y * down[0]) ** 2).sqrt()  # times x^2 + y^2, per px
    reach = _MAX_EPIPOLAR * turns / (x * x + y * y)
    return torch.where(reach < _MAX_REACH, reach, -1.0).float()


class Candidates(NamedTuple):
    """What may be the same in V other views as each of K corners of a view."""

    row: Tensor  # corner of the other view, int64 [V, K]; anything where there is none
    there: Tensor  # whether there is one, bool [V, K]
    sure: Tensor  # whether it differs clearly from the runner-up, bool [V, K]


def candidates(
    index: int, others: np.ndarray, *, cameras: Sequence[Camera], features: Sequence[Features]
) -> Candidates:
    """Return the best match of each corner of view `index` near its epipolar line in each of the `others`, [V]."""
    own, found = features[index], []
    for j, axes in zip(others, pencils(cameras[index], [cameras[j] for j in others]), strict=True):
        other, angle = features[j], plane_angles(own.directions, axes)
        place = plane_angles(other.directions, axes), plane_reach(other.directions, cameras[j], axes)
        found.append(nearest_two(angle, own.descriptors, *place, other.descriptors))
    row, best, second = (torch.stack(columns) for columns in zip(*found, strict=True))
    # Descriptors have one length: squared distance = 2 length^2 - 2 similarity.
    ratio = (_LENGTH**2 - best).clamp(min=0) / (_LENGTH**2 - second.clamp(min=0)).clamp(min=1)
    there = (row >= 0) & (ratio < _MAX_RATIO**2)
    return Candidates(row.clamp(min=0).long(), there, there & (ratio < _MAX_RATIO_SURE**2))


def grow_tracks(
    index: int, *, cameras: Sequence[Camera], features: Sequence[Features], neighbors: np.ndarray
) -> Tracks:
    """Return the tracks that start at the points of view `index`, its own observation first.

    Source: along the ray of a pixel, a neighbour sees a z + b (homogeneous); its candidate x gives z by least squares
    of (a - x a_w) z = -(b - x b_w). Each candidate's z is tried on all other candidates.
    """
    own = features[index]
    others = np.array([j for j in neighbors[index] if len(features[j].pixels)], dtype=np.int64)
    if not len(others) or not len(own.pixels):
        return Tracks(*(np.empty(shape, dtype=np.int64) for shape in (0, 0, (0, 2), 0)))
    row, there, sure = candidates(index, others, cameras=cameras, features=features)
    seen = torch.stack([features[j].pixels[rows] for j, rows in zip(others, row, strict=True)])  # [V, K, 2]
    inliers = _agreement(own.directions, cameras[index], [cameras[j] for j in others], seen, there)
    enough = (inliers & sure).sum(dim=0) + 1 >= _MIN_VIEWS
    enough |= inliers.sum(dim=0) + 1 >= _MIN_VIEWS_UNSURE
    start, point, column = (found.numpy() for found in (*torch.where(enough), *torch.where((inliers & enough).T)))
    pixels, of_others, rows = (found.numpy() for found in (own.pixels, seen, row))
    return Tracks(
        view=np.r_[np.full(len(start), index), others[column]],
        feature=np.r_[start, rows[column, point]],
        pixels=np.r_[pixels[start], of_others[column, point]],
        track=np.r_[start, point] + index * _MAX_TRACKS,
    )


def _agreement(directions: Tensor, camera: Camera, others: Sequence[Camera], seen: Tensor, there: Tensor) -> Tensor:
    """Return which candidates agree on the best depth, bool [V, K].

    They are `seen` at pixels float64 [V, K, 2] in the `others`, where bool `there` [V, K].
    """
    projections = _projections(others)
    a = directions @ directions.new_tensor(projections[:, :, :3]).transpose(1, 2)  # [V, K, 3]
    b = directions.new_tensor(projections[:, :, :3] @ camera.position + projections[:, :, 3])[:, None]  # [V, 1, 3]
    left, right = a[..., :2] - seen * a[..., 2:], b[..., :2] - seen * b[..., 2:]
    proposals = -(left * right).sum(dim=-1) / (left * left).sum(dim=-1)  # [V, K]
    w = a[..., 2] * proposals[:, None] + b[..., 2]  # of each proposal in each view, [V, V, K]
    across, down = ((a[..., axis] * proposals[:, None] + b[..., axis]) / w - seen[..., axis] for axis in (0, 1))
    error = (across * across + down * down).sqrt()
    agrees = (error < _MAX_ERROR) & (w > 0) & there & (there & (proposals > 0))[:, None]
    score = torch.where(agrees, 1 - error / (_MAX_ERROR * (len(others) + 1)), 0.0).sum(dim=1)
    best = score.argmax(dim=0)  # the first of equal ones
    return agrees[best, :, torch.arange(len(directions))].T


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


def _mean_colors(tracks: Tracks, views: Sequence[View], cameras: Sequence[Camera], count: int) -> np.ndarray:
    """Return the mean colour of each track's pixels, uint8 [count, 3]."""
    total = np.zeros((count, 3))
    for index in np.unique(tracks.view):
        here, image = tracks.view == index, views[index].image.numpy()
        size, camera = np.array([image.shape[1], image.shape[0]]), cameras[index]
        at = np.floor(tracks.pixels[here] * size / [camera.width, camera.height]).astype(np.int64)
        at = np.clip(at, 0, size - 1)
        np.add.at(total, tracks.track[here], image[at[:, 1], at[:, 0]])
    return np.round(total / np.bincount(tracks.track, minlength=count)[:, None]).astype(np.uint8)
