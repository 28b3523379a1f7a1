"""Folders are written whole or not at all."""

import errno
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sweep import Disk
from unified_lift import fileio
from unified_lift.errors import UserError
from unified_lift.fileio import holds_files, locked, replacing, replacing_folder, write_json


def contents(folder):
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_text() for name, path in found.items() if fileio._MARK not in name}


@pytest.fixture
def old(tmp_path):
    folder = tmp_path / "model"
    for name in ("same/a.txt", "gone/b.txt", "chkpnt7.pth", "mine.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("old")
    return folder


def test_numbers_that_are_not_finite_are_null_in_json(tmp_path):
    write_json(tmp_path / "a.json", {"mean": float("nan"), "box": [float("-inf"), 1.5]}, indent=None)
    assert (tmp_path / "a.json").read_text() == '{"mean": null, "box": [null, 1.5]}'


def write(folder):
    with replacing_folder(folder, outdated=("gone", "chkpnt*.pth", "absent")) as scratch:
        for name in ("same/a.txt", "deep/er/c.txt"):
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / name).write_text("new")


def test_new_files_come_outdated_ones_go_and_others_stay(old):
    write(old)
    assert contents(old) == {"same/a.txt": "new", "deep/er/c.txt": "new", "mine.txt": "old"}
    assert list(old.parent.iterdir()) == [old]
    write(old.parent / "fresh" / "model")
    assert set(contents(old.parent / "fresh" / "model")) == {"same/a.txt", "deep/er/c.txt"}


OLD = {"same/a.txt": "old", "gone/b.txt": "old", "chkpnt7.pth": "old", "mine.txt": "old"}
NEW = {"same/a.txt": "new", "deep/er/c.txt": "new", "mine.txt": "old"}


def fails(number):
    def action():
        raise OSError(number, os.strerror(number))

    return action


def swaps_at_once(monkeypatch, can):
    if not can:
        monkeypatch.setattr(fileio, "_exchanged", lambda first, second: False)


def left_over(folder):
    return [path for path in folder.rglob("*") if fileio._MARK in str(path)]


@pytest.mark.parametrize("place", ["beside", "beside, in two steps", "inside"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EROFS], ids=["EIO", "ENOSPC", "EROFS"])
def test_whatever_operation_fails_the_old_or_the_new_folder_is_whole(old, place, number, monkeypatch, tmp_path):
    swaps_at_once(monkeypatch, place == "beside")
    if place == "inside":
        monkeypatch.chdir(old)
    ends = set()
    for limit in itertools.count(1):
        shutil.rmtree(old / "deep", ignore_errors=True)
        for name, text in OLD.items():
            (old / name).parent.mkdir(exist_ok=True)
            (old / name).write_text(text)
        with monkeypatch.context() as patch:
            disk = Disk(tmp_path, limit, fails(number), patch.setattr)
            try:
                write(old)
                error = None
            except (OSError, UserError) as problem:
                error = problem
        assert contents(old) in (OLD, NEW), limit
        assert error is not None or contents(old) == NEW
        assert number != errno.ENOSPC or error is None or "no space left" in str(error)
        ends.add(contents(old) == NEW)
        for rest in left_over(tmp_path):  # a failed clean-up
            shutil.rmtree(rest, ignore_errors=True)
        if disk.count < limit:
            break
    assert limit > 8
    assert ends == {True, False}


