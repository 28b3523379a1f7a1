"""From what a reader describes to a loaded scene: the same for all readers."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache, partial
from itertools import compress
from pathlib import Path
from typing import Any

from torch import Tensor

from unified_lift.data.base import (
    Frame,
    Reader,
    SceneDescription,
    listed,
)
from unified_lift.data.borders import black_frames, without_frame
from unified_lift.data.cache import DataCache, as_tensor
from unified_lift.data.exclusions import (
    with_alpha,
    with_exclusions,
    without_excluded,
)
from unified_lift.data.images import (
    Progress,
    parallel_map,
)
from unified_lift.data.masks import LOOKS_FOR, FoundMasks, MaskFile, find_masks
from unified_lift.data.on_demand import Decoder, Pixels, ViewOnDemand
from unified_lift.data.points import initial_points
from unified_lift.data.settings import DataSettings, split_names
from unified_lift.data.sparse import with_sparse_points, with_tracked_points
from unified_lift.data.units import frame_notes, frame_of, seeds_inside
from unified_lift.data.usable import LEFT_OUT, left_out_notes, require_enough, usable
from unified_lift.data.view import LoadedView, camera_in_use, load_view, size_in_use
from unified_lift.data.void import require_void, void_ids, void_to_zero
from unified_lift.errors import UserError
from unified_lift.registry import members
from unified_lift.types import Camera, Scene, Similarity, View, ZeroId

NO_MASKS = "none"
_NAME_MASKS = f"name masks like their photos, with {LOOKS_FOR} (JPEG mixes ids)"
_LOOKED_AT = 64  # most views that are looked at, evenly spaced, where they are decoded when they are used


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
    choice = None if cache is None else cache.expect(_bytes_of(used, settings, keep_alpha=keep_alpha))
    keep = as_tensor if cache is None else cache.keep
    load = partial(load_view, settings=settings, background=255 * white, keep_alpha=keep_alpha, keep=keep)
    found = _Found()
    if choice is not None and choice.kept_on == "disk":
        how: dict[str, Any] = {"keep_alpha": keep_alpha, "max_bytes": choice.max_decoded, "progress": progress}
        attempts = _attempts_on_demand(used, load, found, settings, **how)
    else:
        attempts = parallel_map(load, used, progress)
    problems = [one for one in attempts if isinstance(one, str)]
    loaded = [one for one in attempts if not isinstance(one, str)]
    require_enough(problems, left=len(loaded), strict=is_strict(reader, settings))
    num_train = sum(not isinstance(one, str) for one in attempts[: len(train)])
    if not num_train:
        raise UserError(problems[0])
    counts = Counter(note for one in loaded for note in sorted(set(one.notes)))
    views, zero_id, void_notes = _labelled(loaded, described.zero_id, settings, found)
    # Not of views that are still to be decoded: that would read all pixels before the first step.
    looked_at = [one.was_looked_at for one in loaded]
    with_exclusions = [one.excluded is not None for one in compress(loaded, looked_at)]
    found.inside, border_notes = black_frames([*compress(views, looked_at)], with_exclusions)
    if found.decoder is not None:
        found.decoder.forget()
    views = [found.applied(view) for view in views]
    read_points = lru_cache(described.points)
    frame = frame_of(views, read_points) if frame is None else frame
    views = [view.having(camera=frame.camera_inside(view.camera)) for view in views]
    train_views = tuple(views[:num_train])
    own, seed_notes = None if settings.random_init else read_points(), list[str]()
    if own is not None:
        own, seed_notes = seeds_inside(own, frame, train_views)
    points, point_note = initial_points(train_views, settings, own=own)
    excluded = [one.excluded for one in loaded]
    points, excluded_notes = without_excluded(points, train_views, excluded)
    notes = [*described.notes, *(f"{count} of {len(views)} views {note}" for note, count in sorted(counts.items()))]
    notes += left_out_notes(problems, total=len(attempts)) + void_notes + border_notes
    if not all(looked_at):
        what = "are decoded when they are used; what else is said of views is of these"
        notes.append(f"{sum(looked_at)} of {len(used)} views were looked at, the others {what}")
    notes += excluded_notes + seed_notes + frame_notes(frame, views)
    if 0 < len(missing := [view.name for view in train_views if not view.has_mask]) < num_train:
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
        void_ids=tuple(sorted(found.void)),
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

    return sum(math.prod(size_in_use(frame, settings)) * of_pixel(frame) for frame in frames)


@dataclass
class _Found:
    """What is found out by looking at many views and holds for all; views decoded on demand have it done then."""

    void: frozenset[int] = frozenset()  # ids of the mask files that mean "in no mask"
    inside: dict[tuple[int, int], Tensor] = field(default_factory=dict)  # what black frames leave of views, by size
    decoder: Decoder | None = None

    def applied(self, view: View) -> View:
        """Return the view without the pixels of its black frame."""
        if self.decoder is not None or (inside := self.inside.get((view.camera.width, view.camera.height))) is None:
            return view
        return view.having(valid=without_frame(view.valid, inside))


def _attempts_on_demand(
    frames: Sequence[Frame],
    load: Callable[[Frame], LoadedView | str],
    found: _Found,
    settings: DataSettings,
    *,
    keep_alpha: bool,
    max_bytes: int,
    progress: Progress | None,
) -> list[LoadedView | str]:
    """Return views that are decoded when they are asked for, of which some have been looked at, evenly spaced.

    What is `found` by them holds for all. Of a photo that was looked at and cannot be decoded it is what is wrong.
    """

    def decode(index: int) -> Pixels:
        loaded = load(frames[index])
        if isinstance(loaded, str):
            raise UserError(loaded)
        view = loaded.view
        if view.segments is not None and loaded.ids is not None:
            require_void([loaded.ids], found.void, settings.void_id)
            void_to_zero(view.segments, found.void)
        inside = found.inside.get((view.camera.width, view.camera.height))
        return Pixels(view.image, view.segments, without_frame(view.valid, inside), view.alpha)

    def on_demand(index: int, camera: Camera) -> ViewOnDemand:
        frame = frames[index]
        absent = {"segments": frame.mask is None, "alpha": not (keep_alpha and frame.alpha == "background")}
        present = [name for name in Pixels._fields if not absent.get(name)]
        return ViewOnDemand(decoder, index, name=frame.name, camera=camera, present=present)

    def looked_at(index: int) -> LoadedView | str:
        loaded = load(frames[index])
        return loaded if isinstance(loaded, str) else loaded._replace(view=on_demand(index, loaded.view.camera))

    def header(index: int) -> LoadedView:
        return LoadedView(on_demand(index, camera_in_use(frames[index], settings)), was_looked_at=False)

    decoder = found.decoder = Decoder(decode, max_bytes=max_bytes)
    every = -(-len(frames) // _LOOKED_AT)
    looked = iter(parallel_map(looked_at, range(0, len(frames), every), progress))
    return [next(looked) if index % every == 0 else header(index) for index in range(len(frames))]


def _labelled(
    loaded: Sequence[LoadedView], zero_id: ZeroId, settings: DataSettings, found: _Found
) -> tuple[list[View], ZeroId, list[str]]:
    """Return the views with void ids made 0, what 0 then is, and a note on what was decided about void ids.

    A view whose mask says nothing (all black, as of LERF-Mask's test views, or nothing where pixels count) has none.
    """
    found.void, note = void_ids([one.ids for one in loaded if one.ids], settings.void_id)
    views, zero_id = [], "ignore" if found.void else zero_id
    for view, ids, excluded, *_ in loaded:
        if ids is not None and view.segments is not None:
            if found.decoder is None:
                void_to_zero(view.segments, found.void)
            told = ids.largest > 0 or zero_id == "segment"
            if found.void or excluded is not None:
                counts = view.segments if view.valid is None else view.segments[view.valid]
                told = bool(counts.any() if zero_id == "ignore" else counts.numel())
            view = view if told else view.having(segments=None)
        views.append(view)
    return views, zero_id, [note] if note else []
