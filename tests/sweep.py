"""Every operation of a command on the disk fails once, or kills the process: `python -m tests.sweep FOLDER`."""

import argparse
import builtins
import errno
import io
import os
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from tests.bench.conftest import finish
from tests.cli.test_train import SHORT
from tests.data.fixtures import write_dataset
from tests.data.fixtures.floor import floor_photos, orbit
from tests.fake_pycolmap import FakeColmap
from tests.folders import contents
from tests.saved_model import save_model
from unified_lift import fileio
from unified_lift.bench import run as bench_run
from unified_lift.cli import bench, demo
from unified_lift.cli.main import COMMANDS, main
from unified_lift.data.images import write_image
from unified_lift.synthetic.scene import SyntheticSettings

CALLS = ("rename", "replace", "unlink", "rmdir", "mkdir", "link")
ERRORS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "EROFS": errno.EROFS}
MODES = ("kill", *ERRORS)
TRAIN = ["train", *SHORT, "--checkpoint-interval", "4"]


class Disk:
    """Counts what changes a folder, and at number `limit` does `action`."""

    def __init__(
        self, root: Path, limit: int, action: Callable[[], None], patch: Callable[[Any, str, Any], None] = setattr
    ) -> None:
        self.root, self.count, self.limit, self.action = str(root), 0, limit, action
        for name in CALLS:
            patch(os, name, self._counted(getattr(os, name), lambda *_, **__: True))
        patch(
            os, "open", self._counted(os.open, lambda flags, *_, **__: flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        )
        opened = self._counted(open, lambda mode="r", *_, **__: set(mode) & set("wax+"))
        patch(builtins, "open", opened)
        patch(io, "open", opened)

    def _counted(self, call, changes):
        def wrapped(path, *args, **kwargs):
            named = isinstance(path, str | Path) and os.path.abspath(path).startswith(self.root)
            if (named or kwargs.get("dir_fd") is not None) and changes(*args, **{**kwargs, "dir_fd": None}):
                self.count += 1
                if self.count == self.limit:
                    self.action()
            return call(path, *args, **kwargs)

        return wrapped


class Trial(NamedTuple):
    limit: int
    status: int  # exit code, -9 if killed
    said: str


class Task(NamedTuple):
    """A command, and what it makes or replaces. `@` in its words stands for the folder that all is in."""

    words: str
    target: str  # folder
    earlier: tuple[str, ...] = ()  # commands before it, which make the old
    parts: str = ""  # files that are each old or new by themselves; "" = all of them together are
    between: str = ""  # files that only a run that is not through has
    without: tuple[str, ...] = ()  # folders and files of the target that are no result
    enter: Callable[[], object] = bool  # puts something quick in the place of what is slow


def quick_demo() -> None:
    """Let the demo only make its scene, a small one: the rest are other commands."""
    demo.train_main = demo.render_main = demo.eval_main = lambda argv, **how: 0
    small = {"num_views": 5, "width": 32, "height": 24, "num_points": 300, "num_objects": 3}
    demo.SyntheticSettings = partial(SyntheticSettings, **small)


def quick_bench() -> None:
    """Let a benchmark find that each command has left what it was to leave, and that none takes time."""

    class Pool(bench_run.LocalPool):
        def submit(self, job):
            done: Future[Any] = Future()
            done.set_result(bench_run.run_job(job, lambda *_: finish(job) or 0))
            return done

    start, bench_run.time = bench.bench_main, SimpleNamespace(perf_counter=float, sleep=time.sleep)
    bench.bench_main = lambda argv: start(argv, Pool(1))


def colmap() -> None:
    sys.modules["pycolmap"] = FakeColmap()


PLY = "@/twin/point_cloud/iteration_40/point_cloud.ply"
EDIT, IMPORT = "edit -m @/twin --remove 2 --out", f"import-edit -m @/twin --ply {PLY} --out"
EXPORT = "export -m @/twin --objects 1 scene --format ply,splat,spz,html,points,labels --out @/out --quiet"
MASKS = "masks -s @/scene --out made --provider regions --jobs 1 --quiet --min-area 4"
RENDER = "render -m @/twin --skip_train --quiet"
TRAINED = f"{' '.join(TRAIN)} -s @/scene -m @/model"
SFM, DEMO = "sfm @/photos -s @/made --quiet", "demo --out @/demo"
BENCH = "bench --table rooms --data @/rooms --out @/out --methods unified_lift --seeds 0 --iterations 12"
TASKS = {
    "edit to a new folder": Task(f"{EDIT} @/out", "out"),
    "edit in place": Task(f"{EDIT} @/twin --overwrite", "twin"),
    "import-edit to a new folder": Task(f"{IMPORT} @/out", "out"),
    "import-edit in place": Task(f"{IMPORT} @/twin --overwrite", "twin"),
    "export": Task(EXPORT, "out"),
    "export again": Task(EXPORT, "out", earlier=(EXPORT.replace(" 1 scene", " 2 scene"),)),
    "render": Task(f"{RENDER} --no-video", "twin", parts=".*"),
    "render a video": Task(f"{RENDER} --skip_test --video_seconds 0.1", "twin", parts=".*"),
    "eval": Task("eval -m @/twin --quiet", "twin", parts=".*"),
    "query": Task("query -m @/twin --list --out @/out", "out", parts=".*"),
    "masks": Task(MASKS, "scene", parts=".*", between=".*masks.json"),
    "masks again": Task(f"{MASKS[:-1]}9 --overwrite", "scene", earlier=(MASKS,), parts=".*", between=".*masks.json"),
    "train": Task(f"{TRAINED} --resume auto", "model", parts=".*", between=r"chkpnt\d+.pth|metrics.jsonl"),
    "train again": Task(f"{TRAINED} --overwrite --seed 1", "model", earlier=(TRAINED,), between=".*"),
    "train goes on": Task(
        f"{TRAINED} --resume auto --lift_iterations 14",
        "model",
        earlier=(f"{TRAINED} --resume auto",),
        parts=".*",
        between=r"chkpnt\d+.pth|metrics.jsonl",
    ),
    "demo": Task(DEMO, "demo_scene", enter=quick_demo),
    "demo again": Task(f"{DEMO} --seed 1", "demo_scene", earlier=(DEMO,), enter=quick_demo),
    "sfm": Task(SFM, "made", without=("sfm",), parts=r"sfm_\w+.\w+", enter=colmap),
    "sfm again": Task(
        f"{SFM} --max_size 64", "made", earlier=(SFM,), without=("sfm",), parts=r"sfm_\w+.\w+", enter=colmap
    ),
    "bench": Task(BENCH, "out", parts=".*", between=".*cell.json", without=("log.txt",), enter=quick_bench),
}
NAMES = tuple(TASKS)


class Sweep:
    """A command, and the folder of files that it makes or replaces."""

    def __init__(self, work: Path, name: str) -> None:
        self.name, self.task = name, TASKS[name]
        self.root, self.start = work / "now", work / "start"
        shutil.rmtree(work, ignore_errors=True)
        self.start.mkdir(parents=True)
        words = " ".join((self.task.words, *self.task.earlier))  # of what lies ready, only what they name
        if "@/scene" in words or "@/twin" in words:
            save_model(self.start).rename(self.start / "twin")
        if "@/rooms" in words:
            write_dataset("transforms", self.start / "rooms/a")
        for n, view in enumerate(floor_photos(orbit(5, width=80, height=60))) if "@/photos" in words else ():
            write_image(self.start / f"photos/{n}.png", view.image)
        self.start.rename(self.root)
        for words in self.task.earlier:
            done = self.run(0, "", words)
            assert done.status == 0, done.said
        shutil.copytree(self.root, self.start)

    def prepare(self) -> None:
        shutil.rmtree(self.root)
        shutil.copytree(self.start, self.root)

    def state(self) -> dict[str, Any]:
        return contents(self.root / self.task.target, without=self.task.without)

    def left_over(self) -> list[str]:
        return [str(path) for path in self.root.rglob("*") if fileio._MARK in path.name]

    def run(self, limit: int, mode: str, words: str = "") -> Trial:
        """Run the command in a process of its own; at the operation `limit` what `mode` says happens."""
        printed, sys.stdout = self.root.with_name("printed.txt"), sys.__stdout__
        child = os.fork()
        if child:
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            return Trial(limit, status, printed.read_text(errors="replace"))
        code, disk = 99, None
        try:
            handle = os.open(printed, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))

            def action() -> None:
                if mode == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError(ERRORS[mode], os.strerror(ERRORS[mode]))

            self.task.enter()
            fileio._tidied.clear()
            disk = Disk(self.root, limit, action)
            code = main((words or self.task.words).replace("@", str(self.root)).split())
        except BaseException:  # noqa: BLE001 - whatever it is, this process must not go on as the test
            traceback.print_exc()
        finally:
            if limit == 0 and disk is not None:
                os.write(1, f"\n{disk.count} operations".encode())
            os._exit(code)

    def lost(self, old: dict[str, Any], new: dict[str, Any]) -> str:
        """Return what is neither old nor new after a command that failed, "" = nothing."""
        found, task = self.state(), self.task
        aside = {name: found.pop(name) for name in [*found] if name.startswith("replaced/")}
        kept = {name.removeprefix("replaced/"): content for name, content in aside.items()}
        if old and kept == old:  # an earlier run, until the one that replaces it is done
            return ""
        pieces = {name for name in {*found, *old, *new} if re.fullmatch(task.parts, name)}
        for name in pieces:
            is_old, is_new = (found.get(name) == state.get(name) for state in (old, new))
            if not (is_old or is_new or re.fullmatch(task.between, name)):
                return f"neither old nor new: {name}"
        rest, before, after = (
            {name: content for name, content in state.items() if name not in pieces} for state in (found, old, new)
        )
        if rest not in (before, after):
            return f"neither old nor new: {sorted(n for n in {*rest, *before} if rest.get(n) != before.get(n))[:5]}"
        return ""

    def trials(self, mode: str, *, first: int = 1, step: int = 1) -> Iterator[tuple[Trial, str]]:
        """Yield each trial, and what is wrong with how it ended, if anything is."""
        self.prepare()
        old = self.state()
        undisturbed = self.run(0, mode)
        assert undisturbed.status == 0, undisturbed.said
        new = self.state()
        assert new != old
        count = int(undisturbed.said.split()[-2])
        for limit in range(1 + (first - 1) % count, count + 1, step):
            self.prepare()
            trial, wrong = self.run(limit, mode), self.lost(old, new)
            if wrong:
                pass
            elif "Traceback" in trial.said or trial.status not in (0, 1, 2, -9):
                wrong = trial.said
            elif mode == "ENOSPC" and trial.status == 2 and "no space left" not in trial.said.lower():
                wrong = f"not said that the disk is full: {trial.said}"
            elif self.state() != new or "edit" not in self.name:
                again = self.run(0, mode)  # an edit that is done is not done again
                if again.status or self.state() != new:
                    state = self.state()
                    differs = sorted(name for name in {*state, *new} if state.get(name) != new.get(name))
                    wrong = f"cannot be repeated: {differs[:5]} {again.said}"
                elif self.left_over():
                    wrong = f"left over: {self.left_over()}"
            yield trial, wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="scratch; what is in it goes")
    parser.add_argument("--names", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--step", type=int, default=1, help="take every N-th operation only, each mode others")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for module, *_ in COMMANDS.values():  # once, not in every fork
        __import__(module)
    total = bad = 0
    for name in args.names:
        for first, mode in enumerate(MODES):
            count, began = 0, time.monotonic()
            for trial, wrong in Sweep(args.folder, name).trials(mode, first=1 + first % args.step, step=args.step):
                count += 1
                if wrong:
                    bad += 1
                    print(f"  {name}, {mode}, {trial.limit}, exit {trial.status}: {wrong.strip()[:400]}")  # noqa: T201
            total += count
            print(f"{name}, {mode}: {count} points, {time.monotonic() - began:.0f} s", flush=True)  # noqa: T201
    print(f"{total} points, {bad} wrong")  # noqa: T201
    sys.exit(bad > 0)
