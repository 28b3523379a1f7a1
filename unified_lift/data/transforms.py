"""JSON camera files: nerfstudio and instant-ngp `transforms.json`, Blender `transforms_{train,val,test}.json`.

Poses are camera-to-world with OpenGL axes. Intrinsics may stand at the top, per frame, or in both (the frame's win).
`train_filenames` / `val_filenames` / `test_filenames` decide the split where present; else every llffhold-th view by
sorted name is held out (nerfstudio's own default, a fraction of 0.9, differs). Of Blender's files `test` is held out
with `eval` and trains without; `val` is not read. Poses are used as saved: `applied_transform`, `aabb_scale`, `scale`
and `offset` do not concern the geometry and nothing is recentred. Photos with an alpha channel are composited over
black. A top-level `zero_id` (`segment` or `ignore`) says what mask id 0 means.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
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
from unified_lift.data.images import IMAGE_SUFFIXES, Progress, image_size
from unified_lift.data.lens import Lens
from unified_lift.data.masks import find_mask
from unified_lift.data.ply import read_point_cloud
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError
from unified_lift.fileio import number, read_json
from unified_lift.ops.cameras import cam_from_world_opengl, focal_from_fov
from unified_lift.types import PointCloud, Scene, ZeroId

ANNOTATIONS = Path("annotations", "gt_instance")
_SPLIT_FILES = ("transforms_train.json", "transforms_test.json")
_CLOUDS = ("points3D.ply", "points3d.ply", "sparse_pc.ply")
_PERSPECTIVE = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "FULL_OPENCV", "PERSPECTIVE")
_PERSPECTIVE_KEYS = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")
_FISHEYE_KEYS = ("k1", "k2", "k3", "k4")


def detect(root: Path) -> bool:
    """Return whether the folder holds `transforms.json` or `transforms_train.json`."""
    return (root / "transforms.json").is_file() or (root / _SPLIT_FILES[0]).is_file()


def load(root: Path, settings: DataSettings, *, progress: Progress | None = None, store: Store | None = None) -> Scene:
    """Return the scene.

    Raises:
        UserError: Names the file and the cure.
    """
    folder, notes = mask_folder(root, settings)
    files = _camera_files(root)
    frames = read_frames(root, folder)
    if any(frame.mask_path is not None for frame in frames):
        notes = []  # frames may name masks elsewhere
    image_folder = Path(os.path.commonpath([frame.image_path.parent for frame in frames])) if frames else root
    if image_folder.resolve() != root.resolve():
        notes += without_pose_note(image_folder, [frame.image_path for frame in frames], files[0])
    held_out = None
    if settings.eval:
        frames, held_out, list_notes = _apply_lists(frames, root, files)
        notes += list_notes
    return make_scene(
        frames,
        root,
        settings,
        dataset="transforms",
        points=partial(_read_points, root, files),
        zero_id=_zero_id(files),
        held_out=held_out,
        notes=notes,
        progress=progress,
        store=store,
    )


def frames_of(root: Path, settings: DataSettings, problems: list[str] | None = None) -> list[Frame]:
    """Return all frames with their masks, sorted by name; `problems` as in `sound_ones`.

    Raises:
        UserError: Names the file and the cure.
    """
    return read_frames(root, mask_folder(root, settings)[0], problems=problems)


def read_frames(root: Path, masks: Path, *, problems: list[str] | None = None) -> list[Frame]:
    """Return all frames sorted by name; `problems` as in `sound_ones`.

    `masks` is searched for frames that name no mask of their own.
    """
    heads = [(path, read_json(path)) for path in _camera_files(root)]
    entries = [(path, entry, head) for path, head in heads for entry in _entries(head, path)]
    images = [_image_path(root, entry) for _, entry, _ in entries]
    common = Path(os.path.commonpath([image.parent for image in images])) if images else root
    size_of = cache(image_size)

    def frame_of(item: tuple[tuple[Path, dict, dict], Path]) -> Frame:
        (source, entry, head), image = item
        if not image.is_file():
            raise UserError(
                f"{image}: {source.name} has a pose for this image but the file is missing; "
                "restore it or remove its entry"
            )
        name = name_of(Path(os.path.relpath(image, common)).as_posix())
        pose = rigid_pose(entry.get("transform_matrix"), source=source, name=entry["file_path"])
        return Frame(
            name=name,
            image_path=image,
            mask_path=_mask_path(root, masks, entry, name),
            cam_from_world=cam_from_world_opengl(pose),
            lens=_lens({**head, **entry}, image, source, size_of),
            source=source,
            alpha="black",
        )

    frames = sound_ones(frame_of, zip(entries, images, strict=True), problems)
    return sorted(frames, key=lambda frame: frame.name)


def load_annotations(root: Path, names: Sequence[str], settings: DataSettings) -> dict[str, np.ndarray]:
    """Return the ids of `annotations/gt_instance/` of the named views, int32 [H, W]; empty where there are none."""
    if not (root / ANNOTATIONS).is_dir():
        return {}
    return read_annotations(read_frames(root, root / OBJECT_PATH), root / ANNOTATIONS, names)


def _camera_files(root: Path) -> list[Path]:
    """Return transforms.json, or Blender's train file and, where present, its test file."""
    if (root / "transforms.json").is_file():
        return [root / "transforms.json"]
    return [root / name for name in _SPLIT_FILES if (root / name).is_file()]


def _entries(head: dict, source: Path) -> list[dict]:
    entries = head.get("frames")
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{source}: lists no frames; write the camera file again")
    for n, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("file_path"), str):
            raise UserError(f"{source}: frame {n} has no file_path; correct or remove this entry")
    return entries


