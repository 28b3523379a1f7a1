"""Messy Rooms (Contrastive Lift): Kubric cameras, per-view Detic ids as .npy, exact ids for scoring.

`<scene>/metadata.json`, `color/<n>.png`, `detic_instance/<n>.npy` (input), `instance/` and `semantic/` (truth). Stems
are not padded and sort as numbers; frame i of that order has pose i. The last 20 % of the frames are the test views.
Id 0 of the Detic masks is the background, a segment of its own; in any other mask folder (--object_path) it means
"claimed by no mask". `detic_probabilities/` and `invalid/` are not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unified_lift.data.base import Frame, Reader, Store, make_scene, mask_folder, rigid_pose, sound_ones
from unified_lift.data.images import IMAGE_SUFFIXES, Progress, image_size
from unified_lift.data.lens import Lens
from unified_lift.data.masks import find_mask, read_mask
from unified_lift.data.settings import DataSettings
from unified_lift.data.splits import last_fifth
from unified_lift.errors import UserError
from unified_lift.fileio import number, read_json
from unified_lift.ops.cameras import cam_from_world_opengl, rigid_from_quaternion
from unified_lift.types import Scene

INPUT_MASKS = "detic_instance"


def detect(root: Path) -> bool:
    """Return whether the folder holds `metadata.json` and `color/`."""
    return (root / "metadata.json").is_file() and (root / "color").is_dir()


def load(root: Path, settings: DataSettings, *, progress: Progress | None = None, store: Store | None = None) -> Scene:
    """Return the scene; initial points are made from the photos, the data set brings none.

    Raises:
        UserError: Names the file and the cure.
    """
    folder, notes = mask_folder(root, settings, default=INPUT_MASKS)
    frames = read_frames(root, folder)
    return make_scene(
        frames,
        root,
        settings,
        dataset="messy_rooms",
        points=lambda: None,
        zero_id="segment" if folder.name == INPUT_MASKS else "ignore",
        held_out=[frames[i].name for i in last_fifth(len(frames))],
        notes=notes,
        progress=progress,
        store=store,
    )


def frames_of(root: Path, settings: DataSettings, problems: list[str] | None = None) -> list[Frame]:
    """Return all frames with their masks, in numeric order; `problems` as in `sound_ones`.

    Raises:
        UserError: Names the file and the cure.
    """
    return read_frames(root, mask_folder(root, settings, default=INPUT_MASKS)[0], problems=problems)


def read_frames(root: Path, masks: Path, *, problems: list[str] | None = None) -> list[Frame]:
    """Return all frames in numeric order of their stems; `problems` as in `sound_ones`."""
    source = root / "metadata.json"
    camera = read_json(source).get("camera")
    if not isinstance(camera, dict) or not {"positions", "quaternions"} <= camera.keys():
        raise UserError(f"{source}: holds no camera positions and quaternions; this is not Kubric metadata")
    images = sorted((path for path in (root / "color").iterdir() if path.suffix in IMAGE_SUFFIXES), key=_numeric)
    poses = list(zip(camera["positions"], camera["quaternions"], strict=False))
    if len(camera["positions"]) != len(camera["quaternions"]) or len(poses) != len(images):
        raise UserError(
            f"{source}: {len(camera['positions'])} positions and {len(camera['quaternions'])} quaternions but "
            f"{len(images)} images in {root / 'color'}; image i needs pose i: restore the missing ones"
        )

    def frame_of(item: tuple[Path, tuple[object, object]]) -> Frame:
        path, (position, quaternion) = item
        return Frame(
            name=path.stem,
            image_path=path,
            mask_path=find_mask(masks, path.stem),
            cam_from_world=_pose(position, quaternion, source, path.stem),
            lens=_lens(camera, image_size(path), source),
            source=source,
        )

    return sound_ones(frame_of, zip(images, poses, strict=True), problems)


def load_annotations(root: Path, names: Sequence[str], settings: DataSettings) -> dict[str, np.ndarray]:
    """Return the exact ids of the named views where `semantic` says object, 0 elsewhere; int32 [H, W]."""
    found = {}
    for name in names:
        instance, semantic = find_mask(root / "instance", name), find_mask(root / "semantic", name)
        if instance is None or semantic is None:
            continue
        ids, classes = read_mask(instance), read_mask(semantic)
        if ids.shape != classes.shape:
            raise UserError(f"{semantic}: shape {classes.shape} differs from {instance}: {ids.shape}; fetch it again")
        found[name] = np.where(classes == 1, ids, 0).astype(np.int32)
    return found


def _numeric(path: Path) -> tuple[int, str]:
    """Sort key: numeric stems as numbers, before all others."""
    return (int(path.stem), "") if path.stem.isdecimal() else (1 << 62, path.stem)


def _pose(position: object, quaternion: object, source: Path, name: str) -> np.ndarray:
    values = np.asarray([*position, *quaternion], dtype=np.float64)  # type: ignore[misc]
    if values.shape != (7,) or not np.isfinite(values).all() or not np.linalg.norm(values[3:]) > 1e-9:
        raise UserError(f"{source}: the pose of {name} is NaN, infinite or a zero quaternion; correct this entry")
    world_from_cam = rigid_from_quaternion(values[3:], values[:3])
    return cam_from_world_opengl(rigid_pose(world_from_cam, source=source, name=name))


def _lens(camera: dict, size: tuple[int, int], source: Path) -> Lens:
    """Return the lens from the unit-square K (signs dropped), else from focal length and sensor width."""
    width, height = size
    if "K" in camera:
        matrix = np.abs(np.asarray(camera["K"], dtype=np.float64))
        if matrix.shape != (3, 3):
            raise UserError(f"{source}: K is not a 3x3 matrix; fetch the file again")
        (fx, _, cx), (_, fy, cy) = matrix[0] * width, matrix[1] * height
        return Lens(fx=fx, fy=fy, cx=cx, cy=cy, width=width, height=height)
    focal = number(camera, "focal_length", source) / number(camera, "sensor_width", source) * width
    return Lens(fx=focal, fy=focal, cx=width / 2, cy=height / 2, width=width, height=height)


READER = Reader(
    name="messy_rooms",
    looks_for="metadata.json and color/",
    detect=detect,
    load=load,
    load_annotations=load_annotations,
    protocol="messy_rooms",
    precedence=10,
    frames=frames_of,
)
