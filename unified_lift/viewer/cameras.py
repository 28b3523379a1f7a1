"""Cameras of the viewer: those of the browser, and those the scene was trained with."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unified_lift.errors import UserError
from unified_lift.evaluation.video import centred_camera, up_direction
from unified_lift.ops.cameras import focal_from_fov, fov_from_focal, invert_rigid, look_at_point, rigid_from_quaternion
from unified_lift.types import Camera


class StartView(NamedTuple):
    """How a window opens: camera position, what it looks at, which way is up, vertical field of view in radians."""

    position: np.ndarray
    target: np.ndarray
    up: np.ndarray
    fov: float


def camera_of(client: Any) -> Camera:
    """Return the camera of a window of viser, whose `fov` is vertical and whose pose has OpenCV axes."""
    seen = client.camera
    focal = focal_from_fov(seen.fov, seen.image_height)
    pose = invert_rigid(rigid_from_quaternion(np.asarray(seen.wxyz), np.asarray(seen.position)))
    return centred_camera(pose, focal, focal, seen.image_width, seen.image_height)


def saved_cameras(model_path: Path) -> list[Camera]:
    """Return the cameras of a model folder, test views first, with centred principal points [3DGS cameras.json].

    A UserError where the list is missing or damaged.
    """
    path, cameras = model_path / "cameras.json", []
    try:
        for entry in json.loads(path.read_text()):
            world_from_cam = np.eye(4)
            world_from_cam[:3, :3], world_from_cam[:3, 3] = entry["rotation"], entry["position"]
            size = int(entry["width"]), int(entry["height"])
            cameras.append(centred_camera(invert_rigid(world_from_cam), entry["fx"], entry["fy"], *size))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a list of cameras ({error}); train or --resume again") from None
    if not cameras:
        raise UserError(f"{path}: no camera is listed; train or --resume again")
    return cameras


def start_view(cameras: Sequence[Camera]) -> StartView:
    """Return the view of the first camera, turned about the point on its axis that is nearest to what all look at."""
    first = cameras[0]
    forward = first.cam_from_world[2, :3]
    nearest = float(forward @ (look_at_point(list(cameras)) - first.position))
    extent = float(np.linalg.norm(np.ptp([camera.position for camera in cameras], axis=0)))
    target = first.position + (nearest if nearest > 0 else extent or 1.0) * forward
    return StartView(first.position, target, up_direction(cameras), fov_from_focal(first.fy, first.height))