def _image_path(root: Path, entry: dict) -> Path:
    """Return the photo of a frame, whose `file_path` may lack the suffix; it need not exist."""
    path = Path(os.path.normpath(root / entry["file_path"].replace("\\", "/")))
    if path.is_file():
        return path
    for suffix in IMAGE_SUFFIXES:
        candidate = path.with_name(path.name + suffix)
        if candidate.is_file():
            return candidate
    return path


def _mask_path(root: Path, masks: Path, entry: dict, name: str) -> Path | None:
    if "object_mask_path" not in entry:
        return find_mask(masks, name)
    path = root / str(entry["object_mask_path"])
    if not path.is_file():
        raise UserError(f"{path}: object_mask_path of {entry['file_path']} is missing; restore it or remove the field")
    return path


def _lens(fields: dict, image: Path, source: Path, size_of: Callable[[Path], tuple[int, int]]) -> Lens:
    """Return the lens from a frame's fields over the file's."""
    model = str(fields.get("camera_model", "OPENCV")).upper()
    fisheye = model == "OPENCV_FISHEYE" or bool(fields.get("is_fisheye"))
    if not fisheye and model not in _PERSPECTIVE:
        raise UserError(
            f"{source}: camera_model {model} is not supported; undistort the images to OPENCV or PINHOLE first"
        )
    sizes = (0, 0) if {"w", "h"} <= fields.keys() else size_of(image)
    width, height = (int(number(fields, key, source, default=size)) for key, size in zip("wh", sizes, strict=True))
    if width < 1 or height < 1:
        raise UserError(f"{source}: image size {width}x{height} is not positive; correct w and h")
    fx, fy = _focals(fields, width, height, source)
    keys = _FISHEYE_KEYS if fisheye else _PERSPECTIVE_KEYS
    return Lens(
        fx=fx,
        fy=fy,
        cx=number(fields, "cx", source, default=width / 2),
        cy=number(fields, "cy", source, default=height / 2),
        width=width,
        height=height,
        model="fisheye" if fisheye else "perspective",
        coefficients=tuple(number(fields, key, source, default=0.0) for key in keys),
    )


def _focals(fields: dict, width: int, height: int, source: Path) -> tuple[float, float]:
    """Return fx and fy in pixels from fl_x, fl_y or the fields of view; one of the two serves both axes."""
    focals: list[float | None] = []
    for axis, size in (("x", width), ("y", height)):
        if f"fl_{axis}" in fields:
            focals.append(number(fields, f"fl_{axis}", source))
        elif f"camera_angle_{axis}" in fields:
            focals.append(focal_from_fov(number(fields, f"camera_angle_{axis}", source), size))
        else:
            focals.append(None)
    fx, fy = focals[0] or focals[1], focals[1] or focals[0]
    if not fx or not fy or fx <= 0 or fy <= 0:
        raise UserError(f"{source}: no positive focal length; give fl_x or camera_angle_x at the top or in every frame")
    return fx, fy


def _apply_lists(
    frames: list[Frame], root: Path, files: Sequence[Path]
) -> tuple[list[Frame], list[str] | None, list[str]]:
    """Return the frames in use, the names held out (None where the dataset does not say) and notes."""
    if files[0].name == _SPLIT_FILES[0]:
        return frames, [frame.name for frame in frames if frame.source.name == _SPLIT_FILES[1]] or None, []
    head = read_json(files[0])
    names = {frame.name for frame in frames}
    test_list, train_list = head.get("test_filenames") or head.get("val_filenames"), head.get("train_filenames")
    if not test_list and not train_list:
        return frames, None, []
    train = _listed(frames, root, train_list, files[0]) if train_list else None
    test = _listed(frames, root, test_list, files[0]) if test_list else names - (train or set())
    train = names - test if train is None else train
    if train & test:
        raise UserError(
            f"{files[0]}: {min(train & test)} is listed for training and for testing; remove it from one list"
        )
    unused = len(names - train - test)
    notes = [f"{files[0].name}: {unused} frames are in no split list and left out"] if unused else []
    return [frame for frame in frames if frame.name in train | test], sorted(test), notes


def _listed(frames: Sequence[Frame], root: Path, paths: Iterable[str], source: Path) -> set[str]:
    """Return the names of the frames that a split list names, with or without suffix."""
    by_path = {}
    for frame in frames:
        by_path[str(frame.image_path)] = by_path[str(frame.image_path.with_suffix(""))] = frame.name
    found = set()
    for path in paths:
        key = os.path.normpath(root / str(path))
        if key not in by_path:
            raise UserError(f"{source}: the split lists name {path}, which no frame has; correct the list")
        found.add(by_path[key])
    return found


def _zero_id(files: Sequence[Path]) -> ZeroId:
    value = read_json(files[0]).get("zero_id", "ignore")
    if value not in ("segment", "ignore"):
        raise UserError(f"{files[0]}: zero_id is {value!r}; write segment or ignore")
    return value


def _read_points(root: Path, files: Sequence[Path]) -> PointCloud | None:
    """Return the seed cloud, None where there is none. A cloud that is named but missing is an error."""
    named = read_json(files[0]).get("ply_file_path")
    if named:
        return read_point_cloud(root / str(named))
    found = [root / name for name in _CLOUDS if (root / name).is_file()]
    return read_point_cloud(found[0]) if found else None


READER = Reader(
    name="transforms",
    looks_for="transforms.json or transforms_train.json",
    detect=detect,
    load=load,
    load_annotations=load_annotations,
    precedence=70,
    frames=frames_of,
)
