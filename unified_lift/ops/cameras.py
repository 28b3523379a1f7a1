"""Camera geometry on numpy float64: axis conventions, projection, look-at.

Inside the project a pose is `cam_from_world` with OpenCV axes (x right, y down, z forward) and pixels have a corner
origin: the centre of the first pixel is (0.5, 0.5).
"""

import math

import numpy as np
import torch

from unified_lift.ops.quaternions import rotation_from_quaternion
from unified_lift.types import Camera

_FLIP_YZ = np.diag([1.0, -1.0, -1.0, 1.0])


def flip_opengl_opencv(world_from_cam: np.ndarray) -> np.ndarray:
    """Return the camera-to-world pose with the other axis convention, OpenGL <-> OpenCV (its own inverse).

    The camera's y and z *columns* [..., 4, 4] change sign; negating rows would mirror the world instead.
    """
    return np.asarray(world_from_cam, dtype=np.float64) @ _FLIP_YZ


def cam_from_world_opengl(world_from_cam: np.ndarray) -> np.ndarray:
    """Return the OpenCV world-to-camera transform of an OpenGL (Blender, nerfstudio) camera-to-world one, [4, 4]."""
    return invert_rigid(flip_opengl_opencv(world_from_cam))


def invert_rigid(transform: np.ndarray) -> np.ndarray:
    """Return the inverse of a rotation-plus-translation transform, [4, 4], without a general matrix inverse."""
    inverse = np.eye(4)
    inverse[:3, :3] = transform[:3, :3].T
    inverse[:3, 3] = -transform[:3, :3].T @ transform[:3, 3]
    return inverse


def rigid_from_quaternion(wxyz: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """Return the transform of a quaternion (normalised first) and a translation, float64 [4, 4].

    With COLMAP's stored pair this is `cam_from_world`; with Kubric's it is the OpenGL `world_from_cam`.
    """
    transform = np.eye(4)
    transform[:3, :3] = rotation_from_quaternion(torch.tensor(np.asarray(wxyz), dtype=torch.float64)).numpy()
    transform[:3, 3] = translation
    return transform


def look_at(position: np.ndarray, target: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Return `cam_from_world` of a camera that faces `target` with `up` upright; a ValueError: these are parallel."""
    position, target, up = (np.asarray(vector, dtype=np.float64) for vector in (position, target, up))
    forward = target - position
    right = np.cross(forward, up)
    if np.linalg.norm(right) < 1e-12 * max(1.0, float(np.linalg.norm(forward) * np.linalg.norm(up))):
        raise ValueError(f"view direction {forward} is zero or parallel to up {up}")
    forward /= np.linalg.norm(forward)
    right /= np.linalg.norm(right)
    cam_from_world = np.eye(4)
    cam_from_world[:3, :3] = np.stack([right, np.cross(forward, right), forward])  # rows: camera axes in the world
    cam_from_world[:3, 3] = -cam_from_world[:3, :3] @ position
    return cam_from_world


def project(points: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Return the corner-origin pixels [M, 2] and depths [M] of world points [M, 3]; a depth <= 0 has no pixel."""
    rotation, translation = camera.cam_from_world[:3, :3], camera.cam_from_world[:3, 3]
    in_camera = np.asarray(points, dtype=np.float64) @ rotation.T + translation  # [M, 3]
    depth = in_camera[:, 2]
    safe = np.where(np.abs(depth) < 1e-12, 1e-12, depth)
    focal, centre = np.array([camera.fx, camera.fy]), np.array([camera.cx, camera.cy])
    return in_camera[:, :2] / safe[:, None] * focal + centre, depth


def unproject(pixels: np.ndarray, depth: np.ndarray, camera: Camera) -> np.ndarray:
    """Return the world points seen at corner-origin pixels [M, 2] with depths along the camera axis [M]; [M, 3]."""
    slope = (np.asarray(pixels, dtype=np.float64) - [camera.cx, camera.cy]) / [camera.fx, camera.fy]
    in_camera = np.pad(slope, ((0, 0), (0, 1)), constant_values=1) * np.asarray(depth, dtype=np.float64)[:, None]
    return (in_camera - camera.cam_from_world[:3, 3]) @ camera.cam_from_world[:3, :3]


def focal_from_fov(fov: float, size: int) -> float:
    """Return the focal length in pixels of a field of view in radians across `size` pixels."""
    return 0.5 * size / math.tan(0.5 * fov)


def fov_from_focal(focal: float, size: int) -> float:
    """Return the field of view in radians of a focal length in pixels across `size` pixels."""
    return 2 * math.atan(0.5 * size / focal)


def look_at_point(cameras: list[Camera]) -> np.ndarray:
    """Return the world point closest to all optical axes in the least-squares sense, [3].

    Source: minimise sum_i |(I - d_i d_i^T)(p - c_i)|^2, a 3x3 linear system; axes that are (nearly) parallel leave
    directions open, in which the point stays at the mean camera centre.
    """
    centres = np.stack([camera.position for camera in cameras])
    axes = np.stack([camera.cam_from_world[2, :3] for camera in cameras])
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]  # [C, 3, 3]
    mean = centres.mean(axis=0)
    offset = np.einsum("cij,cj->i", across, centres - mean)
    return mean + np.linalg.lstsq(across.sum(axis=0), offset, rcond=1e-6)[0]


def fov_degrees(fx: float, fy: float, width: int, height: int) -> float:
    """Return the degrees that the longer side of a picture spans: the same for upright and lying photos of a lens."""
    focal, size = (fx, width) if width >= height else (fy, height)
    return round(math.degrees(fov_from_focal(focal, size)), 1)
