"""Videos of a scene: camera paths, and the H.264 file."""

import contextlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy.interpolate import CubicSpline, PchipInterpolator
from scipy.spatial.transform import Rotation, RotationSpline
from scipy.special import softmax

from unified_lift.errors import UserError
from unified_lift.evaluation.pictures import overlay, rendering_of
from unified_lift.fileio import replacing
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.ops.cameras import invert_rigid, look_at, look_at_point
from unified_lift.progress import Bar
from unified_lift.types import IDENTITY, Camera, Scene, Similarity

FPS = 24
MIN_HEIGHT, MAX_HEIGHT = 240, 720  # pixels: the height is that of the photos, kept inside these limits
_MIN_SHARE_IN_FRONT = 0.7  # of the cameras that must have the look-at point in front of them for an orbit
_MAX_GAP = math.radians(75)  # a wider angle without cameras is not crossed: the path swings instead
_CONCENTRATION = 12.0  # von Mises kernel of about 17 degrees
_MEAN_UP_WEIGHT = 1e-2
_SMOOTH_VIEWS = 1.5  # standard deviation, in views, of the smoothing along a walk


def video_path(cameras: Sequence[Camera], *, count: int) -> list[Camera]:
    """Return `count` cameras of a smooth path: around what the training cameras look at, or along them.

    Cameras that surround a common point give a circle around it, whose radius and height follow the cameras nearby;
    where they leave a wide gap the path swings between its two sides. Other cameras are followed in their order.
    """
    target = look_at_point(list(cameras))
    in_front = [camera.cam_from_world[2] @ [*target, 1] > 0 for camera in cameras]
    is_orbit = len(cameras) > 2 and np.mean(in_front) >= _MIN_SHARE_IN_FRONT
    height = min(max(cameras[0].height, MIN_HEIGHT), MAX_HEIGHT)
    width = 2 * max(1, round(cameras[0].width * height / cameras[0].height / 2))
    height -= height % 2
    fx = float(np.median([camera.fx / camera.width for camera in cameras])) * width
    fy = float(np.median([camera.fy / camera.height for camera in cameras])) * height
    poses = _orbit(cameras, target, count) if is_orbit else _walk(cameras, count)
    return [centred_camera(pose, fx, fy, width, height) for pose in poses]


def path_through(keys: Sequence[Camera], *, count: int, height: int = MAX_HEIGHT) -> list[Camera]:
    """Return `count` cameras of an even height that pass smoothly through at least two (else a UserError) others."""
    if len(keys) < 2:
        raise UserError(f"a camera path needs two views at least, there are {len(keys)}; add the view you see")
    poses = np.stack([invert_rigid(camera.cam_from_world) for camera in keys])
    at, times = np.linspace(0, 1, len(keys)), np.linspace(0, 1, count)
    path = np.tile(np.eye(4), (count, 1, 1))
    path[:, :3, 3] = CubicSpline(at, poses[:, :3, 3])(times)
    path[:, :3, :3] = RotationSpline(at, Rotation.from_matrix(poses[:, :3, :3]))(times).as_matrix()
    focals = np.exp(PchipInterpolator(at, np.log([camera.fy / camera.height for camera in keys]))(times)) * height
    width = 2 * max(1, round(keys[0].width * height / keys[0].height / 2))
    return [
        centred_camera(invert_rigid(pose), focal, focal, width, height)
        for pose, focal in zip(path, focals.tolist(), strict=True)
    ]


def centred_camera(pose: np.ndarray, fx: float, fy: float, width: int, height: int) -> Camera:
    """Return a camera of a pose (cam_from_world) whose principal point is the middle of its image."""
    return Camera(cam_from_world=pose, fx=fx, fy=fy, cx=width / 2, cy=height / 2, width=width, height=height)


def saved_cameras(model_path: Path, frame: Similarity = IDENTITY) -> list[Camera]:
    """Return the cameras of a model folder inside of its frame, test views first, principal points centred.

    A UserError: there are none.
    """
    path, cameras = model_path / "cameras.json", []
    try:
        for entry in json.loads(path.read_text()):
            world_from_cam = np.eye(4)
            world_from_cam[:3, :3], world_from_cam[:3, 3] = entry["rotation"], entry["position"]
            pose, size = invert_rigid(world_from_cam), (int(entry["width"]), int(entry["height"]))
            cameras.append(frame.camera_inside(centred_camera(pose, entry["fx"], entry["fy"], *size)))
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
        raise UserError(f"{path}: not a list of cameras ({error}); train or --resume again") from None
    if not cameras:
        raise UserError(f"{path}: no camera is listed; train or --resume again")
    return cameras


