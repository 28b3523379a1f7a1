"""A tiny analytic world from which every reader writes a miniature of its layout.

A textured floor (z = 0) with round coins lying on it: colour and id of a pixel follow from where its ray meets the
floor, so poses, pixels and ids of a miniature agree exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from unified_lift.ops.cameras import flip_opengl_opencv, invert_rigid, look_at, quaternion_from_rigid, unproject
from unified_lift.types import Camera

MINIATURE_FOCAL = 1.1
"""Focal length of `orbit` cameras in image widths."""
LANDMARK = np.array([0.25, -0.35, 0.0])
"""Centre of the first coin, a floor point that every orbit camera sees."""
LANDMARK_ID = 300
_COINS = (  # x, y, radius, id, colour
    (0.25, -0.35, 0.30, LANDMARK_ID, (220, 60, 50)),
    (-0.45, 0.10, 0.28, 301, (60, 120, 220)),
    (0.30, 0.45, 0.22, 7, (240, 200, 60)),
)
_SUBPIXELS = ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75))
_TEXTURE_CELLS = 96  # random values per axis of the floor's texture
_TEXTURE_EXTENT = 3.0  # the texture repeats outside [-3, 3]^2


@dataclass(frozen=True, kw_only=True)
class MiniatureView:
    """What a camera sees of the miniature world.

    Attributes:
        camera: The camera.
        image: uint8 [H, W, 3].
        ids: Exact ids, consistent over views, 0 = floor, int32 [H, W].
        segments: Ids as a 2D model would give them, renamed in every view, int32 [H, W].
    """

    camera: Camera
    image: np.ndarray
    ids: np.ndarray
    segments: np.ndarray


def orbit(
    count: int,
    *,
    width: int,
    height: int,
    cx: float | None = None,
    cy: float | None = None,
    focal: float | None = None,
) -> list[Camera]:
    """Return cameras on a circle above the floor that look at its middle; the principal point may lie off-centre."""
    focal = MINIATURE_FOCAL * width if focal is None else focal
    return [
        Camera(
            cam_from_world=look_at(
                np.array([1.6 * np.cos(angle), 1.6 * np.sin(angle), 1.8 + 0.2 * np.sin(3 * angle)]),
                np.array([0.05, 0.0, 0.0]),
                np.array([0.0, 0.0, 1.0]),
            ),
            fx=focal,
            fy=focal,
            cx=width / 2 if cx is None else cx,
            cy=height / 2 if cy is None else cy,
            width=width,
            height=height,
        )
        for angle in np.linspace(0, 2 * np.pi, count, endpoint=False)
    ]


def miniature_views(cameras: Sequence[Camera]) -> list[MiniatureView]:
    """Return what the cameras see, with 2x2 rays per pixel for colour and the centre ray for ids."""
    views = []
    for n, camera in enumerate(cameras):
        rows, cols = np.mgrid[0 : camera.height, 0 : camera.width]
        corner = np.stack([cols, rows], axis=-1).reshape(-1, 2).astype(np.float64)
        samples = [floor_colors(floor_points(corner + offset, camera)) for offset in _SUBPIXELS]
        image = np.mean(samples, axis=0).round().astype(np.uint8).reshape(camera.height, camera.width, 3)
        ids = floor_ids(floor_points(corner + 0.5, camera)).reshape(camera.height, camera.width)
        views.append(MiniatureView(camera=camera, image=image, ids=ids, segments=_rename(ids, n)))
    return views


def floor_points(pixels: np.ndarray, camera: Camera) -> np.ndarray:
    """Return where the rays of corner-origin pixels [M, 2] meet the floor; every ray must point down. [M, 3]."""
    origin = camera.position
    direction = unproject(pixels, np.ones(len(pixels)), camera) - origin
    return origin + direction * (-origin[2] / direction[:, 2])[:, None]


def floor_ids(points: np.ndarray) -> np.ndarray:
    """Return the exact id of floor points [M, 3], int32 [M]."""
    ids = np.zeros(len(points), dtype=np.int32)
    for x, y, radius, coin, _ in _COINS:
        ids[np.hypot(points[:, 0] - x, points[:, 1] - y) < radius] = coin
    return ids


def floor_colors(points: np.ndarray) -> np.ndarray:
    """Return the colour of floor points [M, 3]: bilinear noise, tinted on the coins; float [M, 3] in 0..255."""
    noise = np.random.default_rng(5).random((_TEXTURE_CELLS, _TEXTURE_CELLS)).astype(np.float32)
    at = ((points[:, :2] / (2 * _TEXTURE_EXTENT) + 0.5) * _TEXTURE_CELLS).astype(np.float32)
    value = cv2.remap(noise, at[None, :, 0], at[None, :, 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)[0]
    colors = np.repeat(value[:, None] * 180 + 40, 3, axis=1)
    ids = floor_ids(points)
    for *_, coin, tint in _COINS:
        colors[ids == coin] = 0.5 * colors[ids == coin] + 0.5 * np.array(tint)
    return colors


def floor_cloud(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random floor points float64 [count, 3] and their colours uint8; the first is the landmark."""
    points = np.zeros((count, 3))
    points[:, :2] = np.random.default_rng(9).uniform(-1.2, 1.2, (count, 2))
    points[0] = LANDMARK
    return points, floor_colors(points).round().astype(np.uint8)


def world_from_cam_opengl(camera: Camera) -> np.ndarray:
    """Return the camera-to-world pose with OpenGL axes, as transforms files store it, [4, 4]."""
    return flip_opengl_opencv(invert_rigid(camera.cam_from_world))


def kubric_camera(camera: Camera) -> tuple[list[float], list[float]]:
    """Return position and quaternion wxyz as Kubric's metadata stores them."""
    pose = world_from_cam_opengl(camera)
    return pose[:3, 3].tolist(), quaternion_from_rigid(pose).tolist()


def _rename(ids: np.ndarray, n: int) -> np.ndarray:
    """Return the ids under names that differ from view to view and exceed 255."""
    known = np.unique(ids[ids > 0])
    names = 256 + np.random.default_rng(n).permutation(100)[: len(known)]
    renamed = np.zeros_like(ids)
    for coin, name in zip(known, names, strict=True):
        renamed[ids == coin] = name
    return renamed
