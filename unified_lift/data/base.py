"""From what a dataset says about its photos (frames) to loaded views and a scene. Shared by all readers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from unified_lift.data.borders import without_black_frames
from unified_lift.data.images import (
    IMAGE_SUFFIXES,
    Alpha,
    In,
    Progress,
    image_size,
    parallel_map,
    read_image,
    resize_image,
    target_size,
)
from unified_lift.data.lens import Lens, undistort_ids, undistort_image
from unified_lift.data.masks import find_mask, read_mask, same_aspect
from unified_lift.data.points import initial_points
from unified_lift.data.settings import DataSettings
from unified_lift.data.splits import split_names
from unified_lift.errors import UserError
from unified_lift.ops.resample import nearest
from unified_lift.types import Camera, PointCloud, Scene, View, ZeroId

OBJECT_PATH = "object_mask"
_MAX_SHEAR = 1e-2  # how far R^T R may be from the identity before a pose is called broken
_NAMES_SHOWN = 5


class Reader(NamedTuple):
    """One dataset layout.

    Attributes:
        name: Key in `DATASETS`.
        looks_for: The files by which the layout is known, for messages.
        detect: Whether a folder has this layout.
        load: Read the scene: (root, settings, progress=None, store=None).
        load_annotations: Truth ids of the named views at native size: (root, names, settings).
        protocol: The benchmark that scores it, unless the user chooses another.
        load_prompt_masks: Truth masks of text prompts, where that is what the data set annotates, at native size:
            (root, names, settings) -> view -> prompt -> bool [H, W]; views without any are absent.
        precedence: Folders that fit several layouts are read by the reader with the smallest number.
        frames: All posed photos as described, before any pixel is read: (root, settings, problems=None), `problems` as
            in `sound_ones`.
    """

    name: str
    looks_for: str
    detect: Callable[[Path], bool]
    load: Callable[..., Scene]
    load_annotations: Callable[[Path, Sequence[str], DataSettings], dict[str, np.ndarray]]
    protocol: str = "generic"
    load_prompt_masks: Callable[[Path, Sequence[str], DataSettings], dict[str, dict[str, np.ndarray]]] | None = None
    precedence: int = 50
    frames: Callable[..., list[Frame]] | None = None


class Store(Protocol):
    """Keeps decoded photos and masks; without one they stay in memory."""

    def expect(self, num_bytes: int) -> None:
        """Hear, before anything is decoded, about how much there will be."""

    def keep(self, array: np.ndarray) -> Tensor:
        """Return the array as a tensor in its place; called from several threads."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A posed photo as the dataset describes it, before any pixel is read.

    Attributes:
        name: Relative path without suffix; names the view.
        image_path: The photo.
        mask_path: Its segment ids, None where there are none.
        cam_from_world: OpenCV pose, float64 [4, 4].
        lens: Intrinsics of the photo as stored (or, at another size, of the photo the pose was computed with).
        source: File the pose came from, for messages.
        alpha: What to do with an alpha channel.
    """

    name: str
    image_path: Path
    mask_path: Path | None
    cam_from_world: np.ndarray
    lens: Lens
    source: Path
    alpha: Alpha = "drop"


def sound_ones(make: Callable[[In], Frame], items: Iterable[In], problems: list[str] | None) -> list[Frame]:
    """Return make(item) of every item.

    Args:
        problems: Takes the messages of items that fail, which are then left out; None = the first failure is raised.
    Raises:
        UserError: An item fails and there is no list to note that in.
    """
    frames = []
    for item in items:
        try:
            frames.append(make(item))
        except UserError as error:
            if problems is None:
                raise
            problems.append(str(error))
    return frames


def make_scene(
    frames: Sequence[Frame],
    root: Path,
    settings: DataSettings,
    *,
    dataset: str,
    points: Callable[[], PointCloud | None],
    zero_id: ZeroId,
    held_out: Collection[str] | None = None,
    notes: Iterable[str] = (),
    progress: Progress | None = None,
    store: Store | None = None,
) -> Scene:
    """Return the scene of these frames: split, loaded, resized, with initial points.

    Args:
        frames: All posed photos in the dataset's order.
        points: Reads the dataset's own initial points, None where it has none.
        held_out: Names that the dataset itself holds out.
        notes: What the reader wants to tell the user.
        progress: Called with (done, total) after each view.
        store: Keeps photos and masks; None = in memory.
    Raises:
        UserError: Names the file or flag and the cure.
    """
    check_frames(frames, root)
    train, test = split_names([frame.name for frame in frames], root, settings, held_out=held_out)
    by_name = {frame.name: frame for frame in frames}
    used = [by_name[name] for name in (*train, *test)]
    if store is not None:
        store.expect(_expected_bytes(used, settings))
    keep = _in_memory if store is None else store.keep
    loaded = parallel_map(partial(load_view, settings=settings, zero_id=zero_id, keep=keep), used, progress)
    views, view_notes = [view for view, _ in loaded], [set(notes_of_view) for _, notes_of_view in loaded]
    views, border_notes = without_black_frames(views)
    train_views, test_views = tuple(views[: len(train)]), tuple(views[len(train) :])
    cloud, point_note = initial_points(train_views, settings, own=None if settings.random_init else points())
    return Scene(
        name=root.resolve().name,
        dataset=dataset,
        train=train_views,
        test=test_views,
        points=cloud,
        zero_id=zero_id,
        notes=(
            *notes,
            *_count_notes(view_notes, len(views)),
            *border_notes,
            *_unlabelled_note(train_views),
            point_note,
        ),
    )


def check_frames(frames: Sequence[Frame], root: Path) -> None:
    """Raise a UserError unless every frame has a photo, a name and a mask of its own and a sound pose."""
    if not frames:
        raise UserError(f"{root}: no posed images; the pose file lists none")
    masks: dict[Path, str] = {}
    for frame in frames:
        if not frame.image_path.is_file():
            raise UserError(
                f"{frame.image_path}: {frame.source.name} has a pose for this image but the file is missing; "
                "restore it or remove its entry"
            )
        if frame.mask_path is not None and masks.setdefault(frame.mask_path, frame.name) != frame.name:
            raise UserError(
                f"{frame.mask_path}: serves both {masks[frame.mask_path]} and {frame.name}; "
                "put the masks into the same sub-folders as the images"
            )
    twice = [name for name, count in Counter(frame.name for frame in frames).items() if count > 1]
    if twice:
        raise UserError(
            f"{frames[0].source}: image {twice[0]} occurs twice (suffixes do not count); rename one of them"
        )


def rigid_pose(matrix: object, *, source: Path, name: str) -> np.ndarray:
    """Return a pose as float64 [4, 4] with an exact rotation; 3x4 input gains its last row, uniform scale is removed.

    Raises:
        UserError: The matrix has another shape, holds NaN, or shears or mirrors.
    """
    try:
        pose = np.asarray(matrix, dtype=np.float64)
    except (TypeError, ValueError):
        pose = np.empty(0)
    if pose.shape not in ((3, 4), (4, 4)):
        raise UserError(f"{source}: the pose of {name} is not a 3x4 or 4x4 matrix of numbers; write it again")
    if not np.isfinite(pose).all():
        raise UserError(f"{source}: the pose of {name} holds NaN or infinity; remove this entry or register it again")
    left, sizes, right = np.linalg.svd(pose[:3, :3])
    rotation = left @ right
    if sizes.min() <= 0 or sizes.max() / sizes.min() > 1 + _MAX_SHEAR or np.linalg.det(rotation) < 0:
        raise UserError(
            f"{source}: the pose of {name} is not a rotation and translation (it shears or mirrors); fix it"
        )
    rigid = np.eye(4)
    rigid[:3, :3] = rotation
    rigid[:3, 3] = pose[:3, 3]
    return rigid


def load_view(
    frame: Frame, *, settings: DataSettings, zero_id: ZeroId, keep: Callable[[np.ndarray], Tensor]
) -> tuple[View, list[str]]:
    """Return the view at the size in use, its arrays as `keep` returns them, and short notes on what was done to it."""
    notes = []
    image = read_image(frame.image_path, alpha=frame.alpha)
    lens, segments, valid = fit_lens(frame, width=image.shape[1], height=image.shape[0]), None, None
    if (lens.width, lens.height) != (frame.lens.width, frame.lens.height):
        notes.append(f"intrinsics of {frame.lens.width}x{frame.lens.height} scaled to {lens.width}x{lens.height}")
    if frame.mask_path is not None:
        segments = read_mask_like(frame.mask_path, width=lens.width, height=lens.height)
        if zero_id == "ignore" and not segments.any():
            segments = None  # an all-black mask is a view without a label (LERF-Mask's test views)
    if lens.is_distorted:
        notes.append("undistorted to a pinhole with the same intrinsics (left out where the lens saw nothing)")
        image = undistort_image(image, lens)
        segments = undistort_ids(segments, lens) if segments is not None else None
        valid = undistort_ids(np.ones((lens.height, lens.width), np.int32), lens)
    width, height = target_size(lens.width, lens.height, settings.resolution)
    if (width, height) != (lens.width, lens.height):
        notes.append(
            f"resized from {lens.width}x{lens.height} to {width}x{height} (--resolution {settings.resolution})"
        )
    camera = make_camera(frame.cam_from_world, lens, source=frame.source, name=frame.name).resized(width, height)
    if segments is not None:
        segments = keep(nearest(segments, height, width))
    if valid is not None:
        valid = None if valid.all() else keep(nearest(valid, height, width) > 0)
    pixels = keep(resize_image(image, width, height))
    return View(name=frame.name, camera=camera, image=pixels, segments=segments, valid=valid), notes


def _in_memory(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _expected_bytes(frames: Sequence[Frame], settings: DataSettings) -> int:
    """Return the bytes of photos (3 per pixel), masks (4) and, of distorted photos, the pixels the lens saw (1)."""
    total = 0
    for frame in frames:
        width, height = target_size(*image_size(frame.image_path), settings.resolution)
        total += width * height * (3 + 4 * (frame.mask_path is not None) + frame.lens.is_distorted)
    return total


def fit_lens(frame: Frame, *, width: int, height: int) -> Lens:
    """Return the frame's lens for the photo as stored, scaled if the photo is a resized copy.

    Raises:
        UserError: The photo has another shape than the lens.
    """
    lens = frame.lens
    if (lens.width, lens.height) == (width, height):
        return lens
    if not same_aspect((lens.width, lens.height), (width, height)):
        raise UserError(
            f"{frame.image_path}: the image is {width}x{height} but {frame.source.name} says "
            f"{lens.width}x{lens.height}, another shape; use the images the poses were computed with"
        )
    return lens.resized(width, height)


def make_camera(cam_from_world: np.ndarray, lens: Lens, *, source: Path, name: str) -> Camera:
    """Return the pinhole camera of a pose and a lens (distortion has been resampled away).

    Raises:
        UserError: Pose or intrinsics hold NaN or the focal length is not positive.
    """
    try:
        return Camera(
            cam_from_world=cam_from_world,
            fx=lens.fx,
            fy=lens.fy,
            cx=lens.cx,
            cy=lens.cy,
            width=lens.width,
            height=lens.height,
        )
    except ValueError as error:
        raise UserError(f"{source}: camera of {name}: {error}; correct or remove this entry") from None


def read_mask_like(path: Path, *, width: int, height: int) -> np.ndarray:
    """Return the ids of a mask at an image's size, int32 [height, width]; nearest by the centre rule.

    Raises:
        UserError: The mask has another shape than the image.
    """
    ids = read_mask(path)
    size = (ids.shape[1], ids.shape[0])
    if size != (width, height) and not same_aspect(size, (width, height)):
        raise UserError(
            f"{path}: the mask is {size[0]}x{size[1]} but its image is {width}x{height}, another shape; "
            "make the mask from this image or remove it"
        )
    return nearest(ids, height, width)


def mask_folder(root: Path, settings: DataSettings, *, default: str = OBJECT_PATH) -> tuple[Path, list[str]]:
    """Return the folder of segment masks and a note where it is missing.

    Args:
        default: The dataset's own name for the folder, used unless the user chose one.
    Raises:
        UserError: The user named a folder that does not exist.
    """
    chosen = settings.object_path != "auto"
    folder = root / (settings.object_path if chosen else default)
    if folder.is_dir():
        return folder, []
    if chosen:
        raise UserError(f"{folder}: no such mask folder; correct --object_path or make the masks first")
    return folder, [f"no mask folder {folder.name}/: every view is unlabelled, only colour can be trained"]


def read_annotations(frames: Sequence[Frame], folder: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the truth ids of the named views that have a file in `folder`, int32 [H, W] at native size.

    Of a distorted photo the ids are undistorted like the photo itself.
    """
    wanted, found = set(names), {}
    for frame in frames:
        path = find_mask(folder, frame.name) if frame.name in wanted else None
        if path is not None:
            found[frame.name] = as_pinhole(read_mask(path), frame.lens)
    return found


