"""Structure from motion through COLMAP: photos or a video in, an undistorted scene with poses and points out.

    <scene>/images/, sparse/0/     what train.py reads
    <scene>/sfm_report.json, sfm_sparse.png
    <scene>/sfm/                   work folder: photos/, features.db, matches.db, model/, stages.json

Each stage leaves its result in the work folder with a key of all settings that led to it, so that a second call repeats
only what was not finished or is asked for with other settings.
"""

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
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from tqdm import tqdm

from unified_lift.capture.frames import is_video, list_photos, photo_name, write_photos, write_sharp_frames
from unified_lift.capture.sfm_report import sparse_report, write_sparse_picture
from unified_lift.data.colmap_io import read_images
from unified_lift.data.images import Progress, image_size
from unified_lift.errors import UserError
from unified_lift.fileio import read_json, replacing, write_json
from unified_lift.progress import progress_bar

Facts = dict[str, Any]
Work = Callable[[Progress], Facts]
"""Does a stage, given what to call with (done, total); returns facts for the report."""

STAGES = {
    "photos": "prepare photos",
    "features": "find features",
    "matches": "match photos",
    "mapping": "place cameras",
    "undistortion": "undistort",
}
MIN_REGISTERED = 3  # two views give points, but no scene that could be trained
REPORT, PICTURE, WORK = "sfm_report.json", "sfm_sparse.png", "sfm"
_MIN_SIZE = 64
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
_ADVICE = (
    "take more photos that overlap by two thirds, walk around instead of turning on the spot, avoid blur, mirrors and "
    "bare walls; try --max_size 1600, or --cameras each if lenses or zoom changed"
)


@dataclass(frozen=True, kw_only=True)
class SfmSettings:
    """What to reconstruct and how."""

    photos: Path
    """Folder of photos, searched with its sub-folders, or a video file."""
    source_path: Path
    """Scene folder to write (-s)."""
    max_size: int = 1000
    """Longer side in pixels of the photos that are matched and written. [ours]"""
    frames: int = 100
    """Frames taken from a video: the sharpest in each of as many equal stretches. [ours]"""
    matcher: Literal["exhaustive", "sequential"] = "exhaustive"
    """`exhaustive` compares all pairs; `sequential` only photos with near names: quicker for long videos."""
    cameras: Literal["shared", "each"] = "shared"
    """`shared`: photos of one size have one lens; `each`: every photo its own (zoom, several devices)."""
    quiet: bool = False
    """No progress bars."""


def reconstruct(settings: SfmSettings) -> dict[str, Any]:
    """Run the stages that are not done yet, write the scene and its report, and return the report.

    Raises:
        UserError: A setting makes no sense, COLMAP is not installed, the photos cannot be read, too few of them fit
            together, or the scene folder holds images or a model of another origin.
    """
    _check(settings)
    colmap = load_pycolmap()
    scene, work = settings.source_path, settings.source_path / WORK
    photos, features, matches, model = work / "photos", work / "features.db", work / "matches.db", work / "model"
    new_photos, new_model, undistorted = (work / f"{name}.partial" for name in ("photos", "mapping", "undistorted"))
    work.mkdir(parents=True, exist_ok=True)
    cache = _StageCache(work / "stages.json", quiet=settings.quiet)
    for path in (scene / "images", scene / "sparse"):
        if "undistortion" not in cache.entries and path.exists():
            raise UserError(f"{path}: exists and was not made by sfm; choose another -s, or move it away")
    prepare = partial(_prepare, settings, new_photos, photos)
    extract = partial(_extract, colmap, features, photos, settings.cameras)
    match = partial(_match, colmap, features, matches, settings.matcher)
    place = partial(_map, colmap, matches, photos, new_model, model)
    undistort = partial(_undistort, colmap, model, photos, undistorted, scene)
    tables = [scene / "sparse/0" / f"{name}.bin" for name in ("cameras", "images", "points3D")]
    cache.run("photos", prepare, _photo_settings(settings), [photos], [new_photos])
    cache.run("features", extract, {"cameras": settings.cameras}, [features], _database_files(features))
    cache.run("matches", match, {"matcher": settings.matcher}, [matches], _database_files(matches))
    cache.run("mapping", place, {}, [model], [new_model])
    cache.run("undistortion", undistort, {}, [scene / "images", *tables], [undistorted])
    report = sparse_report(scene, photos, cache.entries)
    write_sparse_picture(scene / PICTURE, scene)
    write_json(scene / REPORT, report)
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
    pycolmap.logging.minloglevel = 2  # errors: warnings about memory and threads concern larger photos than ours
    pycolmap.set_random_seed(0)
    return pycolmap