def up_direction(cameras: Sequence[Camera]) -> np.ndarray:
    """Return the unit direction to which the cameras' horizontal axes are most perpendicular, on their upper side."""
    right, down, _ = np.stack([camera.cam_from_world[:3, :3] for camera in cameras], axis=1)  # [C, 3] each
    mean_up = -down.mean(axis=0)
    # The small second term decides where all horizontal axes agree.
    up = np.linalg.eigh(right.T @ right / len(right) - _MEAN_UP_WEIGHT * np.outer(mean_up, mean_up))[1][:, 0]
    return up if up @ mean_up >= 0 else -up


def _orbit(cameras: Sequence[Camera], target: np.ndarray, count: int) -> list[np.ndarray]:
    up = up_direction(cameras)
    east = np.cross(up, np.eye(3)[np.abs(up).argmin()])
    east /= np.linalg.norm(east)
    north = np.cross(up, east)
    offsets = np.stack([camera.position for camera in cameras]) - target
    angles = np.arctan2(offsets @ north, offsets @ east)
    heights, radii = offsets @ up, np.hypot(offsets @ north, offsets @ east)
    poses = []
    rising = np.sort(angles)
    gaps = np.diff(np.append(rising, rising[0] + 2 * math.pi))
    widest = int(gaps.argmax())
    turn = 2 * math.pi * (np.arange(count) / count)
    if gaps[widest] > _MAX_GAP:  # there and back over the arc that has cameras
        turn = (2 * math.pi - gaps[widest]) * (0.5 - 0.5 * np.cos(turn))
    for angle in rising[(widest + 1) % len(rising)] + turn:
        weight = softmax(_CONCENTRATION * np.cos(angles - angle))
        radius, height = weight @ radii, weight @ heights
        position = target + radius * (math.cos(angle) * east + math.sin(angle) * north) + height * up
        poses.append(look_at(position, target, up))
    return poses


def _walk(cameras: Sequence[Camera], count: int) -> list[np.ndarray]:
    positions = np.stack([camera.position for camera in cameras])
    axes = np.stack([camera.cam_from_world[:3, :3] for camera in cameras])  # rows: right, down, forward
    poses = []
    for at in np.linspace(0, len(cameras) - 1, count):
        weight = softmax(-0.5 * ((np.arange(len(cameras)) - at) / _SMOOTH_VIEWS) ** 2)
        position, (_, down, forward) = weight @ positions, np.einsum("c,cij->ij", weight, axes)
        if np.linalg.norm(np.cross(forward, down)) < 1e-3:  # neighbours face opposite ways: take the nearest as it is
            _, down, forward = axes[round(at)]
        poses.append(look_at(position, position + forward, -down))
    return poses


def orbit_frames(model: TrainedScene, scene: Scene, *, seconds: float, quiet: bool) -> Iterator[np.ndarray]:
    """Yield frames of a video around a scene: colour beside object colours, [H, 2W, 3]; colour alone without a lift."""
    path = video_path([view.camera for view in scene.train], count=max(1, round(seconds * FPS)))
    for camera in Bar(path, desc="video", disable=quiet):
        image, ids = rendering_of(model, camera)
        yield image if ids is None else np.hstack([image, overlay(image, ids, share=0.75)])  # shading stays visible


def write_video(path: Path, frames: Iterable[np.ndarray], *, fps: int = FPS) -> None:
    """Write RGB frames, uint8 [H, W, 3], one or more of one even size, as H.264 in MP4, whole or not at all."""
    import imageio_ffmpeg  # carries an encoder of 30 MB; scoring must not need it

    frames, count = iter(frames), 0
    first = next(frames)
    options = "-f mp4 -crf 18 -preset veryfast -movflags +faststart".split()  # a partial file has no suffix to go by
    with replacing(path) as partial:
        writer = imageio_ffmpeg.write_frames(
            str(partial), first.shape[1::-1], fps=fps, quality=None, macro_block_size=2, output_params=options
        )
        with contextlib.closing(writer):
            writer.send(None)
            for count, frame in enumerate(itertools.chain([first], frames), start=1):  # noqa: B007
                try:
                    writer.send(np.ascontiguousarray(frame))
                except OSError as error:  # with all that the encoder has printed
                    reason = str(error).strip().splitlines()[-1]
                    raise UserError(f"{path}: the encoder stopped ({reason}); is the disk full?") from None
        # The encoder's exit status is not looked at by the library, and a full disk leaves a file without an index.
        written = _frames_in(partial)
        if written != count:
            raise UserError(f"{path}: only {written} of {count} frames were written; is the disk full?")


def _frames_in(path: Path) -> int:
    """Return the number of frames of a video, 0 of one that cannot be read."""
    import imageio_ffmpeg

    with contextlib.suppress(OSError, RuntimeError):
        return imageio_ffmpeg.count_frames_and_secs(str(path))[0]
    return 0
