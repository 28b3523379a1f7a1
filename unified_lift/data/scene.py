"""From what a reader describes to a loaded scene, to annotations and to masks of prompts: the same for all readers."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, lru_cache, partial
from pathlib import Path

import numpy as np
from torch import Tensor

from unified_lift.data.base import ANNOTATIONS, Frame, Reader, SceneDescription, fit_lens, listed, make_camera, masks_in
from unified_lift.data.borders import without_black_frames
from unified_lift.data.cache import DataCache, as_tensor
from unified_lift.data.images import Progress, image_size, parallel_map, read_image, resize_image, target_size
from unified_lift.data.lens import Lens, undistort_ids, undistort_image
from unified_lift.data.masks import MaskFile, find_mask, read_mask, same_aspect
from unified_lift.data.points import initial_points
from unified_lift.data.settings import DataSettings, split_names
from unified_lift.data.units import frame_note, frame_of, seeds_inside
from unified_lift.data.usable import usable
from unified_lift.errors import UserError
from unified_lift.ops.resample import nearest
from unified_lift.registry import members
from unified_lift.types import Scene, Similarity, View, ZeroId

_FOREGROUND = 128  # grey values of prompt masks above it are foreground [Gaussian Grouping]


@cache
def datasets() -> dict[str, Reader]:
    """Return all readers by name; a folder is read by the first that recognises it."""
    readers = members("unified_lift.data", "READER")
    return {reader.name: reader for reader in sorted(readers, key=lambda reader: reader.precedence)}


def detect_reader(settings: DataSettings) -> Reader:
    """Return the reader of the scene folder; a UserError says that it is missing or fits no layout."""
    root = settings.source_path
    if not root.is_dir():
        raise UserError(f"{root}: no such scene folder; correct -s/--source_path")
    found = next((reader for reader in datasets().values() if reader.detect(root)), None)
    if found is None:
        looked = "; ".join(f"{reader.looks_for} ({reader.name})" for reader in datasets().values())
        raise UserError(f"{root}: fits no known layout; looked for {looked}")
    return found


def mask_folder(reader: Reader, settings: DataSettings) -> Path:
    """Return the folder of input masks; a UserError names one that the user chose and that does not exist."""
    chosen = settings.object_path != "auto"
    folder = settings.source_path / (settings.object_path if chosen else reader.mask_folder)
    if chosen and not folder.is_dir():
        raise UserError(f"{folder}: no such mask folder; correct --object_path or make the masks first")
    return folder


def describe(reader: Reader, settings: DataSettings) -> SceneDescription:
    """Return what a reader says about the scene folder, each frame with its mask."""
    folder, described = mask_folder(reader, settings), reader.describe(settings.source_path, settings)
    own = settings.object_path == "auto"  # a folder that the user names counts, whatever masks the scene's file names
    frames = [f if own and f.mask else replace(f, mask=find_mask(folder, f.name)) for f in described.frames]
    notes = described.notes
    if not folder.is_dir() and not any(frame.mask for frame in frames):
        notes = (f"no mask folder {folder.name}/: every view is unlabelled, only colour can be trained", *notes)
    return replace(described, frames=frames, notes=notes)


def load_frames(settings: DataSettings) -> list[Frame]:
    """Return the posed photos of `settings.source_path` as files, each with its mask file; no pixel is read."""
    return list(_sound_scene(settings)[1].frames)


def _sound_scene(settings: DataSettings) -> tuple[Reader, SceneDescription]:
    """Return reader and description, where every frame has a photo, a name and a mask of its own and a sound pose."""
    reader = detect_reader(settings)
    described = describe(reader, settings)
    if not described.frames and not described.broken:
        raise UserError(f"{settings.source_path}: no posed images; the pose file lists none")
    described = usable(described, strict=is_strict(reader, settings))
    masks: dict[MaskFile, str] = {}
    for frame in described.frames:
        if frame.mask is not None and masks.setdefault(frame.mask, frame.name) != frame.name:
            what = f"serves both {masks[frame.mask]} and {frame.name}"
            raise UserError(f"{frame.mask.path}: {what}; put the masks into the same sub-folders as the images")
    return reader, described


def is_strict(reader: Reader, settings: DataSettings) -> bool:
    """Return whether a photo that cannot be used stops all: as the user wants, and where a benchmark is scored."""
    return settings.strict or reader.protocol != "generic"


def load_scene(
    settings: DataSettings,
    *,
    frame: Similarity | None = None,
    progress: Progress | None = None,
    cache: DataCache | None = None,
) -> Scene:
    """Return the scene: described by its reader, split, loaded, undistorted, resized, with initial points.

    It is inside of `frame`, None = that which suits it. Photos and masks are kept by `cache`, None = in memory.
    A UserError names the file or flag and the fix.
    """
    reader, described = _sound_scene(settings)
    train, test = _split_frames(described, settings)
    used = [*train, *test]
    if cache is not None:
        cache.expect(_bytes_of(used, settings))
    keep = as_tensor if cache is None else cache.keep
    loaded = parallel_map(partial(_load_view, settings=settings, zero_id=described.zero_id, keep=keep), used, progress)
    counts = Counter(note for _, notes in loaded for note in sorted(set(notes)))
    views, border_notes = without_black_frames([view for view, _ in loaded])
    read_points = lru_cache(described.points)
    frame = frame_of(views, read_points) if frame is None else frame
    views = [replace(view, camera=frame.camera_inside(view.camera)) for view in views]
    train_views = tuple(views[: len(train)])
    own, seed_notes = None if settings.random_init else read_points(), list[str]()
    if own is not None:
        own, seed_notes = seeds_inside(own, frame, train_views)
    points, point_note = initial_points(train_views, settings, own=own)
    notes = [*described.notes, *(f"{count} of {len(views)} views {note}" for note, count in sorted(counts.items()))]
    notes += border_notes + seed_notes + frame_note(frame)
    if 0 < len(missing := [view.name for view in train_views if view.segments is None]) < len(train):
        notes.append(f"{len(missing)} of {len(train)} training views have no mask: {listed(missing)}")
    return Scene(
        name=settings.source_path.resolve().name,
        dataset=reader.name,
        train=train_views,
        test=tuple(views[len(train) :]),
        points=points,
        frame=frame,
        zero_id=described.zero_id,
        notes=(*notes, point_note),
    )


def _split_frames(described: SceneDescription, settings: DataSettings) -> tuple[list[Frame], list[Frame]]:
    """Return the training and the test frames; a UserError names an impossible split."""
    by_name, lists = {frame.name: frame for frame in described.frames}, (described.held_out, described.train_only)
    train, test = split_names(list(by_name), settings.source_path, settings, *lists)
    return [by_name[name] for name in train], [by_name[name] for name in test]


def expected_bytes(settings: DataSettings) -> int:
    """Return about how many bytes photos and masks of the scene take once loaded; no pixel is read."""
    train, test = _split_frames(_sound_scene(settings)[1], settings)
    return _bytes_of([*train, *test], settings)


def _bytes_of(frames: Sequence[Frame], settings: DataSettings) -> int:
    """Return the bytes of photos (3 per pixel), masks (4) and, of distorted photos, the pixels the lens saw (1)."""
    return sum(
        math.prod(target_size(*image_size(frame.image_path), settings.resolution))
        * (3 + 4 * (frame.mask is not None) + frame.lens.is_distorted)
        for frame in frames
    )


def _load_view(
    frame: Frame, *, settings: DataSettings, zero_id: ZeroId, keep: Callable[[np.ndarray], Tensor]
) -> tuple[View, list[str]]:
    """Return the view at the size in use, its arrays as `keep` returns them, and short notes on what was done to it."""
    notes = []
    image = read_image(frame.image_path, alpha=frame.alpha)
    lens, segments, valid = fit_lens(frame, width=image.shape[1], height=image.shape[0]), None, None
    if lens.size != frame.lens.size:
        notes.append(f"intrinsics of {frame.lens.width}x{frame.lens.height} scaled to {lens.width}x{lens.height}")
    if frame.mask is not None:
        segments = read_mask(frame.mask)
        _check_aspect(frame.mask.path, segments, lens, "its image", "make the mask from this image or remove it")
        segments = nearest(segments, lens.height, lens.width)
        if zero_id == "ignore" and not segments.any():
            segments = None  # an all-black mask is a view without a label (LERF-Mask's test views)
    if lens.is_distorted:
        notes.append("undistorted to a pinhole with the same intrinsics (left out where the lens saw nothing)")
        image = undistort_image(image, lens)
        segments = undistort_ids(segments, lens) if segments is not None else None
        valid = undistort_ids(np.ones((lens.height, lens.width), np.int32), lens)
    width, height = target_size(*lens.size, settings.resolution)
    if (width, height) != lens.size:
        sizes = f"from {lens.width}x{lens.height} to {width}x{height}"
        notes.append(f"resized {sizes} (--resolution {settings.resolution})")
    view = View(
        name=frame.name,
        camera=make_camera(frame, lens).resized(width, height),
        segments=None if segments is None else keep(nearest(segments, height, width)),
        valid=None if valid is None or valid.all() else keep(nearest(valid, height, width) > 0),
        image=keep(resize_image(image, width, height)),
    )
    return view, notes


def _check_aspect(path: Path, mask: np.ndarray, lens: Lens, photo: str, fix: str) -> None:
    """Raise a UserError unless a mask [H, W] has the shape of its photo, scaled."""
    height, width = mask.shape
    if not same_aspect((width, height), lens.size):
        what = f"the mask is {width}x{height} but {photo} is {lens.width}x{lens.height}, another shape"
        raise UserError(f"{path}: {what}; {fix}")


def load_annotations(settings: DataSettings, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the exact ids of the named views that have any, int32 [H, W] at native size, undistorted."""
    described = _sound_scene(replace(settings, eval=False, object_path="auto"))[1]
    lenses = {frame.name: frame.lens for frame in described.frames}
    annotations = described.annotations or partial(masks_in, settings.source_path / ANNOTATIONS)
    found = annotations([name for name in names if name in lenses])
    return {name: _as_pinhole(ids, lenses[name]) for name, ids in found.items()}


def load_prompt_masks(settings: DataSettings, names: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    """Return view -> prompt -> exact mask of the named views that have any, bool [H, W] at native size, undistorted."""
    described = _sound_scene(replace(settings, eval=False, object_path="auto"))[1]
    frames = {frame.name: frame for frame in described.frames}
    return {
        name: {prompt: _read_prompt_mask(path, frames[name]) for prompt, path in files.items()}
        for name, files in described.prompt_masks(names).items()
    }


def _as_pinhole(ids: np.ndarray, lens: Lens) -> np.ndarray:
    """Return the ids [H, W] of a photo at whatever size, undistorted where its lens is distorted."""
    lens = lens.resized(ids.shape[1], ids.shape[0])
    return undistort_ids(ids, lens) if lens.is_distorted else ids


def _read_prompt_mask(path: Path, frame: Frame) -> np.ndarray:
    """Return where the mask is foreground, bool [H, W]; of a colour picture the brightest channel counts."""
    mask = read_image(path).max(axis=-1) > _FOREGROUND
    _check_aspect(path, mask, frame.lens, f"the photo of {frame.name}", "fetch it again")
    return _as_pinhole(mask.astype(np.int32), frame.lens) > 0
