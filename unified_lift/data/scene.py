"""From what a reader describes to a loaded scene: the same for all readers."""

import functools
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from unified_lift.data.base import (
    Frame,
    Reader,
    SceneDescription,
    as_posed,
    fit_lens,
    listed,
    make_camera,
    posed_size,
)
from unified_lift.data.borders import without_black_frames
from unified_lift.data.cache import DataCache, as_tensor
from unified_lift.data.exclusions import (
    ALPHA_WORDS,
    Excluded,
    pixels_left_out,
    with_alpha,
    with_exclusions,
    without_excluded,
)
from unified_lift.data.images import (
    LARGE,
    Progress,
    composited,
    image_size,
    one_at_a_time,
    parallel_map,
    read_photo,
    resize_image,
    target_size,
    upright,
)
from unified_lift.data.lens import Lens, undistort_ids, undistort_image
from unified_lift.data.masks import LOOKS_FOR, FoundMasks, MaskFile, find_masks, read_stored_mask, same_aspect
from unified_lift.data.points import initial_points
from unified_lift.data.settings import DataSettings, split_names
from unified_lift.data.sparse import with_sparse_points, with_tracked_points
from unified_lift.data.units import frame_notes, frame_of, seeds_inside
from unified_lift.data.usable import LEFT_OUT, left_out_notes, require_enough, usable
from unified_lift.data.void import TellingIds, telling_ids, void_ids, void_to_zero
from unified_lift.errors import UserError
from unified_lift.ops.resample import nearest
from unified_lift.registry import members
from unified_lift.types import Scene, Similarity, View, ZeroId

NO_MASKS = "none"
_NAME_MASKS = f"name masks like their photos, with {LOOKS_FOR} (JPEG mixes ids)"
_SMALL = 256  # px: largest side at which excluded pixels are remembered until the scene is loaded


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
    """Return the folder of input masks, or a file of all; a UserError names one that was chosen and is not there."""
    chosen = settings.object_path not in ("auto", NO_MASKS)
    folder = settings.source_path / (settings.object_path if chosen else reader.mask_folder)
    if chosen and not folder.exists():
        raise UserError(f"{folder}: no such mask folder; correct --object_path or make the masks first")
    return folder


def describe(reader: Reader, settings: DataSettings) -> SceneDescription:
    """Return what a reader says about the scene folder, each frame with its mask and what leaves out its pixels."""
    folder, described = mask_folder(reader, settings), reader.describe(settings.source_path, settings)
    own = settings.object_path == "auto"  # a folder that the user names counts, whatever masks the scene's file names
    searched = [frame.name for frame in described.frames if not (own and frame.mask)]
    found, notes, unused = find_masks(folder, searched) if settings.object_path != NO_MASKS else FoundMasks({}, [], [])
    frames = [f if own and f.mask else replace(f, mask=found.get(f.name)) for f in described.frames]
    used, problem = {frame.mask.path.resolve() for frame in frames if frame.mask}, ""
    if names := [path.relative_to(folder).as_posix() for path in unused if path.resolve() not in used]:
        if not used:
            what = f"none of its {len(names)} files is the mask of a photo ({listed(names)})"
            problem = f"{folder}: {what}; {_NAME_MASKS}, or train colour only with --object_path {NO_MASKS}"
        elif not described.broken:  # masks of the photos that are left out would seem to belong to none
            notes.append(f"{folder}: {listed(names)} belongs to no view; {_NAME_MASKS}, and remove the others")
    elif not used:
        what = f"--object_path {NO_MASKS}" if settings.object_path == NO_MASKS else f"no mask folder {folder.name}/"
        notes.append(f"{what}: every view is unlabelled, only colour can be trained")
    frames, told = with_exclusions(with_alpha(frames, settings), settings, ids=folder)
    return replace(described, frames=frames, notes=(*notes, *told, *described.notes), no_mask_used=problem)


def load_frames(settings: DataSettings, tell: Callable[[str], object] = lambda note: None) -> list[Frame]:
    """Return the posed photos of `settings.source_path` as files, each with its mask file; no pixel is read.

    What is said of photos that cannot be used goes to `tell`.
    """
    described = sound_scene(settings)[1]
    for note in described.notes:
        if LEFT_OUT in note:
            tell(note)
    return list(described.frames)


