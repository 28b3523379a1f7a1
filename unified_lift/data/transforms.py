"""JSON camera files: nerfstudio and instant-ngp `transforms.json`, Blender `transforms_{train,val,test}.json`.

Poses are camera-to-world with OpenGL axes. Intrinsics may be given at the top, per frame, or in both (the frame's win).
`train_filenames` / `val_filenames` / `test_filenames` decide the split where present; else every llffhold-th view by
sorted name is held out (nerfstudio's own default, a fraction of 0.9, differs). Of Blender's files `test` is held out
with `eval` and trains without; `val` is not read. Poses are used as saved: `applied_transform`, `aabb_scale`, `scale`
and `offset` do not concern the geometry and nothing is recentred. Photos with an alpha channel are composited over
the background. Pixels that are 0 in a frame's `mask_path` are left out. A top-level `zero_id` (`segment` or `ignore`)
says what mask id 0 means.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

from unified_lift.data.base import (
    Exclusion,
    Frame,
    Reader,
    SceneDescription,
    listed,
    name_of,
    rigid_pose,
    sound_frames,
    without_pose_note,
)
from unified_lift.data.images import image_size, photos_in
from unified_lift.data.lens import COEFFICIENTS, PERSPECTIVE, Lens, LensModel
from unified_lift.data.lookup import find_photos, names_in_list, plain
from unified_lift.data.masks import mask_at
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError
from unified_lift.fileio import number, read_json
from unified_lift.ops.cameras import cam_from_world_opengl, focal_from_fov
from unified_lift.plyio import read_point_cloud

_SPLIT_FILES = ("transforms_train.json", "transforms_test.json")
_OTHER_PICTURES = re.compile("mask|depth|normal|segment|semantic|instance|annotation|label")  # folders without photos
_CLOUDS = ("points3D.ply", "points3d.ply", "sparse_pc.ply")


def detect(root: Path) -> bool:
    """Return whether the folder holds `transforms.json` or `transforms_train.json`."""
    return (root / "transforms.json").is_file() or (root / _SPLIT_FILES[0]).is_file()


def describe(root: Path, settings: DataSettings) -> SceneDescription:
    """Return all frames, sorted by name; with `eval` those that a split list names."""
    alone, split = root / "transforms.json", [root / name for name in _SPLIT_FILES]
    heads = {path: read_json(path) for path in ([alone] if alone.is_file() else split) if path.is_file()}
    file, head = next(iter(heads.items()))
    entries, without_path = _entries(heads)
    if not entries:
        raise UserError(without_path[0])
    written = [_relative(root, entry["file_path"]) for _, entry in entries]
    if settings.images != DataSettings.images and (root / settings.images).is_dir():  # such as images_2, smaller copies
        written = [re.sub(f"^{DataSettings.images}/", lambda _: f"{settings.images}/", name) for name in written]
    photos = find_photos(written, root, partial(_photo_files, root, written, settings.images), file)
    images = [Path(os.path.normpath(photos.paths[name])) for name in written]
    common = Path(os.path.commonpath([p.parent for p in images if p.parent.is_dir()] or [root]))
    names = [name_of(Path(os.path.relpath(image, common)).as_posix()) for image in images]
    size_of, unmasked, moved = cache(image_size), list[str](), list[str]()

    def frame_of(item: tuple[tuple[Path, dict], Path, str]) -> Frame:
        (source, entry), image, name = item
        pose = rigid_pose(entry.get("transform_matrix"), source=source, name=entry["file_path"])
        mask = _file(root, entry["object_mask_path"], moved) if "object_mask_path" in entry else None
        if mask is not None and not mask.is_file():
            what = f"object_mask_path of {entry['file_path']} is missing"
            if settings.strict:
                raise UserError(f"{mask}: {what}; restore it or remove the field")
            unmasked.append(entry["file_path"])
            mask = None
        return Frame(
            name=name,
            image_path=image,
            mask=mask_at(mask) if mask else None,
            cam_from_world=cam_from_world_opengl(pose),
            lens=_lens({**heads[source], **entry}, image, source, size_of),
            source=source,
            alpha="background",
            exclusions=_exclusions(root, entry, moved) if settings.exclude == "auto" else (),
        )

    frames, broken = sound_frames(frame_of, zip(entries, images, names, strict=True))
    frames.sort(key=lambda frame: frame.name)
    notes = list(photos.notes)
    if any(frame.lens.model == "brown" for frame in frames):
        notes.append(f"{file.name}: k4 is read as nerfstudio means it, the factor of r^8 (OpenCV's: FULL_OPENCV)")
    if unmasked:
        notes.append(f"{file.name}: object_mask_path of {listed(unmasked)} is missing; restore it or remove the field")
    notes += without_pose_note(common, images, file) if common.resolve() != root.resolve() else []
    held_out: Sequence[str] | None = None
    if settings.eval and file.name == _SPLIT_FILES[0]:
        held_out = [frame.name for frame in frames if frame.source.name == _SPLIT_FILES[1]] or None
    elif settings.eval:
        of_name = {os.path.relpath(image, root): name for image, name in zip(images, names)}
        of_name |= dict(zip(written, names, strict=True))
        held_out, unused, told = _listed_split(head, file, root, of_name, strict=settings.strict)
        frames, notes = [frame for frame in frames if frame.name not in unused], notes + told
    named = head.get("ply_file_path")  # an error where it is missing
    clouds = (
        [_file(root, named, moved, least=1)] if named else [root / name for name in _CLOUDS if (root / name).is_file()]
    )
    if moved:
        notes.append(f"{len(moved)} other files of {file.name} are found by the ends of their paths: {moved[0]}")
    zero_id = head.get("zero_id", "ignore")
    if zero_id not in ("segment", "ignore"):
        raise UserError(f"{file}: zero_id is {zero_id!r}; write segment or ignore")
    return SceneDescription(
        frames=frames,
        broken=[*without_path, *broken],
        zero_id=zero_id,
        held_out=held_out,
        points=lambda: read_point_cloud(clouds[0]) if clouds else None,
        notes=notes,
    )


def _entries(heads: Mapping[Path, dict]) -> tuple[list[tuple[Path, dict]], list[str]]:
    """Return the frames of all files, each with its file, and messages on those that name no photo."""
    entries, broken = [], []
    for source, head in heads.items():
        frames = head.get("frames")
        if not isinstance(frames, list) or not frames:
            raise UserError(f"{source}: lists no frames; write the camera file again")
        for n, entry in enumerate(frames):
            if isinstance(entry, dict) and isinstance(entry.get("file_path"), str):
                entries.append((source, entry))
            else:
                broken.append(f"{source}: frame {n} has no file_path; correct or remove this entry")
    return entries, broken


def _relative(root: Path, name: str) -> str:
    """Return a path of the file as one relative to the folder, without detours."""
    return os.path.relpath(root / name.replace("\\", "/"), root)


def _file(root: Path, name: object, moved: list[str], *, least: int = 2) -> Path:
    """Return a named file that is no photo: at its path, else at the longest end of it that exists, added to `moved`.

    Such an end has at least so many parts: a mask `0001.png` alone could be anything.
    """
    written, parts = root / str(name).replace("\\", "/"), plain(str(name)).split("/")
    if not written.is_file():
        for start in range(1, len(parts) - least + 1):
            if (found := root.joinpath(*parts[start:])).is_file():
                moved.append(f"{name} is {found.relative_to(root).as_posix()}")
                return found
    return written


def _photo_files(root: Path, names: Sequence[str], images: str) -> list[Path]:
    """Return the photos among which those that are not in their place may be: in the folders that names have.

    Where none of them is there: in all folders that do not look like those of masks, depth and the like.
    """
    known = {part.casefold() for name in names for part in Path(name).parts[:-1]} | {images.casefold()}
    folders = [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    chosen = [path for path in folders if path.name.casefold() in known] or [
        path for path in folders if not _OTHER_PICTURES.search(path.name.lower())
    ]
    return [*photos_in(root, "*"), *(photo for path in chosen for photo in photos_in(path))]


def _exclusions(root: Path, entry: dict, moved: list[str]) -> tuple[Exclusion, ...]:
    """Return the picture that a frame's `mask_path` names; a UserError: it is missing."""
    if not entry.get("mask_path"):
        return ()
    path = _file(root, entry["mask_path"], moved)
    if not path.is_file():
        raise UserError(f"{path}: mask_path of {entry['file_path']} is missing; restore it or use --exclude none")
    return (Exclusion(path),)


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
    if not fisheye and fields.get("k4") and model != "FULL_OPENCV" and not (fields.get("k5") or fields.get("k6")):
        lens_model = "brown"  # what nerfstudio means by k4, unlike OpenCV
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


