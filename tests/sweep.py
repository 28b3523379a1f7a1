"""Every operation of a command on the disk fails once, or kills the process: `python -m tests.sweep FOLDER`."""

import builtins
import errno
import io
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.saved_model import save_model
from unified_lift import fileio
from unified_lift.cli.main import main

CALLS = ("rename", "replace", "unlink", "rmdir", "mkdir", "link")
ERRORS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "EROFS": errno.EROFS}
MODES = ("kill", *ERRORS)


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


class Sweep:
    """A command, and the folder of files that it makes or replaces."""

    def __init__(self, work: Path, name: str) -> None:
        self.name, self.root, self.start = name, work / name / "now", work / name / "start"
        shutil.rmtree(work / name, ignore_errors=True)
        self.start.mkdir(parents=True)
        model = save_model(self.start)
        shutil.copytree(model, self.start / "twin")
        self.root.mkdir()
        twin, out, ply = self.root / "twin", self.root / "out", model / "point_cloud"
        remove, place = ["edit", "-m", str(twin), "--remove", "2"], sorted(ply.iterdir())[-1].name
        self.argv, self.target = {
            "edit to a new folder": ([*remove, "--out", str(out)], out),
            "edit in place": ([*remove, "--out", str(twin), "--overwrite"], twin),
            "import-edit in place": (
                ["import-edit", "-m", str(twin), "--ply", str(twin / "point_cloud" / place / "point_cloud.ply")]
                + ["--out", str(twin), "--overwrite"],
                twin,
            ),
            "export": (
                ["export", "-m", str(twin), "--objects", "1", "scene", "--format", "ply,splat,spz,html,points,labels"]
                + ["--out", str(out), "--quiet"],
                out,
            ),
            "render": (["render", "-m", str(twin), "--skip_train", "--no-video", "--quiet"], twin),
        }[name]

    def prepare(self) -> None:
        shutil.rmtree(self.root)
        shutil.copytree(self.start, self.root)

    def state(self) -> dict[str, bytes]:
        files = (path for path in self.target.rglob("*") if path.is_file())
        kept = {str(p.relative_to(self.target)): p.read_bytes() for p in files if fileio._MARK not in str(p)}
        return {name: content for name, content in kept.items() if name != fileio.LOCK}

    def left_over(self) -> list[str]:
        return [str(path) for path in self.root.rglob("*") if fileio._MARK in path.name]

    def run(self, limit: int, mode: str) -> Trial:
        """Run the command in a process of its own; at the operation `limit` what `mode` says happens."""
        printed, sys.stdout = self.root.with_name("printed.txt"), sys.__stdout__
        child = os.fork()
        if child:
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            return Trial(limit, status, printed.read_text())
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

            fileio._tidied.clear()
            disk = Disk(self.root, limit, action)
            code = main(self.argv)
        except BaseException:  # noqa: BLE001 - whatever it is, this process must not go on as the test
            traceback.print_exc()
        finally:
            if limit == 0 and disk is not None:
                os.write(1, f"\n{disk.count} operations".encode())
            os._exit(code)

    def trials(self, mode: str, *, step: int = 1) -> Iterator[tuple[Trial, str]]:
        """Yield each trial, and what is wrong with how it ended, if anything is."""
        self.prepare()
        old = self.state()
        undisturbed = self.run(0, mode)
        assert undisturbed.status == 0, undisturbed.said
        new = self.state()
        parts = self.name == "render"  # writes file by file; each is whole
        assert new != old
        for limit in range(1, int(undisturbed.said.split()[-2]) + 1, step):
            self.prepare()
            trial, wrong = self.run(limit, mode), ""
            found = self.state()
            mixed = {name: content for name, content in found.items() if content not in (old.get(name), new.get(name))}
            if mixed or not (parts or found in (old, new)):
                wrong = f"neither old nor new: {sorted(mixed or set(found) ^ set(old))}"
            elif "Traceback" in trial.said or trial.status not in (0, 2, -9):
                wrong = trial.said
            elif mode == "ENOSPC" and trial.status == 2 and "no space left" not in trial.said.lower():
                wrong = f"not said that the disk is full: {trial.said}"
            elif found != new or self.name == "export":  # an edit that is done is not done again
                again = self.run(0, mode)
                if again.status or self.state() != new:
                    wrong = f"cannot be repeated: {again.said}"
                elif self.left_over():
                    wrong = f"left over: {self.left_over()}"
            yield trial, wrong


NAMES = ("edit to a new folder", "edit in place", "import-edit in place", "export", "render")

if __name__ == "__main__":
    total = bad = 0
    for name in NAMES:
        for mode in MODES:
            count = 0
            for trial, wrong in Sweep(Path(sys.argv[1]), name).trials(mode):
                count += 1
                if wrong:
                    bad += 1
                    print(f"  {name}, {mode}, {trial.limit}, exit {trial.status}: {wrong.strip()[-300:]}")  # noqa: T201
            total += count
            print(f"{name}, {mode}: {count} points", flush=True)  # noqa: T201
    print(f"{total} points, {bad} wrong")  # noqa: T201
    sys.exit(bad > 0)
