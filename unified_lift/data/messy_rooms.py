"""Messy Rooms (Contrastive Lift): Kubric cameras, per-view Detic ids as .npy, exact ids for scoring.

`<scene>/metadata.json`, `color/<n>.png`, `detic_instance/<n>.npy` (input), `instance/` and `semantic/` (exact). Stems
are not padded and sort as numbers; frame i of that order has pose i. The last 20 % of the frames are the test views.
Id 0 of the Detic masks is the background, a segment of its own; in any other mask folder (--object_path) it means
"claimed by no mask". `detic_probabilities/` and `invalid/` are not used. Initial points are made from the photos.
"""

from collections.abc import Collection
from functools import partial
from pathlib import Path

import numpy as np

from unified_lift.data.base import Frame, Reader, SceneDescription, masks_in, quaternion_pose, sound_frames
from unified_lift.data.images import image_size, photos_in
from unified_lift.data.lens import Lens
from unified_lift.data.masks import find_mask
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError
from unified_lift.fileio import number, read_json
from unified_lift.ops.cameras import cam_from_world_opengl
from unified_lift.reading import reading

INPUT_MASKS = "detic_instance"


def detect(root: Path) -> bool:
    """Return whether the folder holds `metadata.json` and `color/`."""
    return (root / "metadata.json").is_file() and (root / "color").is_dir()


def describe(root: Path, settings: DataSettings) -> SceneDescription:
    """Return all frames in numeric order of their stems; the last 20 % are held out."""
    source = root / "metadata.json"
    camera = read_json(source).get("camera")
    lists = [camera.get(key) for key in ("positions", "quaternions")] if isinstance(camera, dict) else [None]
    if not isinstance(camera, dict) or not all(isinstance(values, list) for values in lists):
        raise UserError(f"{source}: holds no camera positions and quaternions; this is not Kubric metadata")
    images = sorted(photos_in(root / "color", "*"), key=_numeric)
    positions, quaternions = camera["positions"], camera["quaternions"]
    if not len(positions) == len(quaternions) == len(images):
        what = f"{len(positions)} positions and {len(quaternions)} quaternions but {len(images)} images"
        raise UserError(f"{source}: {what} in {root / 'color'}; image i needs pose i: restore the missing ones")

    def frame_of(item: tuple[Path, list[float], list[float]]) -> Frame:
        path, position, quaternion = item
        pose = quaternion_pose(quaternion, position, source=source, name=path.stem)
        size = image_size(path)
        return Frame(
            name=path.stem,
            image_path=path,
            cam_from_world=cam_from_world_opengl(pose),
            lens=_lens(camera, size, source),
            source=source,
            stored=size,
        )

    masks = INPUT_MASKS if settings.object_path == "auto" else Path(settings.object_path).name
    frames, broken = sound_frames(frame_of, zip(images, positions, quaternions, strict=True))
    return SceneDescription(
        frames=frames,
        broken=broken,
        zero_id="segment" if masks == INPUT_MASKS else "ignore",
        held_out=[path.stem for path in images[len(images) * 4 // 5 :]],
        annotations=partial(exact_ids, root),
    )


def exact_ids(root: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """Return the exact ids of the named views where `semantic` says object, 0 elsewhere; int32 [H, W]."""
    found, classes = masks_in(root / "instance", names), masks_in(root / "semantic", names)
    for name in found.keys() & classes.keys():
        ours, theirs, mask = found[name].shape, classes[name].shape, find_mask(root / "semantic", name)
        if ours != theirs and mask is not None:
            what = f"shape {theirs} differs from {ours} of the same view in instance/"
            raise UserError(f"{mask.path}: {what}; fetch it again")
    return {name: np.where(classes[name] == 1, ids, 0) for name, ids in found.items() if name in classes}


def _numeric(path: Path) -> tuple[float, str]:
    """Sort key: numeric stems as numbers, before all others."""
    return (int(path.stem), "") if path.stem.isdecimal() else (float("inf"), path.stem)


def _lens(camera: dict, size: tuple[int, int], source: Path) -> Lens:
    """Return the lens from the unit-square K (signs dropped), else from focal length and sensor width."""
    width, height = size
    if "K" in camera:
        with reading(source, "camera matrix K", fix="fetch the file again"):
            matrix = np.abs(np.asarray(camera["K"], dtype=np.float64))
        if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
            raise UserError(f"{source}: K is not a 3x3 matrix of finite numbers; fetch the file again")
        (fx, _, cx), (_, fy, cy) = matrix[0] * width, matrix[1] * height
    else:
        fx = fy = number(camera, "focal_length", source) / number(camera, "sensor_width", source) * width
        cx, cy = width / 2, height / 2
    return Lens(fx, fy, cx, cy, width, height)


READER = Reader(
    name="messy_rooms",
    looks_for="metadata.json and color/",
    detect=detect,
    describe=describe,
    mask_folder=INPUT_MASKS,
    protocol="messy_rooms",
    precedence=10,
)
