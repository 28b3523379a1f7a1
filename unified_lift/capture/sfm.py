"""Structure from motion through COLMAP: photos or a video in, an undistorted scene with poses and points out.

    <scene>/images/, sparse/0/     what train.py reads
    <scene>/sfm_report.json, sfm_sparse.png
    <scene>/sfm/                   work folder: photos/, features.db, matches.db, model/, stages.json

Each stage leaves its result in the work folder with a key of all settings that led to it, so that a second call repeats
only what was not finished or is asked for with other settings.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from unified_lift.capture.frames import is_video, list_photos, photo_name, write_photos, write_sharp_frames
from unified_lift.capture.sfm_report import sparse_report, write_sparse_picture
from unified_lift.data.colmap_io import read_images
from unified_lift.data.images import image_size
from unified_lift.errors import UserError

Matcher = Literal["exhaustive", "sequential"]
Cameras = Literal["shared", "each"]
Tick = Callable[[int, int], None]
StageProgress = Callable[[str, int, int], None]
"""Called with (stage, done, total); a stage that is already there is reported once, as (stage, 0, 0)."""

STAGES = ("photos", "features", "matches", "mapping", "undistortion")
MIN_REGISTERED = 3  # two views give points, but no scene that could be trained
REPORT, PICTURE, WORK = "sfm_report.json", "sfm_sparse.png", "sfm"
_MIN_SIZE = 64
_SEED = 0
_ERRORS_ONLY = 2  # glog level: warnings about memory and threads concern larger photos than ours
_POLL_S = 0.5
_COUNTER = """
import sqlite3, sys, time
place, table, pause = sys.argv[1:]
while True:
    try:
        connection = sqlite3.connect(place + "?mode=ro", uri=True)
        print(connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0], flush=True)
        connection.close()
    except sqlite3.Error:  # being created
        pass
    time.sleep(float(pause))
