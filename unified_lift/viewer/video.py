"""A smooth camera path through chosen views."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.interpolate import CubicSpline, PchipInterpolator
from scipy.spatial.transform import Rotation, RotationSpline

from unified_lift.errors import UserError
from unified_lift.ops.cameras import invert_rigid
from unified_lift.types import Camera

HEIGHT = 720
"""Of a video, in pixels; it is as wide as the window of its first view is."""


def path_through(keys: Sequence[Camera], *, count: int, height: int = HEIGHT) -> list[Camera]:
    """Return `count` cameras that pass through the chosen ones at even times, without a jerk.

    Args:
        keys: Two at least.
        count: Frames, two at least.
        height: Of the frames, even.
    Raises:
        UserError: There are fewer than two views.
    """
    if len(keys) < 2:
        raise UserError(f"a camera path needs two views at least, there are {len(keys)}; add the view you see")
    poses = np.stack([invert_rigid(camera.cam_from_world) for camera in keys])
    at, times = np.linspace(0, 1, len(keys)), np.linspace(0, 1, count)
    positions = CubicSpline(at, poses[:, :3, 3])(times)
    turns = RotationSpline(at, Rotation.from_matrix(poses[:, :3, :3]))(times).as_matrix()
    zooms = np.exp(PchipInterpolator(at, np.log([camera.fy / camera.height for camera in keys]))(times))
    width = 2 * max(1, round(keys[0].width * height / keys[0].height / 2))
    cameras = []
    for position, turn, zoom in zip(positions, turns, zooms, strict=True):
        world_from_cam = np.eye(4)
        world_from_cam[:3, :3], world_from_cam[:3, 3] = turn, position
        focal = float(zoom) * height
        cameras.append(
            Camera(
                cam_from_world=invert_rigid(world_from_cam),
                fx=focal,
                fy=focal,
                cx=width / 2,
                cy=height / 2,
                width=width,
                height=height,
            )
        )
    return cameras
