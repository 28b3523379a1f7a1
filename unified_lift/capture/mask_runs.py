"""A folder of masks being made: photo after photo, with a record of how, so that it can be stopped and gone on with."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import torch

import unified_lift
from unified_lift.capture.mask_providers import PROVIDERS
from unified_lift.capture.masks import Level, PoolSettings, Proposer, ProviderSettings, keep_best, paint
from unified_lift.data.base import Frame
from unified_lift.data.images import read_image
from unified_lift.errors import UserError
from unified_lift.evaluation.pictures import write_picture
from unified_lift.fileio import read_json
from unified_lift.modelfolder.outputs import write_text

RECORD = "masks.json"
_SAVE_EVERY = 20  # views between two writes of the record; what a killed process did since is done again
_PHOTOS_PER_PROCESS = 4  # fewer are not worth the second that starting a process takes


@dataclass(frozen=True, kw_only=True)
class MaskJob:
    """What makes the masks of a scene.

    Attributes:
        provider: Name in `PROVIDERS`.
        settings: Of the provider.
        pool: How proposals become ids.
        folders: Where the masks of each wanted granularity go.
        device: Where networks run.
    """

    provider: str
    settings: ProviderSettings
    pool: PoolSettings
    folders: Mapping[Level, Path]
    device: torch.device

    def described(self, level: Level) -> dict[str, Any]:
        """Return all that the masks of a level depend on, ready for JSON."""
        return {
            "provider": self.provider,
            "granularity": level,
            **{key: _plain(value) for part in (self.settings, self.pool) for key, value in _fields(part)},
        }


class MaskFolder:
    """A folder of masks and its record: the settings, and for every finished view what was found in which photo."""

    def __init__(self, path: Path, settings: dict[str, Any], *, overwrite: bool) -> None:
        """Open the folder; it is made on the first write.

        Raises:
            UserError: It holds masks of other settings or of unknown origin, and `overwrite` is not given.
        """
        self.path = path
        self.settings = settings
        self.views: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, Any] = {}
        record = path / RECORD
        if record.is_file():
            found = read_json(record)
            views = found.get("views")
            changed = _changes(found.get("settings"), settings)
            if not changed and isinstance(views, dict):
                self.views = views if not overwrite else {}
            elif views != {} and not overwrite:  # where no mask was finished, nothing is lost
                what = ", ".join(changed) or "an unreadable record"
                raise UserError(
                    f"{path}: holds masks made with other settings ({what}); --overwrite replaces them, --out NAME "
                    "puts the new ones elsewhere"
                )
        elif path.is_dir() and any(path.iterdir()) and not overwrite:
            raise UserError(
                f"{path}: holds files but no {RECORD}, so this command did not make them; --overwrite replaces the "
                "masks of this scene's photos, --out NAME puts the new ones elsewhere"
            )

    def is_done(self, frame: Frame, digest: str) -> bool:
        """Return whether the mask of a photo is there and was made from this very photo."""
        view = self.views.get(frame.name)
        return view is not None and view.get("photo") == digest and self.mask_path(frame).is_file()

    def mask_path(self, frame: Frame) -> Path:
        """Return where the mask of a photo goes: its relative path as .png."""
        return self.path / f"{frame.name}.png"

    def save(self) -> None:
        """Write the record, whole or not at all."""
        views = dict(sorted(self.views.items()))
        ids = [view["ids"] for view in views.values()]
        content = {
            "settings": self.settings,
            "versions": {"unified_lift": unified_lift.__version__, **self.versions},
            "counts": {
                "views": len(views),
                "proposals": sum(view["proposals"] for view in views.values()),
                "ids": sum(ids),
                "most_ids_in_a_view": max(ids, default=0),
                "views_without_ids": ids.count(0),
            },
            "views": views,
        }
        write_text(self.path / RECORD, json.dumps(content, indent=1) + "\n")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far it is: photos done, of those left to do when it began."""

    done: int
    total: int


def open_folders(job: MaskJob, frames: Sequence[Frame], *, overwrite: bool) -> dict[Level, MaskFolder]:
    """Return the folders of all levels, checked before anything is written.

    Raises:
        UserError: A folder holds other masks, or masks would be written among the photos.
    """
    for path in job.folders.values():
        inside = [frame for frame in frames if path.resolve() in frame.image_path.resolve().parents]
        if inside:
            raise UserError(f"--out {path}: holds {inside[0].image_path}; give the masks a folder without photos")
    return {level: MaskFolder(path, job.described(level), overwrite=overwrite) for level, path in job.folders.items()}


