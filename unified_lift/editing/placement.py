"""How an exported scene or object lies in its file: which way is up, where its middle is, and how large it is."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from scipy.spatial.transform import Rotation as Turn

from unified_lift.editing.operations import turned
from unified_lift.evaluation.video import saved_cameras, up_direction
from unified_lift.model.gaussians import Gaussians
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.modelfolder.labels import robust_box
from unified_lift.modelfolder.outputs import write_frame
from unified_lift.settings.limits import Range
from unified_lift.types import Camera, Similarity

Up = Literal["y", "z", "auto"]
_DOWN_FRONT = (0.0, -1.0, 0.0)  # up of a `.ply` of 3DGS, as most viewers take it
_AXES = {"y": (0.0, 1.0, 0.0), "z": (0.0, 0.0, 1.0), "auto": _DOWN_FRONT}
_TURN_OVER = np.array([1.0, -1.0, -1.0])  # what formats with y up and z back do to ours
_ON_AXIS = math.cos(math.radians(0.5))  # nearer to an axis, the direction that cameras tell is that axis
_LOWEST = 0.01  # share of the Gaussians that may lie below the ground: floaters do


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What is done to each exported part; without anything, it is written as it is.

    x becomes `scale` R (x - pivot). R turns the scene's up to +y or +z of the file; `auto`: to what programs take for
    up that open the format. The pivot is the middle of the robust box with `center`, and at its lowest with `ground`.
    """

    up: Up | None = None
    center: bool = False
    ground: bool = False
    scale: Annotated[float, Range(1e-6, 1e6)] = 1.0

    @property
    def is_none(self) -> bool:
        """Return whether nothing is changed."""
        return self == Placement()

    @property
    def needs_up(self) -> bool:
        """Return whether it matters which way is up in the scene."""
        return self.up is not None or self.ground

    def placed(self, scene: TrainedScene, up: np.ndarray, *, turned_over: bool) -> TrainedScene:
        """Return a part of a scene as its file is to hold it.

        `up` is the direction that is up in the part, unit [3]; `turned_over`: the format mirrors y and z of ours when
        it writes.
        """
        if self.is_none:
            return scene
        target = np.array(_AXES[self.up or "auto"])
        if turned_over and self.up in ("y", "z"):
            target = target * _TURN_OVER
        turn = Turn.identity() if self.up is None else _shortest_turn(up, target)
        means = scene.frame.outside(scene.gaussians.means.detach().cpu().double().numpy())
        pivot = np.mean(robust_box(means), axis=0) if self.center else np.zeros(3)
        if self.ground:
            pivot = pivot + (np.quantile(means @ up, _LOWEST) - pivot @ up) * up
        frame = self._frame(scene.frame, turn, up)
        table, device = scene.gaussians.state_dict(), scene.gaussians.device
        wxyz = torch.from_numpy(turn.as_quat()[[3, 0, 1, 2]]).to(device) if self.up else None
        changed = turned(table, wxyz, self.scale * frame.scale / scene.frame.scale)
        means = frame.inside(self.scale * (means - pivot) @ turn.as_matrix().T)
        changed["means"] = torch.from_numpy(np.float32(means)).to(device)
        matrix = np.eye(4)
        matrix[:3, :3] = self.scale * turn.as_matrix()
        matrix[:3, 3] = -matrix[:3, :3] @ pivot
        moved = scene.gaussians.like(table | changed, takes_over=True)  # what stays is only read
        return replace(scene, gaussians=moved, frame=frame, placed=matrix)

    def _frame(self, frame: Similarity, turn: Turn, up: np.ndarray) -> Similarity:
        """Return the frame of what was placed: one for all parts, since one frame.json tells of it."""
        if frame.is_identity:
            return frame
        offset = np.zeros(3) if self.center else np.array(frame.offset)
        if self.ground:
            offset = offset - (offset @ up) * up
        x, y, z = (self.scale * turn.apply(offset)).tolist()
        return Similarity(offset=(x, y, z), scale=2.0 ** round(math.log2(frame.scale / self.scale)))


def cameras_of(scene: TrainedScene) -> list[Camera]:
    """Return the cameras of a scene's model, inside of its frame, moved as the scene was placed; none of a splat."""
    if not (scene.path / "cameras.json").is_file():
        return []
    cameras = saved_cameras(scene.path)
    if scene.placed is not None:
        turn = scene.placed[:3, :3] / np.cbrt(np.linalg.det(scene.placed[:3, :3]))
        for index, camera in enumerate(cameras):
            pose = camera.cam_from_world.copy()
            pose[:3, :3] = pose[:3, :3] @ turn.T
            pose[:3, 3] = -pose[:3, :3] @ (scene.placed[:3, :3] @ camera.position + scene.placed[:3, 3])
            cameras[index] = replace(camera, cam_from_world=pose)
    return [scene.frame.camera_inside(camera) for camera in cameras]


def for_float32(folder: Path, scene: TrainedScene) -> Gaussians:
    """Return the Gaussians as a format of float32 numbers can hold them: in the user's coordinates.

    Far from the origin, they are inside of the scene's frame, and a frame.json in the folder tells so.
    """
    frame, gaussians = scene.frame, scene.gaussians
    if any(frame.offset):
        write_frame(folder, frame)
    if any(frame.offset) or frame.is_identity:
        return gaussians
    means = gaussians.means.detach() / frame.scale
    log_scales = gaussians.log_scales.detach() - math.log(frame.scale)
    return gaussians.like(gaussians.state_dict() | {"means": means, "log_scales": log_scales}, takes_over=True)


def up_of(scene: TrainedScene) -> tuple[np.ndarray, str]:
    """Return the direction that is up in a scene, unit [3], and in words where that is known from."""
    cameras = cameras_of(scene)
    if not cameras:
        return np.array(_DOWN_FRONT), "-y, as in files of 3DGS: no cameras.json tells more"
    up = up_direction(cameras)
    nearest = np.eye(3)[np.abs(up).argmax()] * np.sign(up[np.abs(up).argmax()])
    if up @ nearest > _ON_AXIS:  # the world was laid so on purpose
        up = nearest
    return up, f"({', '.join(f'{value:.3g}' for value in np.round(up, 3) + 0.0)}), by the cameras"


def _shortest_turn(source: np.ndarray, target: np.ndarray) -> Turn:
    """Return the rotation by the smallest angle that takes one unit vector [3] to another; half a turn is about x."""
    axis, cosine = np.cross(source, target), float(source @ target)
    if np.linalg.norm(axis) < 1e-9:
        side = np.array([1.0, 0, 0]) if abs(source[0]) < 0.9 else np.array([0, 1.0, 0])
        side -= (side @ source) * source
        return Turn.identity() if cosine > 0 else Turn.from_rotvec(np.pi * side / np.linalg.norm(side))
    return Turn.from_rotvec(np.arctan2(np.linalg.norm(axis), cosine) * axis / np.linalg.norm(axis))
