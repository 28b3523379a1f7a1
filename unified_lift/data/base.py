"""What a reader says about a scene folder, and the parts that readers share. No pixel is read here."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from unified_lift.data.images import Alpha, In, exif_orientation, photos_in, upright
from unified_lift.data.lens import Lens
from unified_lift.data.masks import MaskFile, find_mask, read_mask, same_aspect
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError
from unified_lift.ops.cameras import rigid_from_quaternion
from unified_lift.types import Camera, PointCloud, ZeroId

OBJECT_PATH = "object_mask"
DYNAMIC_MASK = "dynamic_mask_"  # what pictures beside the photos begin with that are white where pixels are left out
ANNOTATIONS = "annotations/gt_instance"  # where scenes without a layout of their own keep exact ids, <view>.png
_MOST_OF_LENS = 1e6  # pixels, and distortion
_FAR = 1e15  # no length of a scene is beyond
_MAX_SHEAR = 1.8e-2  # by which the longest axis of a pose may exceed the shortest; two decimals make it up to 1.7e-2
_NAMES_SHOWN = 5


class Exclusion(NamedTuple):
    """A picture that leaves out pixels of a photo: those of value 0, or with `is_white` all others."""

    path: Path
    is_white: bool = False


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A posed photo as the dataset describes it, before any pixel is read."""

    name: str  # relative path without suffix; names the view
    image_path: Path
    cam_from_world: np.ndarray  # OpenCV pose, float64 [4, 4]
    lens: Lens  # of the photo as stored (or, at another size, of the photo the pose was computed with)
    source: Path  # file the pose came from, for messages
    mask: MaskFile | None = None  # where the dataset names it itself; others are found in the mask folder by name
    alpha: Alpha = "ignore"  # what an alpha channel means
    exclusions: tuple[Exclusion, ...] = ()  # pixels that neither train nor count, where the dataset names such pictures
    stored: tuple[int, int] | None = None  # (width, height) of the file; None until someone looked
    turn: int = 1  # the EXIF orientation that the pose is for a photo turned by, 1 = as stored; not of the reader


@dataclass(frozen=True, kw_only=True)
class SceneDescription:
    """What a dataset says about one scene folder; only evaluation asks for `annotations` and `prompt_masks`."""

    frames: Sequence[Frame]  # all posed photos in the dataset's order
    broken: Sequence[str] = ()  # messages about unusable photos; training stops at the first, check-data lists them all
    zero_id: ZeroId = "ignore"  # what id 0 of the masks means
    held_out: Collection[str] | None = None  # names of the test views, None where the dataset says nothing
    train_only: Collection[str] | None = None  # names of the only views that may ever train, None = all
    points: Callable[[], PointCloud | None] = lambda: None  # reads the dataset's own initial points
    # Reads the points that were matched in each photo, float64 [K, 3] by name; empty where the dataset does not say.
    tracks: Callable[[], Mapping[str, np.ndarray]] = dict
    notes: Sequence[str] = ()  # what the user should know
    no_mask_used: str = ""  # message where the mask folder holds files and none can be used; no reader says this
    # Reads the exact ids of the named views, int32 [H, W] as stored; None: those in the folder `ANNOTATIONS`.
    annotations: Callable[[Collection[str]], Mapping[str, np.ndarray]] | None = None
    # Finds the mask files of text prompts: names -> view -> prompt -> file.
    prompt_masks: Callable[[Collection[str]], Mapping[str, Mapping[str, Path]]] = lambda names: {}


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One dataset layout."""

    name: str  # key in `DATASETS`
    looks_for: str  # the files by which the layout is known, for messages
    detect: Callable[[Path], object]  # something true of a folder that has this layout
    describe: Callable[[Path, DataSettings], SceneDescription]  # settings choose image folder and split
    mask_folder: str = OBJECT_PATH  # the dataset's own name for the folder of input masks
    protocol: str = "generic"  # the benchmark that scores it, unless the user chooses another
    precedence: int = 50  # folders that fit several layouts are read by the reader with the smallest number


def sound_frames(make: Callable[[In], Frame], items: Iterable[In]) -> tuple[list[Frame], list[str]]:
    """Return make(item) of the items that are sound, and the messages of the UserErrors that the others raise."""
    frames: list[Frame] = []
    broken: list[str] = []
    for item in items:
        try:
            frames.append(make(item))
        except UserError as error:
            broken.append(str(error))
    return frames, broken


def rigid_pose(matrix: object, *, source: Path, name: str) -> np.ndarray:
    """Return a pose as float64 [4, 4] with an exact rotation; 3x4 input gains its last row, uniform scale is removed.

    A UserError names the pose if the matrix has another shape, holds NaN, shears or mirrors.
    """
    try:
        pose = np.asarray(matrix, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        pose = np.empty(0)
    if pose.shape not in ((3, 4), (4, 4)):
        raise UserError(f"{source}: the pose of {name} is not a 3x4 or 4x4 matrix of numbers; write it again")
    if not (np.abs(pose) < _FAR).all():
        what = "holds NaN or infinity" if not np.isfinite(pose).all() else f"holds numbers beyond {_FAR:g}"
        raise UserError(f"{source}: the pose of {name} {what}; remove this entry or register it again")
    left, sizes, right = np.linalg.svd(pose[:3, :3])
    rotation, stretch = left @ right, sizes.max() / max(sizes.min(), 1e-300)
    if stretch > 1 + _MAX_SHEAR or np.linalg.det(rotation) < 0:
        what = "is not a rotation and translation (it shears or mirrors)"
        raise UserError(f"{source}: the pose of {name} {what}; fix it")
    rigid = np.eye(4)
    rigid[:3, :3], rigid[:3, 3] = rotation, pose[:3, 3]
    return rigid


def quaternion_pose(wxyz: Sequence[float], translation: Sequence[float], *, source: Path, name: str) -> np.ndarray:
    """Return a pose as `rigid_pose` does; a UserError names one whose quaternion or translation is unusable."""
    try:
        values = np.array([*wxyz, *translation], dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        values = np.empty(0)
    if values.shape != (7,) or not np.isfinite(values).all() or not 1e-9 < np.abs(values[:4]).max() < _FAR:
        what = "NaN, infinite or a zero quaternion" if values.shape == (7,) else "no quaternion and position"
        what = f"the pose of {name} is {what}"
        raise UserError(f"{source}: {what}; remove or correct this entry")
    return rigid_pose(rigid_from_quaternion(values[:4], values[4:]), source=source, name=name)


def fit_lens(frame: Frame, *, width: int, height: int) -> Lens:
    """Return the frame's lens, scaled if the stored photo is a resized copy.

    A UserError names one of another shape, or whose numbers are out of all range.
    """
    lens = frame.lens
    numbers = np.array([lens.fx, lens.fy, lens.cx, lens.cy, *lens.coefficients])
    if not (np.abs(numbers) < _MOST_OF_LENS).all() or not min(lens.fx, lens.fy) > 1 / _MOST_OF_LENS:
        told = ", ".join(f"{value:g}" for value in numbers)
        what = f"the lens of {frame.name} (fx, fy, cx, cy, distortion: {told}) holds a number out of all range"
        raise UserError(f"{frame.source}: {what}; correct it")
    if not same_aspect(lens.size, (width, height)):
        what = f"the image is {width}x{height} but {frame.source.name} says {lens.width}x{lens.height}, another shape"
        raise UserError(f"{frame.image_path}: {what}; use the images the poses were computed with")
    return lens if lens.size == (width, height) else lens.resized(width, height)


def is_turned(size: tuple[int, int], frame: Frame) -> bool:
    """Return whether a stored picture of this (width, height) is a view on its side, as its photo's EXIF data say."""
    fits, fits_turned = (same_aspect(one, frame.lens.size) for one in (size, size[::-1]))
    return fits_turned and not fits and exif_orientation(frame.image_path) > 4


