"""A folder of masks being made: photo after photo, with a record of how, so that it can be stopped and gone on with."""

import hashlib
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from tqdm import tqdm

import unified_lift
from unified_lift.capture.frames import shrunk
from unified_lift.capture.mask_generators import GENERATORS
from unified_lift.capture.masks import FilterSettings, GeneratorSettings, Granularity, MaskGenerator, keep_best, paint
from unified_lift.capture.networks import one_line
from unified_lift.data.base import Frame
from unified_lift.data.images import read_image
from unified_lift.data.masks import read_mask
from unified_lift.errors import UserError
from unified_lift.evaluation.pictures import overlay, write_picture
from unified_lift.fileio import holds_files, read_json, write_json
from unified_lift.progress import progress_bar
from unified_lift.reading import shown

RECORD = "masks.json"
_CHANGES = 3  # of settings are told one by one
_SAVE_EVERY = 20  # views between two writes of the record; what a killed process did since is done again
_PHOTOS_PER_PROCESS = 4  # fewer are not worth the second that starting a process takes
_SHEET_VIEWS, _COLUMNS, _TILE, _GAP, _PAPER = 12, 3, 320, 6, 24  # longest side and gap in pixels, grey value
_INK = 0.75  # share of the ids' colour, as in the video of render.py: shading stays visible
Facts = dict[str, Any]
Found = dict[Granularity, Facts]
Paths = Mapping[Granularity, Path]


@dataclass(frozen=True, kw_only=True)
class MaskJob:
    """What makes the masks of a scene: a name in `GENERATORS`, its settings, the filter, and where networks run."""

    provider: str
    settings: GeneratorSettings
    filter: FilterSettings
    device: torch.device

    def described(self, granularity: Granularity) -> Facts:
        """Return all that the masks of a granularity depend on, ready for JSON."""
        settings = asdict(self.settings) | asdict(self.filter)
        for name, value in settings.items():
            if isinstance(value, Path):  # of a weights file its name and size, so that it may be moved
                settings[name] = value.name + (f" ({value.stat().st_size} bytes)" if value.is_file() else "")
        return {"provider": self.provider, "granularity": granularity, **settings}


def mask_path(folder: Path, frame: Frame) -> Path:
    """Return where the mask of a photo goes: its relative path as .png."""
    return folder / f"{frame.name}.png"


class MaskFolder:
    """A folder of masks and its record: the settings, and for every finished view what was found in which photo."""

    def __init__(self, path: Path, settings: Facts, *, overwrite: bool) -> None:
        """Open the folder, which is made on the first write; a UserError says that other masks are there."""
        self.path, self.settings = path, settings
        self.views: dict[str, Facts] = {}
        self.versions: Facts = {}
        elsewhere = "--out NAME puts the new ones elsewhere"
        if (path / RECORD).is_file():
            record = read_json(path / RECORD)
            views, found = record.get("views"), record.get("settings")
            changed = changes(found, settings) if isinstance(found, dict) else ["no settings"]
            if not changed and isinstance(views, dict) and all(map(_is_record, views.values())):
                self.views = {} if overwrite else views
            elif views != {} and not overwrite:  # where no mask was finished, nothing is lost
                what = f"made with other settings ({'; '.join(changed) or 'an unreadable record'})"
                raise UserError(f"{path}: holds masks {what}; --overwrite replaces them, {elsewhere}")
        elif holds_files(path) and not overwrite:
            what = f"holds files but no {RECORD}, so this command did not make them"
            raise UserError(f"{path}: {what}; --overwrite replaces the masks of this scene's photos, {elsewhere}")

    def save(self) -> None:
        """Write the record, whole or not at all."""
        views = dict(sorted(self.views.items()))
        ids = [view["ids"] for view in views.values()]
        counts = {
            "views": len(views),
            "proposals": sum(view["proposals"] for view in views.values()),
            "ids": sum(ids),
            "most_ids_in_a_view": max(ids, default=0),
            "views_without_ids": ids.count(0),
        }
        versions = {"unified_lift": unified_lift.__version__, **self.versions}
        content = {"settings": self.settings, "versions": versions, "counts": counts, "views": views}
        write_json(self.path / RECORD, content)

    def write_preview(self, frames: Sequence[Frame]) -> Path:
        """Write evenly spread photos beside their ids in colour to a file next to the folder; return its path."""
        chosen = evenly(frames, _SHEET_VIEWS)
        views = [(read_image(one.image_path, alpha=one.alpha), read_mask(mask_path(self.path, one))) for one in chosen]
        path = self.path.with_name(f"{self.path.name}_preview.png")
        write_picture(path, contact_sheet(views))
        return path


