"""COLMAP scenes, the folder that 3D-GS, Gaussian Grouping and Unified-Lift read.

`images/` (or the folder of -i), the model in `sparse/0`, `sparse` or `colmap/sparse/0`, binary or text, `object_mask/`.
Distorted camera models are undistorted on load to a pinhole with the same K; masks and annotations follow. The split:
with `train_split` the names in `images_train/`; with `eval` the names in `test.txt` (one a line) where it exists, else
every llffhold-th. Exact ids, where there are any: `annotations/gt_instance/<name>.png`.
"""

from collections.abc import Collection
from functools import partial
from pathlib import Path

import numpy as np

from unified_lift.data.base import (
    ANNOTATIONS,
    Frame,
    Reader,
    SceneDescription,
    masks_in,
    name_of,
    rigid_pose,
    sound_frames,
    without_pose_note,
)
from unified_lift.data.colmap_io import (
    PARAMS,
    ColmapCamera,
    ColmapImage,
    read_cameras,
    read_images,
    read_points,
    table_path,
)
from unified_lift.data.lens import COEFFICIENTS, FISHEYE, PERSPECTIVE, Lens, LensModel
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError
from unified_lift.ops.cameras import rigid_from_quaternion
from unified_lift.plyio import finite_points, read_point_cloud
from unified_lift.types import PointCloud

MODEL_FOLDERS = ("sparse/0", "sparse", "colmap/sparse/0")
TEST_LIST = "test.txt"


def detect(root: Path) -> bool:
    """Return whether the folder holds a COLMAP model in one of the usual places."""
    return _model_folder(root) is not None


def describe(root: Path, settings: DataSettings) -> SceneDescription:
    """Return the registered images, sorted by name as strings [3DGS]."""
    model, folder = _model_folder(root) or root / MODEL_FOLDERS[0], root / settings.images
    if not folder.is_dir():
        raise UserError(f"{folder}: no such image folder; correct -i/--images")
    source = _required(model, "images")
    cameras = read_cameras(_required(model, "cameras"))
    images = list(read_images(source).values())
    if not images:
        raise UserError(f"{source}: registers no image; the reconstruction failed, run COLMAP again")
    lenses = {key: lens_of(cameras[key], model) for key in {image.camera_id for image in images} & set(cameras)}

    def frame_of(image: ColmapImage) -> Frame:
        if image.camera_id not in lenses:
            raise UserError(
                f"{source}: {image.name} uses camera {image.camera_id}, which is not in cameras; export again"
            )
        return Frame(
            name=name_of(image.name),
            image_path=folder / image.name,
            cam_from_world=_pose(image, source),
            lens=lenses[image.camera_id],
            source=source,
        )

    frames, broken = sound_frames(frame_of, images)
    return SceneDescription(
        frames=sorted(frames, key=lambda frame: frame.name),
        broken=broken,
        held_out=_listed_tests(root, {name_of(image.name) for image in images}) if settings.eval else None,
        points=partial(_read_points, model),
        notes=without_pose_note(folder, (folder / image.name for image in images), source),
        annotations=partial(masks_in, root / ANNOTATIONS),
    )


def lens_of(camera: ColmapCamera, source: Path) -> Lens:
    """Return the lens of a COLMAP camera; a UserError names one that cannot be undistorted or is no lens."""
    if camera.model not in (*PERSPECTIVE, *FISHEYE):
        raise UserError(
            f"{source}: camera model {camera.model} is not supported; run colmap image_undistorter and use its result"
        )
    values = dict(zip(PARAMS[camera.model], camera.params, strict=True))
    fx, fy = (values.get("f", values.get(axis, 0.0)) for axis in ("fx", "fy"))
    if not np.isfinite(camera.params).all() or min(fx, fy) <= 0 or min(camera.width, camera.height) < 1:
        raise UserError(f"{source}: a {camera.model} camera holds NaN, a size or a focal length that is not positive")
    model: LensModel = "fisheye" if camera.model in FISHEYE else "perspective"
    return Lens(
        fx=fx,
        fy=fy,
        cx=values["cx"],
        cy=values["cy"],
        width=camera.width,
        height=camera.height,
        model=model,
        coefficients=tuple(values.get(name, 0.0) for name in COEFFICIENTS[model]),
    )


def _model_folder(root: Path) -> Path | None:
    folders = (root / name for name in MODEL_FOLDERS)
    return next((path for path in folders if table_path(path, "cameras") or table_path(path, "images")), None)


def _required(folder: Path, table: str) -> Path:
    path = table_path(folder, table)
    if path is None:
        raise UserError(f"{folder / table}.bin: neither this file nor {table}.txt is there; export the whole model")
    return path


def _pose(image: ColmapImage, source: Path) -> np.ndarray:
    qvec, tvec = np.array(image.qvec), np.array(image.tvec)
    if not np.isfinite([*qvec, *tvec]).all() or not np.linalg.norm(qvec) > 1e-9:
        raise UserError(f"{source}: the pose of {image.name} is NaN, infinite or a zero quaternion; remove this image")
    return rigid_pose(rigid_from_quaternion(qvec, tvec), source=source, name=image.name)


def _listed_tests(root: Path, names: Collection[str]) -> list[str] | None:
    """Return the views named in test.txt, with or without suffix; None where there is no such list."""
    path = root / TEST_LIST
    if not path.is_file():
        return None
    chosen = []
    for line in filter(None, map(str.strip, path.read_text(encoding="utf-8").splitlines())):
        chosen.append(line if line in names else name_of(line))
        if chosen[-1] not in names:
            raise UserError(f"{path}: {line} is not a registered image; correct or remove this line")
    return chosen


def _read_points(folder: Path) -> PointCloud | None:
    """Return the finite sparse points, else those of points3D.ply beside the model, else None."""
    path, cloud = table_path(folder, "points3D"), folder / "points3D.ply"
    if path is None:
        return read_point_cloud(cloud) if cloud.is_file() else None
    points = read_points(path)
    return finite_points(points.positions, points.colors)


READER = Reader(
    name="colmap",
    looks_for=", ".join(f"{folder}/cameras.bin" for folder in MODEL_FOLDERS) + " (or .txt)",
    detect=detect,
    describe=describe,
    precedence=60,
)
