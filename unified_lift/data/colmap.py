"""COLMAP scenes, the folder that 3D-GS, Gaussian Grouping and Unified-Lift read.

`images/` (or the folder of -i), the model in `sparse/*`, `sparse` or `colmap/sparse/*`, binary or text, `object_mask/`.
Of several models the largest is read, unless the settings name one. Photos are found as `lookup` says.
Distorted camera models are undistorted on load to a pinhole with the same K; masks and annotations follow. The split:
with `train_split` the names in `images_train/`; with `eval` the names in `test.txt` (one a line) where it exists, else
every llffhold-th. Exact ids, where there are any: `annotations/gt_instance/<name>.png`.

Of the model, cameras, images and points3D are read, of tracks only who shows what; rigs and frames add nothing that a
loader needs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np

from unified_lift.data.base import (
    Frame,
    Reader,
    SceneDescription,
    listed,
    name_of,
    quaternion_pose,
    sound_frames,
    without_pose_note,
)
from unified_lift.data.colmap_tables import (
    PARAMS,
    ColmapCamera,
    ColmapImage,
    num_records,
    read_cameras,
    read_images,
    read_points,
    table_path,
    text_lines,
)
from unified_lift.data.images import photos_in
from unified_lift.data.lens import COEFFICIENTS, FISHEYE, PERSPECTIVE, Lens, LensModel
from unified_lift.data.lookup import find_photos, names_in_list
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError
from unified_lift.plyio import finite_points, read_point_cloud
from unified_lift.types import PointCloud

MODEL_FOLDERS = ("sparse/*", "sparse", "colmap/sparse/*")
"""Where a model may lie; the first of these places that holds any counts."""


def model_folder(root: Path) -> Path | None:
    """Return the folder of the COLMAP model that is read unless the user chooses, None where there is none."""
    return next(iter(_models(root)), None)


def _models(root: Path) -> dict[Path, int]:
    """Return the models in the first place that holds any, with their numbers of images, the largest first.

    Of equals the mapper's own, called 0, 1, 2, ..., come first. A model that stands alone is not looked into.
    """
    for place in MODEL_FOLDERS:
        folders = [path for path in root.glob(place) if table_path(path, "cameras") or table_path(path, "images")]
        counts = {path: _num_images(path) if len(folders) > 1 else 0 for path in folders}
        if counts:
            names = sorted(counts, key=lambda path: (not path.name.isdecimal(), len(path.name), path.name))
            return {path: counts[path] for path in sorted(names, key=lambda path: -counts[path])}
    return {}


def _num_images(model: Path) -> int:
    path = table_path(model, "images")
    try:
        if path is None or path.suffix == ".bin":
            return num_records(path) if path else 0
        return len(read_images(path))
    except UserError:  # named once it is read, if it is the model chosen
        return 0


def _chosen_model(root: Path, chosen: str) -> tuple[Path, list[str]]:
    """Return the folder of the model to read, and a note on how it was chosen among several."""
    models = _models(root)
    there = listed([f"{path.name} ({count} images)" if count else path.name for path, count in models.items()])
    if chosen == "auto":
        model = next(iter(models), root / "sparse/0")
        text = f"{model.relative_to(root).as_posix()} is read, of {len(models)} COLMAP models the largest"
        return model, [f"{text}: {there}; --sparse NAME reads another"] if len(models) > 1 else []
    for path in [*(path for path in models if path.name == chosen), root / "sparse" / chosen, root / chosen]:
        if table_path(path, "images"):
            return path, []
    raise UserError(f"{root / 'sparse' / chosen}: no COLMAP model; correct --sparse (there is {there or 'none'})")


def describe(root: Path, settings: DataSettings) -> SceneDescription:
    """Return the registered images, sorted by name as strings [3DGS]."""
    model, choice = _chosen_model(root, settings.sparse)
    folder = root / settings.images
    if not folder.is_dir():
        raise UserError(f"{folder}: no such image folder; correct -i/--images")
    source = _required(model, "images")
    cameras = read_cameras(_required(model, "cameras"))
    images = list(read_images(source).values())
    if not images:
        raise UserError(f"{source}: registers no image; the reconstruction failed, run COLMAP again")
    photos = find_photos((image.name for image in images), folder, lambda: photos_in(folder), source)
    lens_of_camera = cache(lambda key: lens_of(cameras[key], model))

    def frame_of(image: ColmapImage) -> Frame:
        if image.camera_id not in cameras:
            what = f"{image.name} uses camera {image.camera_id}, which is not in cameras"
            raise UserError(f"{source}: {what}; export again")
        return Frame(
            name=name_of(image.name),
            image_path=photos.paths[image.name],
            cam_from_world=quaternion_pose(image.qvec, image.tvec, source=source, name=image.name),
            lens=lens_of_camera(image.camera_id),
            source=source,
            alpha="auto",
        )

    frames, broken = sound_frames(frame_of, images)
    cloud, cloud_note = _chosen_cloud(model)
    held_out, listing = None, list[str]()
    if settings.eval:
        held_out, listing = _listed_tests(root, list(photos.paths), strict=settings.strict)
    return SceneDescription(
        frames=sorted(frames, key=lambda frame: frame.name),
        broken=broken,
        held_out=held_out,
        points=partial(_read_points, model, cloud),
        tracks=partial(_read_tracks, model, images),
        notes=[
            *choice,
            *cloud_note,
            *photos.notes,
            *listing,
            *without_pose_note(folder, photos.paths.values(), source),
        ],
    )


def lens_of(camera: ColmapCamera, source: Path) -> Lens:
    """Return the lens of a COLMAP camera; a UserError names one that cannot be undistorted or is no lens."""
    if camera.model not in (*PERSPECTIVE, *FISHEYE):
        fix = "run colmap image_undistorter and use its result"
        raise UserError(f"{source}: camera model {camera.model} is not supported; {fix}")
    values = dict(zip(PARAMS[camera.model], camera.params, strict=True))
    fx, fy = (values.get("f", values.get(axis, 0.0)) for axis in ("fx", "fy"))
    if not (np.abs(camera.params) < 1e15).all() or min(fx, fy) <= 0 or min(camera.width, camera.height) < 1:
        raise UserError(f"{source}: a {camera.model} camera holds NaN, a size or a focal length that is not positive")
    model: LensModel = "fisheye" if camera.model in FISHEYE else "perspective"
    coefficients = tuple(values.get(name, 0.0) for name in COEFFICIENTS[model])
    return Lens(fx, fy, values["cx"], values["cy"], camera.width, camera.height, model, coefficients)


def _required(folder: Path, table: str) -> Path:
    path = table_path(folder, table)
    if path is None:
        raise UserError(f"{folder / table}.bin: neither this file nor {table}.txt is there; export the whole model")
    return path


def _listed_tests(root: Path, names: Sequence[str], *, strict: bool) -> tuple[list[str] | None, list[str]]:
    """Return the views that test.txt names, with or without suffix, None where there is no such list; and notes."""
    path = root / "test.txt"
    if not path.is_file():
        return None, []
    lines = [line.strip() for line in text_lines(path) if line.strip()]
    found, notes = names_in_list(lines, names, path, strict=strict)
    return [name_of(name) for name in found], notes


def _chosen_cloud(model: Path) -> tuple[Path | None, list[str]]:
    """Return points3D.ply beside the model where its points are read instead of the table's, and a note on that.

    So do 3D-GS and its kin, which write it where it is missing: of as many points as the table it is a copy in float32.
    """
    table, cloud = table_path(model, "points3D"), model / "points3D.ply"
    if not cloud.is_file():
        return None, []
    with cloud.open("rb") as file:
        count = re.search(rb"element vertex (\d+)", file.read(1 << 12))
    num, num_table = int(count[1]) if count else -1, num_records(table) if table else 0
    if num_table > 0 and num in (0, num_table):
        return None, []
    text = f"{cloud.name} gives the initial points, as in 3DGS"
    return cloud, [f"{text}; remove it for the {num_table} of {table.name}"] if table and num_table else []


def _read_points(model: Path, cloud: Path | None) -> PointCloud | None:
    """Return the finite points of the chosen cloud, else of the table, else None."""
    if cloud is not None:
        return read_point_cloud(cloud)
    table = table_path(model, "points3D")
    points = read_points(table) if table is not None else None
    return finite_points(points.positions, points.colors) if points is not None else None


def _read_tracks(model: Path, images: Sequence[ColmapImage]) -> dict[str, np.ndarray]:
    """Return the points of the table that each image has a 2D point of, where there are any."""
    table = table_path(model, "points3D")
    if table is None or not any(len(image.points2d) for image in images):
        return {}
    points = read_points(table)
    order = np.argsort(points.ids, kind="stable")
    ids, positions = points.ids[order], points.positions[order]
    tracks = {}
    for image in images:
        wanted = image.points2d["point3d"]
        at = np.searchsorted(ids, wanted)
        known = (at < len(ids)) & (wanted >= 0)
        known[known] = ids[at[known]] == wanted[known]
        found = positions[at[known]]
        tracks[name_of(image.name)] = found[np.isfinite(found).all(axis=1)]
    return tracks


READER = Reader(
    name="colmap",
    looks_for="sparse/0/cameras.bin, sparse/cameras.bin, colmap/sparse/0/cameras.bin (or .txt)",
    detect=model_folder,
    describe=describe,
    precedence=60,
)