def caution(folder: Path) -> str:
    """Return what users must know of the masks in a folder, by its record of who made them; empty where nothing is."""
    try:
        record = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    except UserError:  # it says nothing of the masks themselves
        return ""
    settings = record.get("settings") if isinstance(record, dict) else None
    provider = settings.get("provider") if isinstance(settings, dict) else None
    return GENERATORS[provider].caution if isinstance(provider, str) and provider in GENERATORS else ""


def changes(there: Facts, now: Facts) -> list[str]:
    """Return what differs between the settings of a folder and those asked for, a few words each, at most four.

    Of another mask generator only its name is told: its settings are others anyhow.
    """
    if there.get("provider") != now.get("provider"):
        there, now = ({"provider": one.get("provider")} for one in (there, now))
    differ = [key for key in {**now, **there} if there.get(key) != now.get(key)]
    told = [f"{key} {_value(there.get(key))} there, {_value(now.get(key))} now" for key in differ[:_CHANGES]]
    return told + ([f"{len(differ) - _CHANGES} more"] if len(differ) > _CHANGES else [])


def _value(value: Any) -> str:
    return "unset" if value is None else value[:60] if isinstance(value, str) else shown(value)[:60]


def evenly(frames: Sequence[Frame], limit: int) -> list[Frame]:
    """Return `limit` of the frames, evenly spread from first to last; all if it is 0 or more than there are."""
    if not 0 < limit < len(frames):
        return list(frames)
    return [frames[index] for index in np.linspace(0, len(frames) - 1, limit).round().astype(int).tolist()]


def _is_record(view: Any) -> bool:
    """Return whether this is what the record of a folder says of a view."""
    numbers = [view.get(key) for key in ("ids", "proposals", "covered")] if isinstance(view, dict) else [None]
    return all(isinstance(number, (int, float)) and 0 <= number < math.inf for number in numbers)