def as_pinhole(ids: np.ndarray, lens: Lens) -> np.ndarray:
    """Return the ids [H, W] of a photo at whatever size, undistorted where its lens is distorted."""
    lens = lens.resized(ids.shape[1], ids.shape[0])
    return undistort_ids(ids, lens) if lens.is_distorted else ids


def name_of(path: str) -> str:
    """Return the name of a view: its relative path without the last suffix, `./` and `..` parts and a leading slash."""
    pure = PurePosixPath(path.replace("\\", "/"))
    parts = [part for part in pure.parts if part not in ("..", "/")]
    return str(PurePosixPath(*parts).with_suffix("")) if parts else ""


def without_pose_note(folder: Path, posed: Iterable[Path], source: Path) -> list[str]:
    """Return a note naming the images of a folder that have no pose and are therefore left out."""
    known = {path.resolve() for path in posed}
    files = sorted(path for path in folder.rglob("*") if path.suffix in IMAGE_SUFFIXES) if folder.is_dir() else []
    alone = [path.relative_to(folder).as_posix() for path in files if path.resolve() not in known]
    if not alone:
        return []
    more = f" and {len(alone) - _NAMES_SHOWN} more" if len(alone) > _NAMES_SHOWN else ""
    listed = ", ".join(alone[:_NAMES_SHOWN])
    return [f"{folder}: {listed}{more}: no pose in {source.name}, left out; register them or remove them"]


def _count_notes(notes: Sequence[set[str]], total: int) -> list[str]:
    """Return each different note once, with the number of views it holds for."""
    counts = Counter(note for view_notes in notes for note in sorted(view_notes))
    return [f"{count} of {total} views {note}" for note, count in sorted(counts.items())]


def _unlabelled_note(train: Sequence[View]) -> list[str]:
    missing = [view.name for view in train if view.segments is None]
    if not missing or len(missing) == len(train):
        return []
    more = ", ..." if len(missing) > _NAMES_SHOWN else ""
    return [f"{len(missing)} of {len(train)} training views have no mask: {', '.join(missing[:_NAMES_SHOWN])}{more}"]