def sound_scene(settings: DataSettings) -> tuple[Reader, SceneDescription]:
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
    white: bool = False,
    refuse_unused: bool = False,
    progress: Progress | None = None,
    cache: DataCache | None = None,
    sparse: bool = False,
    keep_alpha: bool = False,
) -> Scene:
    """Return the scene: described by its reader, split, loaded, undistorted, resized, with initial points.

    It is inside of `frame`, None = that which suits it. Photos and masks are kept by `cache`, None = in memory. With
    `sparse` training views have the sparse points that they show. Transparent photos lie over black, or `white`; with
    `keep_alpha` views have what of them does not.
    A UserError names the file or flag and the fix, with `refuse_unused` also a mask folder of which no file is used.
    """
    reader, described = sound_scene(settings)
    if refuse_unused and described.no_mask_used:
        raise UserError(described.no_mask_used)
    train, test = _split_frames(described, settings)
    used = [*train, *test]
    if cache is not None:
        cache.expect(_bytes_of(used, settings, keep_alpha=keep_alpha))
    keep = as_tensor if cache is None else cache.keep
    load = partial(_load_view, settings=settings, background=255 * white, keep_alpha=keep_alpha, keep=keep)
    attempts = parallel_map(load, used, progress)
    problems = [one for one in attempts if isinstance(one, str)]
    loaded = [one for one in attempts if not isinstance(one, str)]
    require_enough(problems, left=len(loaded), strict=is_strict(reader, settings))
    num_train = sum(not isinstance(one, str) for one in attempts[: len(train)])
    if not num_train:
        raise UserError(problems[0])
    counts = Counter(note for one in loaded for note in sorted(set(one.notes)))
    views, zero_id, void, void_notes = _labelled(loaded, described.zero_id, settings)
    views, border_notes = without_black_frames(views, [one.excluded is not None for one in loaded])
    read_points = lru_cache(described.points)
    frame = frame_of(views, read_points) if frame is None else frame
    views = [replace(view, camera=frame.camera_inside(view.camera)) for view in views]
    train_views = tuple(views[:num_train])
    own, seed_notes = None if settings.random_init else read_points(), list[str]()
    if own is not None:
        own, seed_notes = seeds_inside(own, frame, train_views)
    points, point_note = initial_points(train_views, settings, own=own)
    excluded = [one.excluded for one in loaded]
    points, excluded_notes = without_excluded(points, train_views, excluded)
    notes = [*described.notes, *(f"{count} of {len(views)} views {note}" for note, count in sorted(counts.items()))]
    notes += left_out_notes(problems, total=len(attempts)) + void_notes + border_notes
    notes += excluded_notes + seed_notes + frame_notes(frame, views)
    if 0 < len(missing := [view.name for view in train_views if view.segments is None]) < num_train:
        notes.append(f"{len(missing)} of {num_train} training views have no mask: {listed(missing)}")
    if sparse:
        train_views = tuple(with_tracked_points(train_views, described.tracks(), frame))
    scene = Scene(
        name=settings.source_path.resolve().name,
        dataset=reader.name,
        train=train_views,
        test=tuple(views[num_train:]),
        points=points,
        frame=frame,
        zero_id=zero_id,
        void_ids=void,
        notes=(*notes, point_note),
    )
    return with_sparse_points(scene) if sparse else scene


def _split_frames(described: SceneDescription, settings: DataSettings) -> tuple[list[Frame], list[Frame]]:
    """Return the training and the test frames; a UserError names an impossible split."""
    by_name, lists = {frame.name: frame for frame in described.frames}, (described.held_out, described.train_only)
    train, test = split_names(list(by_name), settings.source_path, settings, *lists)
    return [by_name[name] for name in train], [by_name[name] for name in test]


def expected_bytes(settings: DataSettings) -> int:
    """Return about how many bytes photos and masks of the scene take once loaded; no pixel is read."""
    train, test = _split_frames(sound_scene(settings)[1], settings)
    return _bytes_of([*train, *test], settings)


def _bytes_of(frames: Sequence[Frame], settings: DataSettings, *, keep_alpha: bool = False) -> int:
    """Return the bytes of photos (3 per pixel), masks (4) and, where there may be some, what counts and alpha (1)."""

    def of_pixel(frame: Frame) -> int:
        planes = frame.lens.is_distorted or bool(frame.exclusions), keep_alpha and frame.alpha == "background"
        return 3 + 4 * (frame.mask is not None) + sum(planes)

    return sum(math.prod(_size_in_use(frame, settings)) * of_pixel(frame) for frame in frames)


class _Loaded(NamedTuple):
    """A view at the size in use, and what else is known of it."""

    view: View
    ids: TellingIds | None  # of its mask
    excluded: Excluded | None  # the pixels that the scene leaves out, small
    notes: list[str]


def _size_in_use(frame: Frame, settings: DataSettings) -> tuple[int, int]:
    """Return the (width, height) at which the photo is used, the way up that its pose is for."""
    return target_size(*posed_size(frame.stored or image_size(frame.image_path), frame), settings.resolution)


