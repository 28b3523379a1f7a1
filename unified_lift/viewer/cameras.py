"""Cameras of the viewer: those of the browser, and those the scene was trained with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unified_lift.errors import UserError
from unified_lift.evaluation.video import up_direction
from unified_lift.ops.cameras import focal_from_fov, invert_rigid, look_at_point, rigid_from_quaternion
from unified_lift.types import Camera


class StartView(NamedTuple):
    """How a window opens: camera position, what it looks at, which way is up, vertical field of view in radians."""

    position: np.ndarray
    target: np.ndarray
    up: np.ndarray
    fov: float


def window_camera(*, wxyz: Sequence[float], position: Sequence[float], fov: float, width: int, height: int) -> Camera:
    """Return the camera of a browser window.

    Args:
        wxyz, position: world_from_cam, OpenCV axes.
        fov: Vertical field of view in radians.
        width, height: Pixels of the window.
    """
    focal = focal_from_fov(fov, height)
    return Camera(
        cam_from_world=invert_rigid(rigid_from_quaternion(np.asarray(wxyz), np.asarray(position))),
        fx=focal,
        fy=focal,
        cx=width / 2,
        cy=height / 2,
        width=width,
        height=height,
    )


def saved_cameras(model_path: Path) -> list[Camera]:
    """Return the cameras of a model folder, test views first, with centred principal points [3DGS cameras.json].

    Raises:
        UserError: The list is missing or damaged.
    """
    path = model_path / "cameras.json"
    try:
        cameras = [_camera(entry) for entry in json.loads(path.read_text())]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a list of cameras ({error}); train or --resume again") from None
    if not cameras:
        raise UserError(f"{path}: no camera is listed; train or --resume again")
    return cameras


def _camera(entry: dict) -> Camera:
    world_from_cam = np.eye(4)
    world_from_cam[:3, :3], world_from_cam[:3, 3] = entry["rotation"], entry["position"]
    width, height = int(entry["width"]), int(entry["height"])
    return Camera(
        cam_from_world=invert_rigid(world_from_cam),
        fx=entry["fx"],
        fy=entry["fy"],
        cx=width / 2,
        cy=height / 2,
        width=width,
        height=height,
    )


def start_view(cameras: Sequence[Camera]) -> StartView:
    """Return the view of the first camera, turned about the point on its axis that is nearest to what all look at."""
    first = cameras[0]
    forward = first.cam_from_world[2, :3]
    nearest = float(forward @ (look_at_point(list(cameras)) - first.position))
    spread = float(np.linalg.norm(np.ptp([camera.position for camera in cameras], axis=0)))
    distance = nearest if nearest > 0 else spread or 1.0
    return StartView(
        position=first.position,
        target=first.position + distance * forward,
        up=up_direction(cameras),
        fov=2 * float(np.arctan(0.5 * first.height / first.fy)),
    )
