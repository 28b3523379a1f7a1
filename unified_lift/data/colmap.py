"""COLMAP scenes, the folder that 3D-GS, Gaussian Grouping and Unified-Lift read.

`images/` (or the folder of -i), the model in `sparse/0`, `sparse` or `colmap/sparse/0`, binary or text, `object_mask/`.
Distorted camera models are undistorted on load to a pinhole with the same K; masks and annotations follow. The split:
with `train_split` the names in `images_train/`; with `eval` the names in `test.txt` (one a line) where it exists, else
every llffhold-th. Truth ids, where there are any: `annotations/gt_instance/<name>.png`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from unified_lift.data.base import (
    OBJECT_PATH,
    Frame,
    Reader,
    Store,
    make_scene,
    mask_folder,
    name_of,
    read_annotations,
    rigid_pose,
    sound_ones,
    without_pose_note,
)
from unified_lift.data.colmap_io import (
    ColmapCamera,
    ColmapImage,
    read_cameras,
    read_images,
    read_points,
    table_path,
)
from unified_lift.data.images import Progress
from unified_lift.data.lens import Lens
from unified_lift.data.masks import find_mask
from unified_lift.data.ply import finite_points, read_point_cloud
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError
from unified_lift.ops.cameras import rigid_from_quaternion
from unified_lift.types import PointCloud, Scene

MODEL_FOLDERS = ("sparse/0", "sparse", "colmap/sparse/0")
ANNOTATIONS = Path("annotations", "gt_instance")
TEST_LIST = "test.txt"
# Where a model's parameters go: number of focal lengths (then cx, cy), then the names of the coefficients that follow.
_SUPPORTED: dict[str, tuple[int, str, tuple[int, ...]]] = {
    "SIMPLE_PINHOLE": (1, "perspective", ()),
    "PINHOLE": (2, "perspective", ()),
    "SIMPLE_RADIAL": (1, "perspective", (0,)),
    "RADIAL": (1, "perspective", (0, 1)),
    "OPENCV": (2, "perspective", (0, 1, 2, 3)),
    "FULL_OPENCV": (2, "perspective", (0, 1, 2, 3, 4, 5, 6, 7)),
    "OPENCV_FISHEYE": (2, "fisheye", (0, 1, 2, 3)),
    "SIMPLE_RADIAL_FISHEYE": (1, "fisheye", (0,)),
    "RADIAL_FISHEYE": (1, "fisheye", (0, 1)),
    "SIMPLE_FISHEYE": (1, "fisheye", ()),
    "FISHEYE": (2, "fisheye", ()),
}


def detect(root: Path) -> bool:
    """Return whether the folder holds a COLMAP model in one of the usual places."""
    return _model_folder(root) is not None


def load(root: Path, settings: DataSettings, *, progress: Progress | None = None, store: Store | None = None) -> Scene:
    """Return the scene.

    Raises:
        UserError: Names the file and the cure.
    """
    folder, notes = mask_folder(root, settings)
    frames = read_frames(root, folder, images=settings.images)
    image_paths = [frame.image_path for frame in frames]
    notes += without_pose_note(root / settings.images, image_paths, frames[0].source)
    return make_scene(
        frames,
        root,
        settings,
        dataset="colmap",
        points=partial(_read_points, _model_folder(root)),
        zero_id="ignore",
        held_out=_held_out(root, frames) if settings.eval else None,
        notes=notes,
        progress=progress,
        store=store,
    )


def frames_of(root: Path, settings: DataSettings, problems: list[str] | None = None) -> list[Frame]:
    """Return all registered images with their masks, sorted by name; `problems` as in `sound_ones`.

    Raises:
        UserError: Names the file and the cure.
    """
    return read_frames(root, mask_folder(root, settings)[0], images=settings.images, problems=problems)


def read_frames(root: Path, masks: Path, *, images: str, problems: list[str] | None = None) -> list[Frame]:
    """Return all registered images, sorted by name as strings [3DGS]; `problems` as in `sound_ones`."""
    model, folder = _model_folder(root), root / images
    if not folder.is_dir():
        raise UserError(f"{folder}: no such image folder; correct -i/--images")
    source = _required(model, "images")
    cameras = read_cameras(_required(model, "cameras"))
    registered = read_images(source)
    if not registered:
        raise UserError(f"{source}: registers no image; the reconstruction failed, run COLMAP again")
    lenses = {
        key: lens_of(cameras[key], model) for key in {image.camera_id for image in registered.values()} & set(cameras)
    }

    def frame_of(image: ColmapImage) -> Frame:
        if image.camera_id not in lenses:
            raise UserError(
                f"{source}: {image.name} uses camera {image.camera_id}, which is not in cameras; export again"
            )
        name = name_of(image.name)
        return Frame(
            name=name,
            image_path=folder / image.name,
            mask_path=find_mask(masks, name),
            cam_from_world=_pose(image, source),
            lens=lenses[image.camera_id],
            source=source,
        )

    return sorted(sound_ones(frame_of, registered.values(), problems), key=lambda frame: frame.name)


def lens_of(camera: ColmapCamera, source: Path) -> Lens:
    """Return the lens of a COLMAP camera.

    Raises:
        UserError: The camera model is none that can be undistorted here, or the parameters are no lens.
    """
    if camera.model not in _SUPPORTED:
        raise UserError(
            f"{source}: camera model {camera.model} is not supported; run colmap image_undistorter and use its result"
        )
    num_focals, model, places = _SUPPORTED[camera.model]
    params = camera.params
    if not np.isfinite(params).all() or min(params[:num_focals]) <= 0 or camera.width < 1 or camera.height < 1:
        raise UserError(f"{source}: a {camera.model} camera holds NaN, a size or a focal length that is not positive")
    coefficients = [0.0] * 8
    for place, value in zip(places, params[num_focals + 2 :], strict=True):
        coefficients[place] = value
    return Lens(
        fx=params[0],
        fy=params[num_focals - 1],
        cx=params[num_focals],
        cy=params[num_focals + 1],
        width=camera.width,
        height=camera.height,
        model=model,
        coefficients=tuple(coefficients),
    )


def load_annotations(root: Path, names: Sequence[str], settings: DataSettings) -> dict[str, np.ndarray]:
    """Return the ids of `annotations/gt_instance/` of the named views, int32 [H, W]; empty where there are none."""
    if not (root / ANNOTATIONS).is_dir():
        return {}
    return read_annotations(read_frames(root, root / OBJECT_PATH, images=settings.images), root / ANNOTATIONS, names)


def _model_folder(root: Path) -> Path | None:
    for name in MODEL_FOLDERS:
        folder = root / name
        if table_path(folder, "cameras") or table_path(folder, "images"):
            return folder
    return None


def _required(folder: Path, table: str) -> Path:
    path = table_path(folder, table)
    if path is None:
        raise UserError(f"{folder / table}.bin: neither this file nor {table}.txt is there; export the whole model")
    return path


def _pose(image: ColmapImage, source: Path) -> np.ndarray:
    values = np.array([*image.qvec, *image.tvec])
    if not np.isfinite(values).all() or not np.linalg.norm(image.qvec) > 1e-9:
        raise UserError(f"{source}: the pose of {image.name} is NaN, infinite or a zero quaternion; remove this image")
    return rigid_pose(rigid_from_quaternion(image.qvec, image.tvec), source=source, name=image.name)


def _held_out(root: Path, frames: Sequence[Frame]) -> list[str] | None:
    """Return the views named in test.txt, with or without suffix; None where there is no such list."""
    path = root / TEST_LIST
    if not path.is_file():
        return None
    names = {frame.name for frame in frames}
    chosen = []
    for line in filter(None, map(str.strip, path.read_text(encoding="utf-8").splitlines())):
        name = line if line in names else name_of(line)
        if name not in names:
            raise UserError(f"{path}: {line} is not a registered image; correct or remove this line")
        chosen.append(name)
    return chosen


def _read_points(folder: Path) -> PointCloud | None:
    """Return the finite sparse points, else those of points3D.ply beside the model, else None."""
    path = table_path(folder, "points3D")
    if path is None:
        cloud = folder / "points3D.ply"
        return read_point_cloud(cloud) if cloud.is_file() else None
    points = read_points(path)
    return finite_points(points.positions, points.colors)


READER = Reader(
    name="colmap",
    looks_for=", ".join(f"{folder}/cameras.bin" for folder in MODEL_FOLDERS) + " (or .txt)",
    detect=detect,
    load=load,
    load_annotations=load_annotations,
    precedence=60,
    frames=frames_of,
)
