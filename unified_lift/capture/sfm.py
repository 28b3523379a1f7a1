"""Structure from motion through COLMAP: photos or a video in, an undistorted scene with poses and points out.

`images/` and `sparse/0/` of the scene are what train.py reads. `sfm/` is the work folder: each stage leaves its result
there with a key of all settings that led to it, so that a second call repeats only what is not there yet.
"""

import hashlib
import itertools
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
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm
from tyro.conf import Positional

from unified_lift.capture.frames import is_video, list_photos, photo_name, write_photos, write_sharp_frames
from unified_lift.capture.sfm_report import sparse_report
from unified_lift.data.colmap_tables import read_images
from unified_lift.data.images import Progress, image_size
from unified_lift.errors import UserError
from unified_lift.fileio import read_json, replacing, replacing_folder, write_json
from unified_lift.progress import progress_bar

Facts = dict[str, Any]
Work = Callable[[Path, Progress], Facts]  # does a stage, given a scratch folder; returns facts for the report

MIN_REGISTERED = 3  # two views give points, but no scene that could be trained
REPORT, PICTURE = "sfm_report.json", "sfm_sparse.png"
_COUNTER = """
import os, sqlite3, sys, time
(place, table), parent = sys.argv[1:], os.getppid()
while os.getppid() == parent:
    try:
        connection = sqlite3.connect(place + "?mode=ro", uri=True)
        print(connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0], flush=True)
        connection.close()
    except sqlite3.Error:  # being created
        pass
    time.sleep(0.5)
"""
_BLOCK_SIZE = 10  # photos; Ctrl-C is heard only between blocks of this size squared [COLMAP: 50]
_OVERLAP = 10  # neighbours each frame is matched with, and as many at distances 1, 2, 4, ... [COLMAP]
_ADVICE = (
    "take more photos that overlap by two thirds, walk around instead of turning on the spot, avoid blur, mirrors and "
    "bare walls; try --max_size 1600, or --cameras each if lenses or zoom changed"
)


@dataclass(frozen=True, kw_only=True)
class SfmSettings:
    """Find the camera poses of your photos or of a video's sharp frames, and write a scene that train.py reads.

    Example: unified-lift sfm holiday/photos -s scenes/holiday
    """

    photos: Positional[Path]
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


def reconstruct(settings: SfmSettings) -> Facts:
    """Run the stages that are not done yet, write the scene and its report, and return the report.

    A UserError says that a setting makes no sense, COLMAP is not installed, photos cannot be read, too few of them fit
    together, or the scene folder holds images or a model of another origin.
    """
    source, scene = settings.photos.resolve(), settings.source_path.resolve()
    is_inside = source.is_dir() and (scene == source or source in scene.parents)
    given = f"-s {settings.source_path}:"
    for is_wrong, message in (
        (settings.max_size < 64, f"--max_size {settings.max_size}: at least 64 px are needed to find features"),
        (settings.frames < MIN_REGISTERED, f"--frames {settings.frames}: at least {MIN_REGISTERED} frames are needed"),
        (is_inside, f"{given} lies inside the photos' folder; choose a scene folder beside it"),
        (scene.exists() and not scene.is_dir(), f"{given} is a file; give a folder"),
    ):
        if is_wrong:
            raise UserError(message)
    try:
        import pycolmap
    except ImportError as error:
        raise UserError(f'sfm needs pycolmap ({error}); pip install "unified-lift[sfm]"') from None
    pycolmap.logging.minloglevel = 2  # errors: warnings about memory and threads concern larger photos than ours
    pycolmap.set_random_seed(0)
    run = _Reconstruction(settings, pycolmap)
    run.all_stages()
    report = sparse_report(run.scene, run.photos, run.entries, run.scene / PICTURE)
    write_json(run.scene / REPORT, report)
    return report