def _load_view(
    frame: Frame, *, settings: DataSettings, background: int, keep_alpha: bool, keep: Callable[[np.ndarray], Tensor]
) -> _Loaded | str:
    """Return the view, its arrays as `keep` returns them, with ids as in the file, and notes on what was done to it.

    Of a photo that cannot be decoded it is what is wrong with it.
    """
    notes, (width, height) = list[str](), _size_in_use(frame, settings)
    kept_alpha: np.ndarray | None = None
    try:
        image, alpha = _read_photo(frame, width, height)
    except UserError as error:
        return str(error)
    lens, segments, ids = fit_lens(frame, width=image.shape[1], height=image.shape[0]), None, None
    if lens.size != frame.lens.size:
        notes.append(f"intrinsics of {frame.lens.width}x{frame.lens.height} scaled to {lens.width}x{lens.height}")
    parts = []
    for exclusion in frame.exclusions:
        parts.append(as_posed(pixels_left_out(exclusion), frame))
        check_aspect(exclusion.path, parts[-1], lens, "its image", "make it from this image, or use --exclude none")
    if alpha is not None:
        notes.append(f"are partly transparent: {ALPHA_WORDS[frame.alpha]} (--alpha)")
        if frame.alpha == "background":
            image, kept_alpha = composited(image, alpha, background=background), alpha if keep_alpha else None
        elif frame.alpha == "mask":
            parts.append(alpha < 128)
    out = functools.reduce(np.logical_or, [nearest(part, lens.height, lens.width) for part in parts]) if parts else None
    if frame.mask is not None:
        stored = read_stored_mask(frame.mask, size=lens.size)
        if stored.kind.endswith(("masks", "levels")):
            place = Path(os.path.relpath(frame.mask.path, settings.source_path)).parts[0]
            notes.append(f"have {stored.kind} in {place}, made into one map of ids")
        segments, ids = as_posed(stored.ids, frame), telling_ids(frame.mask.path, stored)
        if segments is not stored.ids:
            notes.append("have a mask that is turned as their EXIF data say")
        check_aspect(frame.mask.path, segments, lens, "its image", "make the mask from this image or remove it")
        segments = nearest(segments, lens.height, lens.width)
    valid, hidden = None, None if out is None else out.astype(np.float32)
    if lens.is_distorted:
        notes.append("undistorted to a pinhole with the same intrinsics (left out where the lens saw nothing)")
        image = undistort_image(image, lens)
        kept_alpha = None if kept_alpha is None else undistort_image(kept_alpha, lens)
        segments = undistort_ids(segments, lens) if segments is not None else None
        valid = nearest(undistort_ids(np.ones((lens.height, lens.width), np.int32), lens) > 0, height, width)
        hidden = None if hidden is None else undistort_image(hidden, lens)
        out = None if out is None else undistort_ids(out.astype(np.int32), lens) > 0
    if (width, height) != lens.size:
        sizes = f"from {lens.width}x{lens.height} to {width}x{height}"
        notes.append(f"resized {sizes} (--resolution {settings.resolution})")
    if hidden is not None:  # whatever they are mixed into by resampling is left out as well; enlarged, they are black
        if width > lens.width or height > lens.height:
            image, hidden = np.where(hidden[..., None] > 0, np.uint8(0), image), nearest(hidden, height, width)
        pure = resize_image(hidden, width, height) == 0
        valid = pure if valid is None else valid & pure
    view = View(
        name=frame.name,
        camera=make_camera(frame, lens).resized(width, height),
        segments=None if segments is None else keep(nearest(segments, height, width)),
        valid=None if valid is None or valid.all() else keep(valid),
        image=keep(resize_image(image, width, height)),
        alpha=None if kept_alpha is None else keep(resize_image(kept_alpha, width, height)),
    )
    excluded = None
    if out is not None and out.any():
        small = nearest(out, min(height, _SMALL), min(width, _SMALL))
        excluded = Excluded(small, str(frame.exclusions[0].path) if frame.exclusions else "transparent")
    return _Loaded(view, ids, excluded, notes)


def _labelled(
    loaded: Sequence[_Loaded], zero_id: ZeroId, settings: DataSettings
) -> tuple[list[View], ZeroId, tuple[int, ...], list[str]]:
    """Return the views with void ids made 0, what 0 then is, the void ids, and a note on what was decided about them.

    A view whose mask says nothing (all black, as of LERF-Mask's test views, or nothing where pixels count) has none.
    """
    void, note = void_ids([one.ids for one in loaded if one.ids], settings.void_id)
    views, zero_id = [], "ignore" if void else zero_id
    for view, ids, excluded, _ in loaded:
        if view.segments is not None and ids is not None:
            if void:
                void_to_zero(view.segments, void)
            told = ids.largest > 0 or zero_id == "segment"
            if void or excluded is not None:
                counts = view.segments if view.valid is None else view.segments[view.valid]
                told = bool(counts.any() if zero_id == "ignore" else counts.numel())
            view = view if told else replace(view, segments=None)
        views.append(view)
    return views, zero_id, tuple(sorted(void)), [note] if note else []


def _read_photo(frame: Frame, width: int, height: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Return colour and alpha of the photo the way up that its pose is for; of a large one at the size in use."""
    with one_at_a_time(size := frame.stored or image_size(frame.image_path)):
        # What follows takes many times the memory of a photo.
        shrinks = math.prod(size) > LARGE > width * height
        found = [upright(part, frame.turn) for part in read_photo(frame.image_path) if part is not None]
        image, *alpha = [resize_image(part, width, height) if shrinks else part for part in found]
        return image, alpha[0] if alpha else None


def check_aspect(path: Path, mask: np.ndarray, lens: Lens, photo: str, fix: str) -> None:
    """Raise a UserError unless a mask [H, W] has the shape of its photo, scaled."""
    height, width = mask.shape
    if not same_aspect((width, height), lens.size):
        what = f"the mask is {width}x{height} but {photo} is {lens.width}x{lens.height}, another shape"
        raise UserError(f"{path}: {what}; {fix}")
