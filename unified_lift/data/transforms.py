"""JSON camera files: nerfstudio and instant-ngp `transforms.json`, Blender `transforms_{train,val,test}.json`.

Poses are camera-to-world with OpenGL axes. Intrinsics may be given at the top, per frame, or in both (the frame's win).
`train_filenames` / `val_filenames` / `test_filenames` decide the split where present; else every llffhold-th view by
sorted name is held out (nerfstudio's own default, a fraction of 0.9, differs). Of Blender's files `test` is held out
with `eval` and trains without; `val` is not read. Poses are used as saved: `applied_transform`, `aabb_scale`, `scale`
and `offset` do not concern the geometry and nothing is recentred. Photos with an alpha channel are composited over
black. A top-level `zero_id` (`segment` or `ignore`) says what mask id 0 means.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

from unified_lift.data.base import Frame, Reader, SceneDescription, name_of, rigid_pose, sound_frames, without_pose_note
from unified_lift.data.images import IMAGE_SUFFIXES, image_size
from unified_lift.data.lens import COEFFICIENTS, PERSPECTIVE, Lens, LensModel
from unified_lift.data.masks import mask_at
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError
from unified_lift.fileio import number, read_json
from unified_lift.ops.cameras import cam_from_world_opengl, focal_from_fov
from unified_lift.plyio import read_point_cloud

_SPLIT_FILES = ("transforms_train.json", "transforms_test.json")
_CLOUDS = ("points3D.ply", "points3d.ply", "sparse_pc.ply")


def detect(root: Path) -> bool:
    """Return whether the folder holds `transforms.json` or `transforms_train.json`."""
    return (root / "transforms.json").is_file() or (root / _SPLIT_FILES[0]).is_file()


def describe(root: Path, settings: DataSettings) -> SceneDescription:
    """Return all frames, sorted by name; with `eval` those that a split list names."""
    alone, split = root / "transforms.json", [root / name for name in _SPLIT_FILES]
    heads = {path: read_json(path) for path in ([alone] if alone.is_file() else split) if path.is_file()}
    file, head = next(iter(heads.items()))
    entries = [(path, entry) for path, content in heads.items() for entry in _entries(content, path)]
    images = [_image_path(root, entry["file_path"]) for _, entry in entries]
    common = Path(os.path.commonpath([image.parent for image in images]))
    names = [name_of(Path(os.path.relpath(image, common)).as_posix()) for image in images]
    size_of = cache(image_size)

    def frame_of(item: tuple[tuple[Path, dict], Path, str]) -> Frame:
        (source, entry), image, name = item
        pose = rigid_pose(entry.get("transform_matrix"), source=source, name=entry["file_path"])
        mask = root / str(entry["object_mask_path"]) if "object_mask_path" in entry else None
        if mask is not None and not mask.is_file():
            what = f"object_mask_path of {entry['file_path']} is missing"
            raise UserError(f"{mask}: {what}; restore it or remove the field")
        return Frame(
            name=name,
            image_path=image,
            mask=mask_at(mask) if mask else None,
            cam_from_world=cam_from_world_opengl(pose),
            lens=_lens({**heads[source], **entry}, image, source, size_of),
            source=source,
            alpha="black",
        )

    frames, broken = sound_frames(frame_of, zip(entries, images, names, strict=True))
    frames.sort(key=lambda frame: frame.name)
    notes = without_pose_note(common, images, file) if common.resolve() != root.resolve() else []
    held_out: Sequence[str] | None = None
    if settings.eval and file.name == _SPLIT_FILES[0]:
        held_out = [frame.name for frame in frames if frame.source.name == _SPLIT_FILES[1]] or None
    elif settings.eval:
        held_out, unused = _listed_split(head, file, root, dict(zip(images, names, strict=True)))
        frames = [frame for frame in frames if frame.name not in unused]
        notes += [f"{file.name}: {len(unused)} frames are in no split list and left out"] if unused else []
    named = head.get("ply_file_path")  # an error where it is missing
    clouds = [root / str(named)] if named else [root / name for name in _CLOUDS if (root / name).is_file()]
    zero_id = head.get("zero_id", "ignore")
    if zero_id not in ("segment", "ignore"):
        raise UserError(f"{file}: zero_id is {zero_id!r}; write segment or ignore")
    return SceneDescription(
        frames=frames,
        broken=broken,
        zero_id=zero_id,
        held_out=held_out,
        points=lambda: read_point_cloud(clouds[0]) if clouds else None,
        notes=notes,
    )


def _entries(head: dict, source: Path) -> list[dict]:
    entries = head.get("frames")
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{source}: lists no frames; write the camera file again")
    for n, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("file_path"), str):
            raise UserError(f"{source}: frame {n} has no file_path; correct or remove this entry")
    return entries


def _image_path(root: Path, name: str) -> Path:
    """Return the photo of a frame, whose `file_path` may lack the suffix; it need not exist."""
    path = Path(os.path.normpath(root / name.replace("\\", "/")))
    candidates = (path, *(path.with_name(path.name + suffix) for suffix in IMAGE_SUFFIXES))
    return next((candidate for candidate in candidates if candidate.is_file()), path)


def _lens(fields: dict, image: Path, source: Path, size_of: Callable[[Path], tuple[int, int]]) -> Lens:
    """Return the lens from a frame's fields over the file's."""
    model = str(fields.get("camera_model", "OPENCV")).upper()
    fisheye = model == "OPENCV_FISHEYE" or bool(fields.get("is_fisheye"))
    if not fisheye and model not in PERSPECTIVE:
        fix = "undistort the images to OPENCV or PINHOLE first"
        raise UserError(f"{source}: camera_model {model} is not supported; {fix}")
    sizes = (0, 0) if {"w", "h"} <= fields.keys() else size_of(image)
    width, height = (int(number(fields, key, source, default=size)) for key, size in zip("wh", sizes, strict=True))
    if width < 1 or height < 1:
        raise UserError(f"{source}: image size {width}x{height} is not positive; correct w and h")
    fx, fy = _focals(fields, width, height, source)
    lens_model: LensModel = "fisheye" if fisheye else "perspective"
    cx, cy = (number(fields, f"c{axis}", source, default=size / 2) for axis, size in (("x", width), ("y", height)))
    coefficients = tuple(number(fields, key, source, default=0.0) for key in COEFFICIENTS[lens_model])
    return Lens(fx, fy, cx, cy, width, height, lens_model, coefficients)


def _focals(fields: dict, width: int, height: int, source: Path) -> tuple[float, float]:
    """Return fx and fy in pixels from fl_x, fl_y or the fields of view; one of the two serves both axes."""

    def focal(axis: str, size: int) -> float:
        if f"fl_{axis}" not in fields and f"camera_angle_{axis}" in fields:
            return focal_from_fov(number(fields, f"camera_angle_{axis}", source), size)
        return number(fields, f"fl_{axis}", source, default=0.0)

    x, y = focal("x", width), focal("y", height)
    fx, fy = x or y, y or x
    if fx <= 0 or fy <= 0:
        raise UserError(f"{source}: no positive focal length; give fl_x or camera_angle_x at the top or in every frame")
    return fx, fy


def _listed_split(head: dict, source: Path, root: Path, names: Mapping[Path, str]) -> tuple[list[str] | None, set[str]]:
    """Return the names held out (None where no list says) and those in no list; lists may leave out suffixes."""
    by_path = {str(key): name for path, name in names.items() for key in (path.with_suffix(""), path)}

    def listed(*keys: str) -> set[str]:
        found = set()
        for path in next((head[key] for key in keys if head.get(key)), ()):
            key = os.path.normpath(root / str(path))
            if key not in by_path:
                raise UserError(f"{source}: the split lists name {path}, which no frame has; correct the list")
            found.add(by_path[key])
        return found

    train, test, every = listed("train_filenames"), listed("test_filenames", "val_filenames"), set(names.values())
    if train & test:
        twice = min(train & test)
        raise UserError(f"{source}: {twice} is listed for training and for testing; remove it from one list")
    if not train and not test:
        return None, set()
    return sorted(test or every - train), every - train - test if train and test else set()


READER = Reader(
    name="transforms",
    looks_for="transforms.json or transforms_train.json",
    detect=detect,
    describe=describe,
    precedence=70,
)