def make_masks(
    job: MaskJob, frames: Sequence[Frame], folders: Mapping[Level, MaskFolder], *, processes: int
) -> Iterator[Progress]:
    """Make what is missing, and yield after every photo; first with none done, when it is known what is missing.

    However it ends, finished masks and their record stay.

    Args:
        job: What makes them.
        frames: The photos.
        folders: From `open_folders`.
        processes: At most so many work at a time, where the provider runs on cores.
    Raises:
        UserError: A photo is damaged, or the provider cannot be loaded.
    """
    digests = {frame.name: _digest(frame.image_path) for frame in frames}
    todo = [
        frame for frame in frames if not all(folder.is_done(frame, digests[frame.name]) for folder in folders.values())
    ]
    yield Progress(done=0, total=len(todo))
    if not todo:
        return
    count = min(processes, max(1, len(todo) // _PHOTOS_PER_PROCESS)) if PROVIDERS[job.provider].on_cores else 1
    proposer = PROVIDERS[job.provider].load(job.settings, job.device)
    for folder in folders.values():
        folder.versions = proposer.facts
    _save(folders)  # from here on the folder says what is being made in it
    places = {frame.name: {level: folder.mask_path(frame) for level, folder in folders.items()} for frame in todo}
    try:
        for done, (frame, found) in enumerate(_work(job, proposer, todo, places, processes=count), start=1):
            for level, facts in found.items():
                folders[level].views[frame.name] = {"photo": digests[frame.name], **facts}
            if done % _SAVE_EVERY == 0:
                _save(folders)
            yield Progress(done=done, total=len(todo))
    finally:
        _save(folders)


def _work(
    job: MaskJob,
    proposer: Proposer,
    todo: Sequence[Frame],
    places: Mapping[str, Mapping[Level, Path]],
    *,
    processes: int,
) -> Iterator[tuple[Frame, dict[Level, dict[str, Any]]]]:
    """Yield each photo when its masks are written, with the facts of each level."""
    if processes <= 1:
        for frame in todo:
            yield frame, _mask_photo(job, proposer, frame, places[frame.name])
        return
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"), initializer=_one_thread)
    try:
        with _deaf_to_interrupts():  # so that the processes are born deaf: Ctrl-C is for the parent to handle
            jobs = [(frame, pool.submit(_in_process, job, frame, places[frame.name])) for frame in todo]
        for frame, running in jobs:  # in order, so that all before a broken photo are recorded
            yield frame, running.result()
    except BrokenProcessPool:
        raise UserError(
            f"--jobs {processes}: a process died, most likely for lack of memory; use --jobs 1 to go on"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_process(job: MaskJob, frame: Frame, places: Mapping[Level, Path]) -> dict[Level, dict[str, Any]]:
    return _mask_photo(job, _load_once(job.provider, job.settings), frame, places)


def _mask_photo(
    job: MaskJob, proposer: Proposer, frame: Frame, places: Mapping[Level, Path]
) -> dict[Level, dict[str, Any]]:
    """Write the masks of a photo at all levels; return their facts."""
    image = read_image(frame.image_path, alpha=frame.alpha)
    proposals = proposer.propose(image, list(places))
    facts = {}
    for level, path in places.items():
        pool = [proposal for proposal in proposals if proposal.granularity == level]
        kept = keep_best(pool, job.pool)
        ids = paint(kept, image.shape[:2], rule=job.pool.rule, min_area=job.pool.min_area)
        write_picture(path, ids)
        facts[level] = {
            "size": [image.shape[1], image.shape[0]],
            "proposals": len(pool),
            "kept": len(kept),
            "ids": int(ids.max()),
            "covered": round(float((ids > 0).mean()), 4),
        }
    return facts


@lru_cache(maxsize=1)
def _load_once(provider: str, settings: ProviderSettings) -> Proposer:
    return PROVIDERS[provider].load(settings, torch.device("cpu"))


def _save(folders: Mapping[Level, MaskFolder]) -> None:
    for folder in folders.values():
        folder.save()


def _one_thread() -> None:
    cv2.setNumThreads(1)  # the photos are spread over the cores already


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Ignore SIGINT for a moment; processes started in it ignore it for good."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _fields(part: Any) -> list[tuple[str, Any]]:
    return [(field.name, getattr(part, field.name)) for field in fields(part)]


def _plain(value: Any) -> Any:
    """Return a setting ready for JSON; of a weights file its name and size, so that it may be moved."""
    if not isinstance(value, Path):
        return value
    return f"{value.name} ({value.stat().st_size} bytes)" if value.is_file() else value.name


def _changes(found: Any, wanted: Mapping[str, Any]) -> list[str]:
    """Return what differs between the settings of a record and those wanted, as text."""
    if not isinstance(found, dict):
        return ["no settings"]
    keys = [key for key in {**wanted, **found} if found.get(key) != wanted.get(key)]
    return [f"{key} {found.get(key)} there, {wanted.get(key)} now" for key in keys]