def _listed_split(
    head: dict, source: Path, root: Path, names: Mapping[str, str], *, strict: bool
) -> tuple[list[str] | None, set[str], list[str]]:
    """Return the names held out (None where no list says), those in no list, and notes; lists may lack suffixes."""
    notes: list[str] = []

    def chosen(*keys: str) -> set[str]:
        paths = next((head[key] for key in keys if head.get(key)), ())
        if not isinstance(paths, (list, tuple)):
            raise UserError(f"{source}: {keys[0]} is {paths!r}, no list of photos; correct or remove it")
        found, told = names_in_list([_relative(root, str(path)) for path in paths], names, source, strict=strict)
        notes.extend(told)
        return {names[name] for name in found}

    train, test, every = chosen("train_filenames"), chosen("test_filenames", "val_filenames"), set(names.values())
    if train & test:
        twice = min(train & test)
        raise UserError(f"{source}: {twice} is listed for training and for testing; remove it from one list")
    if not train and not test:
        return None, set(), notes
    unused = every - train - test if train and test else set[str]()
    notes += [f"{source.name}: {len(unused)} frames are in no split list and left out"] if unused else []
    return sorted(test or every - train), unused, notes


READER = Reader(
    name="transforms",
    looks_for="transforms.json or transforms_train.json",
    detect=detect,
    describe=describe,
    precedence=70,
)