def _check(settings: SfmSettings) -> None:
    if settings.max_size < _MIN_SIZE:
        raise UserError(f"--max_size {settings.max_size}: at least {_MIN_SIZE} px are needed to find features")
    if settings.frames < MIN_REGISTERED:
        raise UserError(f"--frames {settings.frames}: at least {MIN_REGISTERED} frames are needed")
    source, scene = settings.photos.resolve(), settings.source_path.resolve()
    if source.is_dir() and (scene == source or source in scene.parents):
        raise UserError(f"-s {settings.source_path}: lies inside the photos' folder; choose a scene folder beside it")
    if scene.exists() and not scene.is_dir():
        raise UserError(f"-s {settings.source_path}: is a file; give a folder")


class _StageCache:
    """The stages that were run, in `stages.json`: the key of each, whether it is done, its seconds and facts."""

    def __init__(self, path: Path, *, quiet: bool) -> None:
        self.path, self._quiet, self._key = path, quiet, ""
        self.entries: dict[str, Facts] = {}
        if path.is_file():
            with suppress(UserError):
                self.entries = read_json(path)
            if not self.entries or not all(isinstance(entry, dict) for entry in self.entries.values()):
                raise UserError(f"{path}: not readable; delete the folder {path.parent}, all stages then run again")

    def run(self, name: str, work: Work, settings: Facts, outputs: Sequence[Path], leftovers: Sequence[Path]) -> None:
        """Run a stage unless its result is there, and note when it begins and ends.

        `settings` are all that its result depends on beyond the stage before it. It counts as done if its `outputs`
        exist; `leftovers` are deleted before it starts anew.
        """
        self._key = hashlib.sha256(json.dumps([self._key, settings]).encode()).hexdigest()[:16]
        label = f"{list(STAGES).index(name) + 1}/{len(STAGES)} {STAGES[name]:<14}"
        before = self.entries.get(name, {})
        is_same = before.get("key") == self._key
        if is_same and before["done"] and all(path.exists() for path in outputs):
            if not self._quiet:
                tqdm.write(f"{label}: there already")
            return
        goes_on = is_same and name == "matches" and not before["done"]  # pairs in the database are not matched again
        for path in () if goes_on else leftovers:
            _remove(path)
        seconds = before["seconds"] if goes_on else 0.0
        entry = self.entries[name] = {"key": self._key, "done": False, "seconds": seconds, "facts": {}}
        write_json(self.path, self.entries)
        start = time.perf_counter()
        try:
            with progress_bar(label, quiet=self._quiet) as progress:
                entry["facts"] = work(progress)
            entry["done"] = True
        except UserError:
            raise
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"{self.path.parent}: COLMAP failed in {name} ({error}); delete {self.path.parent} and run again; if "
                "that does not help, report it with this message"
            ) from error
        finally:  # also when interrupted: matching that goes on later has taken both times together
            entry["seconds"] = round(seconds + time.perf_counter() - start, 1)
            write_json(self.path, self.entries)


def _photo_settings(settings: SfmSettings) -> dict[str, Any]:
    """Return what the prepared photos depend on: size, choice, and which files there are."""
    source, video = settings.photos, is_video(settings.photos)
    files = [source] if video else list_photos(source)
    names = [path.relative_to(source.parent if video else source).as_posix() for path in files]
    stamps = [[name, path.stat().st_size, path.stat().st_mtime_ns] for name, path in zip(names, files, strict=True)]
    return {"max_size": settings.max_size, **({"frames": settings.frames} if video else {}), "files": stamps}


def _prepare(settings: SfmSettings, scratch: Path, photos: Path, progress: Progress) -> Facts:
    source, max_size = settings.photos, settings.max_size
    facts: Facts = {"source": source.name}
    if is_video(source):
        facts["video_frames"] = write_sharp_frames(source, scratch, settings.frames, max_size, progress)
    else:
        write_photos(list_photos(source), source, scratch, max_size=max_size, progress=progress)
    count = len(_prepared(scratch))
    if count < MIN_REGISTERED:
        raise UserError(f"{source}: gives {count} photos, at least {MIN_REGISTERED} are needed; {_ADVICE}")
    _replace(scratch, photos)
    return {**facts, "count": count, "max_size": max_size}