"""
_BLOCK_SIZE = 10  # photos; Ctrl-C is heard only between blocks of this size squared [COLMAP: 50]
_OVERLAP = 10  # neighbours each frame is matched with, and as many at distances 1, 2, 4, ... [COLMAP]
_CURES = (
    "take more photos that overlap by two thirds, walk around instead of turning on the spot, avoid blur, mirrors and "
    "bare walls; try --max_size 1600, or --cameras each if lenses or zoom changed"
)


@dataclass(frozen=True, kw_only=True)
class SfmSettings:
    """What to reconstruct and how."""

    photos: Path
    """Folder of photos, searched with its sub-folders, or a video file."""
    scene: Path
    """Folder to write."""
    max_size: int = 1000
    """Longer side in pixels of the photos that are matched and written. [ours]"""
    frames: int = 100
    """Frames taken from a video: the sharpest in each of as many equal stretches. [ours]"""
    matcher: Matcher = "exhaustive"
    """`exhaustive` compares all pairs of photos; `sequential` only near ones in the order of their names (video)."""
    cameras: Cameras = "shared"
    """`shared`: photos of one size have one lens; `each`: every photo its own (zoom, several devices)."""

    def __post_init__(self) -> None:
        if self.max_size < _MIN_SIZE:
            raise UserError(f"--max_size {self.max_size}: at least {_MIN_SIZE} px are needed to find features")
        if self.frames < MIN_REGISTERED:
            raise UserError(f"--frames {self.frames}: at least {MIN_REGISTERED} frames are needed")


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """One step of the way.

    Attributes:
        settings: Everything its result depends on, beyond the stage before it.
        outputs: Files that must exist for it to count as done.
        run: Does the work; returns facts for the report.
        leftovers: Paths to delete before it starts anew.
        continues: Whether an interrupted run can be taken up instead.
    """

    name: str
    settings: dict[str, Any]
    outputs: Sequence[Path]
    run: Callable[[Tick], dict[str, Any]]
    leftovers: Sequence[Path] = ()
    continues: bool = False


@dataclass(frozen=True, kw_only=True)
class _Ledger:
    """`stages.json`: per stage its key, whether it is done, its seconds and facts."""

    path: Path
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)

    def save(self) -> None:
        _write_json(self.path, self.entries)


def reconstruct(settings: SfmSettings, *, progress: StageProgress | None = None) -> dict[str, Any]:
    """Run the stages that are not done yet, write the scene and its report, and return the report.

    Raises:
        UserError: COLMAP is not installed, the photos cannot be read, too few of them fit together, or the scene folder
            holds images or a model of another origin.
    """
    colmap = load_pycolmap()
    _check_places(settings)
    work = settings.scene / WORK
    work.mkdir(parents=True, exist_ok=True)
    ledger = _read_ledger(work / "stages.json")
    _check_ownership(settings.scene, ledger)
    key = ""
    for stage in _stages(settings, colmap):
        key = hashlib.sha256(json.dumps([key, stage.settings]).encode()).hexdigest()[:16]
        _run_or_skip(stage, key, ledger, progress)
    report = sparse_report(settings.scene, work / "photos", ledger.entries)
    write_sparse_picture(settings.scene / PICTURE, settings.scene)
    _write_json(settings.scene / REPORT, report)
    return report


def load_pycolmap() -> ModuleType:
    """Return the module pycolmap, quiet and seeded.

    Raises:
        UserError: It is not installed, or does not load.
    """
    try:
        import pycolmap
    except ImportError as error:
        raise UserError(f'sfm needs pycolmap ({error}); pip install "unified-lift[sfm]"') from None
    pycolmap.logging.minloglevel = _ERRORS_ONLY
    pycolmap.set_random_seed(_SEED)
    return pycolmap


def _check_places(settings: SfmSettings) -> None:
    source, scene = settings.photos.resolve(), settings.scene.resolve()
    if source.is_dir() and (scene == source or source in scene.parents):
        raise UserError(f"-s {settings.scene}: lies inside the photos' folder; choose a scene folder beside it")
    if settings.scene.exists() and not settings.scene.is_dir():
        raise UserError(f"-s {settings.scene}: is a file; give a folder")


def _check_ownership(scene: Path, ledger: _Ledger) -> None:
    """Refuse to replace images or a model that an earlier run did not write."""
    if "undistortion" in ledger.entries:
        return
    for path in (scene / "images", scene / "sparse"):
        if path.exists():
            raise UserError(f"{path}: exists and was not made by sfm; choose another -s, or move it away")


def _read_ledger(path: Path) -> _Ledger:
    if not path.is_file():
        return _Ledger(path=path)
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        sound = isinstance(entries, dict) and all(isinstance(entry, dict) for entry in entries.values())
    except (OSError, ValueError):
        sound = False
    if not sound:
        raise UserError(f"{path}: not readable; delete the folder {path.parent}, all stages then run again")
    return _Ledger(path=path, entries=entries)


def _run_or_skip(stage: _Stage, key: str, ledger: _Ledger, progress: StageProgress | None) -> None:
    """Run a stage unless its result is there, and note in the ledger when it begins and ends."""

    def tick(done: int, total: int) -> None:
        if progress is not None:
            progress(stage.name, done, total)

    entry = ledger.entries.get(stage.name, {})
    same = entry.get("key") == key
    if same and entry["done"] and all(path.exists() for path in stage.outputs):
        tick(0, 0)
        return
    goes_on = same and stage.continues and not entry["done"]
    if not goes_on:
        for path in stage.leftovers:
            _remove(path)
    seconds = entry["seconds"] if goes_on else 0.0
    entry = {"key": key, "done": False, "seconds": seconds, "facts": {}}
    ledger.entries[stage.name] = entry
    ledger.save()
    start = time.perf_counter()
    try:
        entry["facts"] = stage.run(tick)
        entry["done"] = True
    except UserError:
        raise
    except (RuntimeError, ValueError) as error:
        cure = f"delete {ledger.path.parent} and run again; if that does not help, report it with this message"
        raise UserError(f"{ledger.path.parent}: COLMAP failed in {stage.name} ({error}); {cure}") from error
    finally:  # also when interrupted: matching that goes on later has taken both times together
        entry["seconds"] = round(seconds + time.perf_counter() - start, 1)
        ledger.save()


def _stages(settings: SfmSettings, colmap: ModuleType) -> Iterator[_Stage]:
    """Yield the stages in order; each sees what those before it have written."""
    scene, work = settings.scene, settings.scene / WORK
    photos, features, matches, model = work / "photos", work / "features.db", work / "matches.db", work / "model"
    partial = work / "photos.partial"
    yield _Stage(
        name="photos",
        settings=_photo_settings(settings),
        outputs=[photos],
        run=lambda tick: _prepare(settings, partial, photos, tick),
        leftovers=[partial],
    )
    yield _Stage(
        name="features",
        settings={"cameras": settings.cameras},
        outputs=[features],
        run=lambda tick: _extract(colmap, features, photos, settings.cameras, tick),
        leftovers=_database_files(features),
    )
    yield _Stage(
        name="matches",
        settings={"matcher": settings.matcher},
        outputs=[matches],
        run=lambda tick: _match(colmap, features, matches, settings.matcher, tick),
        leftovers=_database_files(matches),
        continues=True,  # pairs that are in the database are not matched again
    )
    yield _Stage(
        name="mapping",
        settings={},
        outputs=[model],
        run=lambda tick: _map(colmap, matches, photos, work / "mapping.partial", model, tick),
        leftovers=[work / "mapping.partial"],
    )
    yield _Stage(
        name="undistortion",
        settings={},
        outputs=[scene / "images", *(scene / "sparse/0" / f"{name}.bin" for name in ("cameras", "images", "points3D"))],
        run=lambda tick: _undistort(colmap, model, photos, work / "undistorted.partial", scene, tick),
        leftovers=[work / "undistorted.partial"],
    )


def _photo_settings(settings: SfmSettings) -> dict[str, Any]:
    """Return what the prepared photos depend on: size, choice, and which files there are."""
    common = {"max_size": settings.max_size}
    if is_video(settings.photos):
        return {**common, "frames": settings.frames, "files": [_stamp(settings.photos, settings.photos.parent)]}
    photos = list_photos(settings.photos)
    return {**common, "files": [_stamp(path, settings.photos) for path in photos]}


def _stamp(path: Path, folder: Path) -> list[Any]:
    status = path.stat()
    return [path.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns]


def _prepare(settings: SfmSettings, partial: Path, photos: Path, tick: Tick) -> dict[str, Any]:
    facts: dict[str, Any] = {"source": settings.photos.name}
    if is_video(settings.photos):
        facts["video_frames"] = write_sharp_frames(
            settings.photos, partial, count=settings.frames, max_size=settings.max_size, progress=tick
        )
    else:
        files = list_photos(settings.photos)
        write_photos(files, settings.photos, partial, max_size=settings.max_size, progress=tick)
    count = len(_prepared(partial))
    if count < MIN_REGISTERED:
        raise UserError(f"{settings.photos}: gives {count} photos, at least {MIN_REGISTERED} are needed; {_CURES}")
    _replace(partial, photos)
    return {**facts, "count": count, "max_size": settings.max_size}


def _extract(colmap: ModuleType, database: Path, photos: Path, cameras: Cameras, tick: Tick) -> dict[str, Any]:
    """Find features; photos of one size are one call, because a shared camera has one size."""
    names = _prepared(photos)
    groups: dict[tuple[int, int], list[str]] = defaultdict(list)
    for name in names:
        groups[image_size(photos / name)].append(name)
    mode = colmap.CameraMode.SINGLE if cameras == "shared" else colmap.CameraMode.PER_IMAGE
    with _watching(database, "keypoints", len(names), tick):
        for group in groups.values():
            colmap.extract_features(str(database), str(photos), group, mode)
    return {"cameras": cameras, "sizes": [f"{width}x{height}" for width, height in groups]}


def _match(colmap: ModuleType, features: Path, database: Path, matcher: Matcher, tick: Tick) -> dict[str, Any]:
    if not database.exists():
        partial = database.with_name(database.name + ".partial")
        _remove(partial)
        _copy_database(features, partial)
        partial.replace(database)
    pairs = num_pairs(_rows(features, "images"), matcher)
    with _watching(database, "two_view_geometries", pairs, tick):
        if matcher == "exhaustive":
            options = colmap.ExhaustivePairingOptions()
            options.block_size = _BLOCK_SIZE
            colmap.match_exhaustive(str(database), pairing_options=options)
        else:
            colmap.match_sequential(str(database))
    return {"matcher": matcher, "pairs": _rows(database, "two_view_geometries")}


def num_pairs(count: int, matcher: Matcher) -> int:
    """Return how many pairs of `count` photos are matched."""
    if matcher == "exhaustive":
        return count * (count - 1) // 2
    distances = {*range(1, _OVERLAP + 1), *(2**power for power in range(_OVERLAP))}
    return sum(max(0, count - distance) for distance in distances)


def _map(colmap: ModuleType, database: Path, photos: Path, partial: Path, model: Path, tick: Tick) -> dict[str, Any]:
    """Estimate poses and points; the largest of the models found stays."""
    partial.mkdir()
    total, calls = len(_prepared(photos)), 0

    def registered_one() -> None:
        nonlocal calls
        calls += 1
        tick(min(calls + 1, total), total)  # the first call stands for the first pair

    colmap.incremental_mapping(
        str(database),
        str(photos),
        str(partial),
        initial_image_pair_callback=registered_one,
        next_image_callback=registered_one,
    )
    sizes = {folder: len(read_images(folder / "images.bin")) for folder in partial.iterdir() if folder.is_dir()}
    best = max(sizes, key=lambda folder: sizes[folder], default=None)
    if best is None or sizes[best] < MIN_REGISTERED:
        found = sizes[best] if best is not None else 0
        raise UserError(f"{photos}: only {found} of {total} photos fit together; {_CURES}")
    tick(sizes[best], total)
    _replace(best, model)
    _remove(partial)
    return {"models": sorted(sizes.values(), reverse=True)}


def _undistort(colmap: ModuleType, model: Path, photos: Path, partial: Path, scene: Path, tick: Tick) -> dict[str, Any]:
    """Write pinhole photos and their model, and put both in place."""
    tick(0, 1)
    colmap.undistort_images(str(partial), str(model), str(photos))
    _replace(partial / "images", scene / "images")
    (partial / "model").mkdir()
    _replace(partial / "sparse", partial / "model" / "0")  # COLMAP writes the tables without the folder 0
    _replace(partial / "model", scene / "sparse")
    _remove(partial)
    tick(1, 1)
    return {}


@contextmanager
def _watching(database: Path, table: str, total: int, tick: Tick) -> Iterator[None]:
    """Report the rows of a table while COLMAP fills it: it says nothing itself.

    Another process looks. COLMAP brings its own copy of SQLite, and a file that two copies in one process have open is
    unlocked by whichever closes it first: the other then writes to memory that is gone.
    """
    counter = subprocess.Popen(
        [sys.executable, "-I", "-c", _COUNTER, database.absolute().as_uri(), table, str(_POLL_S)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # Ctrl-C is for us; we end it
    )

    def look() -> None:
        assert counter.stdout is not None
        for line in counter.stdout:
            tick(min(int(line), total), total)

    tick(0, total)
    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        counter.kill()
        watcher.join()
        counter.wait()
        counter.stdout.close()
    tick(total, total)


def _rows(database: Path, table: str) -> int:
    """Return the rows of a table, 0 as long as it is not there; for a database that COLMAP does not have open."""
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            return connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]
    except sqlite3.Error:  # being created
        return 0


def _copy_database(source: Path, target: Path) -> None:
    """Copy through SQLite: part of a database may still stand in its write-ahead log."""
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)


def _database_files(database: Path) -> list[Path]:
    return [database.with_name(database.name + end) for end in ("", "-wal", "-shm")]


def _prepared(folder: Path) -> list[str]:
    return sorted(photo_name(path, folder) for path in folder.rglob("*.jpg"))


def _replace(source: Path, target: Path) -> None:
    """Put a finished folder into the place of an older one."""
    _remove(target)
    source.rename(target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_json(path: Path, content: object) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
    partial.replace(path)