@pytest.mark.parametrize("place", ["beside", "beside, in two steps", "inside"])
def test_wherever_the_process_is_killed_the_next_one_finds_the_old_or_the_new_folder(old, place, tmp_path):
    code = """
import os, signal, sys
sys.path[:0] = sys.argv[5:]
from pathlib import Path
import pytest
from tests import test_fileio as t
old, place, limit = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
patch = pytest.MonkeyPatch()
t.swaps_at_once(patch, place == "beside")
if place == "inside":
    os.chdir(old)
for name, text in t.OLD.items():
    (old / name).parent.mkdir(parents=True, exist_ok=True)
    (old / name).write_text(text)
for limit in range(1, 60):
    child = os.fork()
    if child:
        killed = os.waitpid(child, 0)[1] != 0
        t.fileio._tidied.clear()
        t.fileio._scratch(old), t.fileio._scratch(old / "x")  # what the next command does first
        assert t.contents(old) in (t.OLD, t.NEW), (limit, t.contents(old))
        assert not t.left_over(old.parent), (limit, t.left_over(old.parent))
        if not killed:
            assert limit > 8
            assert t.contents(old) == t.NEW
            break
        if t.contents(old) == t.NEW:
            t.shutil.rmtree(old / "deep")
            for name, text in t.OLD.items():
                (old / name).parent.mkdir(parents=True, exist_ok=True)
                (old / name).write_text(text)
        continue
    t.Disk(old.parent, limit, lambda: os.kill(os.getpid(), signal.SIGKILL))
    t.write(old)
    os._exit(0)
else:
    raise AssertionError("it never ended")
"""
    root = Path(__file__).parents[1]
    words = [sys.executable, "-c", code, str(old), place, "1", "", str(root)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_a_full_disk_is_said_with_the_file_and_nothing_is_left(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")

    def full():
        with replacing(path) as partial:
            partial.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"a.txt: no space left on the disk, more than the 0.0 MiB"):
        full()
    assert contents(tmp_path) == {"a.txt": "before"}


def test_only_our_own_scratch_files_of_ended_processes_are_cleared_away(tmp_path):
    ended = subprocess.run(["true"], check=False) and subprocess.Popen(["true"])
    ended.wait()
    path = tmp_path / "a.txt"
    ours = fileio._scratch(path).name
    left = ours.replace(f".{os.getpid()}-", f".{ended.pid}-")
    host = ours.partition(f".{os.getpid()}-")[2][:4]
    foreign = ours.replace(f"-{host}", "-ffff" if host != "ffff" else "-0000", 1)
    for name in (left, ours, foreign, "a.txt.partial", "mine.unified-lift-partial"):
        (tmp_path / name).write_text("half")
    (tmp_path / (left.replace("a.txt", "folder"))).mkdir()
    fileio._tidied.clear()
    write_json(path, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        {"a.txt", "a.txt.partial", "mine.unified-lift-partial", ours, foreign}
    )
    for name in (ours, foreign):
        os.utime(tmp_path / name, (0, 0))
    fileio._tidied.clear()
    write_json(path, {})
    assert (tmp_path / ours).exists()  # its process lives
    assert not (tmp_path / foreign).exists()  # of another machine, and a day old


def test_a_journal_that_was_half_written_undoes_nothing_and_goes(tmp_path):
    scratch = tmp_path / "a"
    scratch.mkdir()
    (scratch / fileio._JOURNAL).write_text('[["x", ')
    fileio._remove_folder(scratch)
    assert not scratch.exists()


def test_a_folder_that_a_process_writes_into_is_refused_to_others_until_it_ends_however_it_ends(tmp_path):
    folder = tmp_path / "model"
    code = f"""
import sys, time
from pathlib import Path
from unified_lift.fileio import locked
with locked(Path({str(folder)!r}), "training"):
    print("in", flush=True)
    time.sleep(60)
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "in\n"
    with pytest.raises(UserError, match=f"training \\(process {child.pid}\\) is at work there"), locked(folder, "edit"):
        pass
    child.kill()
    child.wait()
    with locked(folder, "edit"):
        (folder / "a").write_text("")
    assert contents(tmp_path) == {"model/a": ""}
    with locked(tmp_path / "empty", "edit"):
        pass
    assert not (tmp_path / "empty").exists()


def test_a_folder_of_the_user_that_looks_like_a_scratch_folder_is_left_alone(old):
    (old.parent / "model.partial").mkdir()
    write(old)
    with pytest.raises(KeyboardInterrupt), replacing_folder(old):
        raise KeyboardInterrupt
    assert sorted(path.name for path in old.parent.iterdir()) == ["model", "model.partial"]


def test_what_a_killed_process_left_makes_no_folder_one_that_holds_files(tmp_path):
    assert not holds_files(tmp_path / "none")
    with locked(tmp_path / "made", "this test"), replacing(tmp_path / "made/masks.json") as partial:
        partial.write_text("{")  # as a process leaves it that is killed here
        assert len(list((tmp_path / "made").iterdir())) == 2
        assert not holds_files(tmp_path / "made")
    assert holds_files(tmp_path / "made")


def test_a_file_of_the_user_is_never_replaced_by_a_folder(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UserError, match="mine: is a file, no folder"), replacing_folder(tmp_path / "mine"):
        raise AssertionError
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine").read_text() == "mine"