def _extract(colmap: ModuleType, database: Path, photos: Path, cameras: str, progress: Progress) -> Facts:
    """Find features; photos of one size are one call, because a shared camera has one size."""
    names = _prepared(photos)
    groups: dict[tuple[int, int], list[str]] = defaultdict(list)
    for name in names:
        groups[image_size(photos / name)].append(name)
    mode = colmap.CameraMode.SINGLE if cameras == "shared" else colmap.CameraMode.PER_IMAGE
    with watched(database, "keypoints", len(names), progress):
        for group in groups.values():
            colmap.extract_features(str(database), str(photos), group, mode)
    return {"cameras": cameras, "sizes": [f"{width}x{height}" for width, height in groups]}


def _match(colmap: ModuleType, features: Path, database: Path, matcher: str, progress: Progress) -> Facts:
    if not database.exists():
        with replacing(database) as partial:
            # Through SQLite: part of a database may still be in its write-ahead log.
            with closing(sqlite3.connect(features)) as old, closing(sqlite3.connect(partial)) as new:
                old.backup(new)
    with watched(database, "two_view_geometries", num_pairs(_count(features, "images"), matcher), progress):
        if matcher == "exhaustive":
            options = colmap.ExhaustivePairingOptions()
            options.block_size = _BLOCK_SIZE
            colmap.match_exhaustive(str(database), pairing_options=options)
        else:
            colmap.match_sequential(str(database))
    return {"matcher": matcher, "pairs": _count(database, "two_view_geometries")}


def num_pairs(count: int, matcher: str) -> int:
    """Return how many pairs of `count` photos are matched."""
    if matcher == "exhaustive":
        return count * (count - 1) // 2
    distances = {*range(1, _OVERLAP + 1), *(2**power for power in range(_OVERLAP))}
    return sum(max(0, count - distance) for distance in distances)


def _map(colmap: ModuleType, database: Path, photos: Path, scratch: Path, model: Path, progress: Progress) -> Facts:
    """Estimate poses and points; the largest of the models found stays."""
    scratch.mkdir()
    total, calls = len(_prepared(photos)), 0

    def registered_one() -> None:
        nonlocal calls
        calls += 1
        progress(min(calls + 1, total), total)  # the first call is for the first pair

    callbacks = dict.fromkeys(["initial_image_pair_callback", "next_image_callback"], registered_one)
    colmap.incremental_mapping(str(database), str(photos), str(scratch), **callbacks)
    sizes = {folder: len(read_images(folder / "images.bin")) for folder in scratch.iterdir() if folder.is_dir()}
    found = max(sizes.values(), default=0)
    if found < MIN_REGISTERED:
        raise UserError(f"{photos}: only {found} of {total} photos fit together; {_ADVICE}")
    progress(found, total)
    _replace(max(sizes, key=lambda folder: sizes[folder]), model)
    _remove(scratch)
    return {"models": sorted(sizes.values(), reverse=True)}


def _undistort(colmap: ModuleType, model: Path, photos: Path, scratch: Path, scene: Path, progress: Progress) -> Facts:
    progress(0, 1)
    colmap.undistort_images(str(scratch), str(model), str(photos))
    _replace(scratch / "images", scene / "images")
    (scratch / "model").mkdir()
    _replace(scratch / "sparse", scratch / "model" / "0")  # COLMAP writes the tables without the folder 0
    _replace(scratch / "model", scene / "sparse")
    _remove(scratch)
    progress(1, 1)
    return {}


@contextmanager
def watched(database: Path, table: str, total: int, progress: Progress) -> Iterator[None]:
    """Report how many rows a table has while COLMAP fills it: it says nothing itself.

    Another process looks. COLMAP brings its own copy of SQLite, and a file that two copies in one process have open is
    unlocked by whichever closes it first: the other then writes to memory that is gone.
    """
    command = [sys.executable, "-I", "-c", _COUNTER, database.absolute().as_uri(), table, str(_POLL_S)]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    progress(0, total)
    with subprocess.Popen(command, start_new_session=True, **pipes) as counter:  # Ctrl-C is for us; we end it

        def look() -> None:
            for line in counter.stdout or ():
                progress(min(int(line), total), total)

        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            counter.kill()
            watcher.join()
    progress(total, total)


def _count(database: Path, table: str) -> int:
    """Return the rows of a table of a database that COLMAP does not have open."""
    with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        return connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]


def _database_files(database: Path) -> list[Path]:
    return [database.with_name(database.name + end) for end in ("", "-wal", "-shm")]


def _prepared(folder: Path) -> list[str]:
    return sorted(photo_name(path, folder) for path in folder.rglob("*.jpg"))


def _replace(source: Path, target: Path) -> None:
    _remove(target)
    source.rename(target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