def posed_size(size: tuple[int, int], frame: Frame) -> tuple[int, int]:
    """Return the (width, height) of a photo or mask of the view the way up that its pose is for."""
    return size[::-1] if is_turned(size, frame) else size


def as_posed(mask: np.ndarray, frame: Frame) -> np.ndarray:
    """Return a mask of the photo, [H, W, ...], the way up that the photo's pose is for.

    It may have been made of the photo as stored or as shown; which one its shape tells.
    """
    if not is_turned((mask.shape[1], mask.shape[0]), frame):
        return mask
    orientation = exif_orientation(frame.image_path)
    back = {6: 8, 8: 6}.get(orientation, orientation)
    return upright(mask, orientation if frame.turn == orientation else back)


def make_camera(frame: Frame, lens: Lens | None = None) -> Camera:
    """Return the pinhole camera of a frame; `lens` is that of the photo at another size, None = the frame's own."""
    lens = lens or frame.lens
    intrinsics = {key: getattr(lens, key) for key in ("fx", "fy", "cx", "cy", "width", "height")}
    try:
        return Camera(cam_from_world=frame.cam_from_world, **intrinsics)
    except ValueError as error:
        raise UserError(f"{frame.source}: camera of {frame.name}: {error}; correct or remove this entry") from None


def name_of(path: str) -> str:
    """Return the name of a view: its relative path without the last suffix, `./` and `..` parts and a leading slash."""
    parts = [part for part in PurePosixPath(path.replace("\\", "/")).parts if part not in ("..", "/")]
    return str(PurePosixPath(*parts).with_suffix("")) if parts else ""


def masks_in(folder: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the ids of the named views that have a mask in the folder, int32 [H, W]."""
    return {name: read_mask(mask) for name in names if (mask := find_mask(folder, name)) is not None}


def without_pose_note(folder: Path, posed: Iterable[Path], source: Path) -> list[str]:
    """Return a note naming the images of a folder that have no pose and are therefore left out."""
    known = {path.resolve() for path in posed if path.is_file()}  # a name may even be none for a file
    photos = (path for path in photos_in(folder) if not path.name.startswith(DYNAMIC_MASK))
    alone = [path.relative_to(folder).as_posix() for path in photos if path.resolve() not in known]
    note = f"{folder}: {listed(alone)}: no pose in {source.name}, left out; register them or remove them"
    return [note] if alone else []


def listed(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