class _Reconstruction:
    """A scene in the making. `entries` is `stages.json`: the key of each stage, whether it is done, seconds, facts."""

    def __init__(self, settings: SfmSettings, colmap: Any) -> None:
        self.settings, self.colmap, self.scene = settings, colmap, settings.source_path
        self.work = work = self.scene / "sfm"
        self.photos, self.features, self.matches = work / "photos", work / "features.db", work / "matches.db"
        self.model = work / "model"
        self.work.mkdir(parents=True, exist_ok=True)
        self.key, self.stages = "", self.work / "stages.json"
        self.entries: dict[str, Facts] = {}
        if self.stages.is_file():
            with suppress(UserError):
                self.entries = read_json(self.stages)
            if not self.entries or not all(isinstance(entry, dict) for entry in self.entries.values()):
                fix = f"delete the folder {self.work}, all stages then run again"
                raise UserError(f"{self.stages}: not readable; {fix}")
        for path in (self.scene / "images", self.scene / "sparse"):
            if "undistortion" not in self.entries and path.exists():
                raise UserError(f"{path}: exists and was not made by sfm; choose another -s, or move it away")

    def all_stages(self) -> None:
        """Run the stages in their order; each is given the settings that its result depends on beyond earlier ones."""
        wanted = self.settings
        source, video = wanted.photos, is_video(wanted.photos)
        files = [source] if video else list_photos(source)
        names = [path.relative_to(source.parent if video else source).as_posix() for path in files]
        stamps = [[name, path.stat().st_size, path.stat().st_mtime_ns] for name, path in zip(names, files, strict=True)]
        taken = {"max_size": wanted.max_size, **({"frames": wanted.frames} if video else {}), "files": stamps}
        tables = [self.scene / "sparse/0" / f"{name}.bin" for name in ("cameras", "images", "points3D")]
        self._run("photos", "1/5 prepare photos", self._prepare, taken, [self.photos])
        self._run("features", "2/5 find features ", self._extract, {"cameras": wanted.cameras}, [self.features])
        self._run("matches", "3/5 match photos  ", self._match, {"matcher": wanted.matcher}, [self.matches])
        self._run("mapping", "4/5 place cameras ", self._map, {}, [self.model])
        self._run("undistortion", "5/5 undistort     ", self._undistort, {}, [self.scene / "images", *tables])

    def _run(self, name: str, label: str, work: Work, settings: Facts, outputs: Sequence[Path]) -> None:
        """Run a stage unless it was run with these settings and its outputs exist; note when it begins and ends."""
        self.key = hashlib.sha256(json.dumps([self.key, settings]).encode()).hexdigest()[:16]
        before = self.entries.get(name, {})
        is_same = before.get("key") == self.key
        if is_same and before["done"] and all(path.exists() for path in outputs):
            if not self.settings.quiet:
                tqdm.write(f"{label}: there already")
            return
        scratch = self.work / f"{name}.partial"
        goes_on = is_same and name == "matches" and not before["done"]  # pairs in the database are not matched again
        if not goes_on:
            databases = [path for path in outputs if path.suffix == ".db"]
            leftovers = [path.with_name(path.name + end) for path in databases for end in ("", "-wal", "-shm")]
            for path in (scratch, *leftovers):
                _remove(path)
        seconds = before["seconds"] if goes_on else 0.0
        entry = self.entries[name] = {"key": self.key, "done": False, "seconds": seconds, "facts": {}}
        write_json(self.stages, self.entries)
        start = time.perf_counter()
        try:
            with progress_bar(label, quiet=self.settings.quiet) as progress:
                entry["facts"] = work(scratch, progress)
            entry["done"] = True
        except UserError:
            raise
        except (RuntimeError, ValueError) as error:
            fix = f"delete {self.work} and run again; if that does not help, report it with this message"
            raise UserError(f"{self.work}: COLMAP failed in {name} ({error}); {fix}") from error
        finally:  # also when interrupted: matching that goes on later has taken both times together
            entry["seconds"] = round(seconds + time.perf_counter() - start, 1)
            write_json(self.stages, self.entries)

    def _prepare(self, scratch: Path, progress: Progress) -> Facts:
        source, max_size = self.settings.photos, self.settings.max_size
        facts: Facts = {"source": source.name}
        if is_video(source):
            facts["video_frames"] = write_sharp_frames(source, scratch, self.settings.frames, max_size, progress)
        else:
            write_photos(list_photos(source), source, scratch, max_size, progress)
        count = len(_prepared(scratch))
        if count < MIN_REGISTERED:
            raise UserError(f"{source}: gives {count} photos, at least {MIN_REGISTERED} are needed; {_ADVICE}")
        _replace(scratch, self.photos)
        return {**facts, "count": count, "max_size": max_size}

    def _extract(self, scratch: Path, progress: Progress) -> Facts:
        """Find features; photos of one size are one call, because a shared camera has one size."""
        cameras, modes = self.settings.cameras, self.colmap.CameraMode
        mode = modes.SINGLE if cameras == "shared" else modes.PER_IMAGE
        groups: dict[tuple[int, int], list[str]] = defaultdict(list)
        for name in _prepared(self.photos):
            groups[image_size(self.photos / name)].append(name)
        with watched(self.features, "keypoints", sum(map(len, groups.values())), progress):
            for group in groups.values():
                self.colmap.extract_features(str(self.features), str(self.photos), group, mode)
        return {"cameras": cameras, "sizes": [f"{width}x{height}" for width, height in groups]}

    def _match(self, scratch: Path, progress: Progress) -> Facts:
        database, matcher = self.matches, self.settings.matcher
        if not database.exists():
            with replacing(database) as partial:
                # Through SQLite: part of a database may still be in its write-ahead log.
                with closing(sqlite3.connect(self.features)) as old, closing(sqlite3.connect(partial)) as new:
                    old.backup(new)
        with watched(database, "two_view_geometries", num_pairs(len(_prepared(self.photos)), matcher), progress):
            if matcher == "exhaustive":
                options = self.colmap.ExhaustivePairingOptions()
                options.block_size = _BLOCK_SIZE
                self.colmap.match_exhaustive(str(database), pairing_options=options)
            else:
                self.colmap.match_sequential(str(database))
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            pairs = connection.execute("SELECT COUNT(*) FROM two_view_geometries").fetchone()[0]
        return {"matcher": matcher, "pairs": pairs}

    def _map(self, scratch: Path, progress: Progress) -> Facts:
        """Estimate poses and points; the largest of the models found stays."""
        scratch.mkdir()
        total, placed = len(_prepared(self.photos)), itertools.count(2)  # the first call is for the first pair
        names = ("initial_image_pair_callback", "next_image_callback")
        callbacks = dict.fromkeys(names, lambda: progress(min(next(placed), total), total))
        self.colmap.incremental_mapping(str(self.matches), str(self.photos), str(scratch), **callbacks)
        sizes = {folder: len(read_images(folder / "images.bin")) for folder in scratch.iterdir() if folder.is_dir()}
        found = max(sizes.values(), default=0)
        if found < MIN_REGISTERED:
            raise UserError(f"{self.photos}: only {found} of {total} photos fit together; {_ADVICE}")
        progress(found, total)
        _replace(max(sizes, key=lambda folder: sizes[folder]), self.model)
        _remove(scratch)
        return {"models": sorted(sizes.values(), reverse=True)}

    def _undistort(self, scratch: Path, progress: Progress) -> Facts:
        progress(0, 1)
        self.colmap.undistort_images(str(scratch), str(self.model), str(self.photos))
        with replacing_folder(self.scene, outdated=("images", "sparse")) as new:  # photos and poses fit each other
            (scratch / "images").rename(new / "images")
            (new / "sparse").mkdir()
            (scratch / "sparse").rename(new / "sparse" / "0")  # COLMAP writes the tables without the folder 0
        _remove(scratch)
        progress(1, 1)
        return {}


def num_pairs(count: int, matcher: str) -> int:
    """Return how many pairs of `count` photos are matched."""
    if matcher == "exhaustive":
        return count * (count - 1) // 2
    distances = {*range(1, _OVERLAP + 1), *(2**power for power in range(_OVERLAP))}
    return sum(max(0, count - distance) for distance in distances)


@contextmanager
def watched(database: Path, table: str, total: int, progress: Progress) -> Iterator[None]:
    """Report how many rows a table has while COLMAP fills it: it says nothing itself.

    Another process looks. COLMAP brings its own copy of SQLite, and a file that two copies in one process have open is
    unlocked by whichever closes it first: the other then writes to memory that is gone.
    """
    command = [sys.executable, "-I", "-c", _COUNTER, database.absolute().as_uri(), table]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    progress(0, total)

    def look() -> None:
        for line in counter.stdout or ():
            progress(min(int(line), total), total)

    with subprocess.Popen(command, start_new_session=True, **pipes) as counter:  # Ctrl-C is for us; we end it
        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            counter.kill()
            watcher.join()
    progress(total, total)


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