def make_masks(
    job: MaskJob, frames: Sequence[Frame], paths: Paths, *, overwrite: bool, processes: int, quiet: bool
) -> dict[Granularity, MaskFolder]:
    """Make what is missing in the folders `paths`, at most `processes` photos at a time; return the folders.

    However it ends, finished masks and their record stay.

    Raises:
        UserError: A folder holds other masks or the photos, a photo is damaged, or the generator cannot be loaded.
    """
    for path in paths.values():
        inside = [frame for frame in frames if path.resolve() in frame.image_path.resolve().parents]
        if inside:
            raise UserError(f"--out {path}: holds {inside[0].image_path}; give the masks a folder without photos")
    folders = {one: MaskFolder(path, job.described(one), overwrite=overwrite) for one, path in paths.items()}
    digests = {frame.name: hashlib.sha256(frame.image_path.read_bytes()).hexdigest()[:16] for frame in frames}

    def is_done(frame: Frame, folder: MaskFolder) -> bool:
        was_made_of = folder.views.get(frame.name, {}).get("photo")
        return was_made_of == digests[frame.name] and mask_path(folder.path, frame).is_file()

    todo = [frame for frame in frames if not all(is_done(frame, folder) for folder in folders.values())]
    if len(todo) < len(frames):
        tqdm.write(f"{len(frames) - len(todo)} of {len(frames)} photos have their masks already")
    if not todo:
        return folders
    entry = GENERATORS[job.provider]
    count = min(processes, max(1, len(todo) // _PHOTOS_PER_PROCESS)) if entry.on_cores else 1
    with one_line(f"--provider {job.provider}: cannot be loaded", fix="unified-lift doctor tries its packages"):
        generator = entry.load(job.settings, job.device)
    for folder in folders.values():
        folder.versions = generator.facts
        folder.save()  # from here on the folder says what is being made in it
    work = partial(_mask_photo, job, None if count > 1 else generator, paths)
    results = _in_processes(work, todo, count) if count > 1 else map(work, todo)
    try:
        with progress_bar(f"masks ({job.provider})", quiet=quiet) as progress:
            for done, (frame, found) in enumerate(zip(todo, results), start=1):
                for one, facts in found.items():
                    folders[one].views[frame.name] = {"photo": digests[frame.name], **facts}
                    if done % _SAVE_EVERY == 0:
                        folders[one].save()
                progress(done, len(todo))
    finally:
        for folder in folders.values():
            folder.save()
    return folders


def _in_processes(work: Callable[[Frame], Found], frames: Sequence[Frame], processes: int) -> Iterator[Found]:
    """Yield the facts of each photo in order, so that all before a broken photo are recorded."""
    # The photos are spread over the cores already: each process gets one thread.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, initializer=_begin_worker, initargs=(os.getpid(),))
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # processes inherit this: the parent handles Ctrl-C
        try:
            results = pool.map(work, frames)
        finally:
            signal.signal(signal.SIGINT, before)
        yield from results
    except BrokenProcessPool:
        what = "a process died, most likely for lack of memory"
        raise UserError(f"--jobs {processes}: {what}; use --jobs 1 to go on") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin_worker(parent: int) -> None:
    """Let a worker process use one thread, and end it within a second of its parent, however that ends."""

    def leave_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    cv2.setNumThreads(1)
    threading.Thread(target=leave_with_parent, daemon=True).start()


def _mask_photo(job: MaskJob, generator: MaskGenerator | None, paths: Paths, frame: Frame) -> Found:
    """Write the masks of a photo at all granularities; return their facts. Without a generator it loads its own."""
    image = read_image(frame.image_path, alpha=frame.alpha)
    generator = generator or GENERATORS[job.provider].load(job.settings, torch.device("cpu"))
    what = f"{frame.image_path}: --provider {job.provider} fails on this photo"
    with one_line(what, fix="unified-lift doctor tries its packages; masks finished before stay"):
        proposals = generator.propose(image, list(paths))
        for one in proposals:
            if (
                one.mask.shape != image.shape[:2]
                or one.mask.dtype != bool
                or not np.isfinite(one.score * one.stability)
            ):
                raise ValueError(f"a mask {list(one.mask.shape)} {one.mask.dtype} of score {one.score}")
    facts = {}
    for granularity, path in paths.items():
        candidates = [proposal for proposal in proposals if proposal.granularity == granularity]
        kept = keep_best(candidates, job.filter)
        ids = paint(kept, image.shape[:2], rule=job.filter.rule, min_area=job.filter.min_area)
        write_picture(mask_path(path, frame), ids)
        facts[granularity] = {
            "size": [image.shape[1], image.shape[0]],
            "proposals": len(candidates),
            "kept": len(kept),
            "ids": int(ids.max()),
            "covered": round(float((ids > 0).mean()), 4),
        }
    return facts


def contact_sheet(views: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return photos, uint8 [H, W, 3], each beside its ids [H, W] in colour, shrunk, row by row in equal columns."""
    tiles = []
    for image, ids in views:
        photo = shrunk(image, _TILE)
        small = cv2.resize(ids.astype(np.float32), photo.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        tiles.append(np.hstack([photo, overlay(photo, small.astype(np.int32), share=_INK)]))
    height, width = (max(tile.shape[axis] for tile in tiles) + _GAP for axis in (0, 1))
    columns = min(_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = np.full((rows * height + _GAP, columns * width + _GAP, 3), _PAPER, dtype=np.uint8)
    for index, tile in enumerate(tiles):
        top, left = _GAP + index // columns * height, _GAP + index % columns * width
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return sheet
