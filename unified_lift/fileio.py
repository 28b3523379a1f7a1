"""Files: written whole or not at all, and JSON with errors that a user can act on. The only place that does either."""

import codecs
import ctypes
import errno
import fcntl
import hashlib
import json
import math
import os
import platform
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any

from unified_lift.errors import UserError
from unified_lift.reading import parsed_json

_MARK = ".unified-lift-partial"  # ends the names of scratch files and folders; nothing else is ever cleared away
_JOURNAL = "moves.json"
LOCK = ".lock"  # in a folder that a process writes into
_OUTDATED_S = 24 * 3600  # a scratch file of another machine, whose processes we cannot see, is left over by then
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_tidied: set[Path] = set()
_held: set[tuple[Path, int]] = set()  # folders that a thread of this process has locked


@contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Give a scratch path beside `path` to write to, and put it in place of `path` once the block ends without error.

    Folders above it are made. `sync` waits until the disk has it, so that it survives a power cut; files that are made
    again at will, such as pictures, need not. A UserError says that the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _scratch(path)
    try:
        yield partial
        if sync:
            _sync(partial)
        partial.replace(path)
        if sync:
            _sync(path.parent)
    except BaseException as error:
        size = partial.stat().st_size if partial.exists() else 0
        partial.unlink(missing_ok=True)
        _say_if_full(error, path, size)
        raise


@contextmanager
def replacing_folder(path: Path, *, outdated: Iterable[str] = ()) -> Iterator[Path]:
    """Give an empty scratch folder, whose files are in `path` once the block ends without error, all or none.

    Files of the same names are replaced, and what fits `outdated`, glob patterns, goes; others stay. The new folder is
    made whole beside the old one, which is deleted only after both have changed places. Folders above `path` are made.
    A UserError says that the disk is full, or that a file has this name, which stays.
    """
    place = path.resolve()  # `.` has no name of its own
    if place.exists() and not place.is_dir():
        raise UserError(f"{path}: is a file, no folder; it stays, name another folder")
    # Else inside of it: what holds it is another disk or not writable, or a shell works in it and would lose it.
    is_beside = not place.exists() or not (
        os.path.ismount(place) or not os.access(place.parent, os.W_OK) or Path.cwd().is_relative_to(place)
    )
    place.parent.mkdir(parents=True, exist_ok=True)
    scratch = _scratch(place if is_beside else place / place.name)
    new, old = scratch / "new", scratch / "old"
    try:
        new.mkdir(parents=True)
        yield new
        for file in new.rglob("*"):
            if file.is_file():
                _sync(file)
        if not place.exists():
            new.rename(place)
        elif not is_beside:
            _move(_moves_into(new, place, old, outdated), scratch)
        else:
            _keep_the_rest(new, place, outdated)
            if not _exchanged(new, place):
                _move([(place, old), (new, place)], scratch)
        _sync(place.parent)
    except BaseException as error:
        _say_if_full(error, place, sum(file.stat().st_size for file in new.rglob("*") if file.is_file()))
        raise
    finally:
        _remove_folder(scratch)


def _keep_the_rest(new: Path, place: Path, outdated: Iterable[str]) -> None:
    """Give `new` what is to stay of the folder `place`: as second names of the same files, where the disk has them."""
    goes = {found for pattern in outdated for found in place.glob(pattern)}
    shutil.copymode(place, new)
    for folder, folders, files in os.walk(place):
        folders[:] = [name for name in folders if Path(folder, name) not in goes]
        links = [name for name in folders if Path(folder, name).is_symlink()]
        for name in {*folders} - {*links}:
            (new / Path(folder, name).relative_to(place)).mkdir(exist_ok=True)
        for source in (Path(folder, name) for name in (*files, *links)):
            target = new / source.relative_to(place)
            if source not in goes and not target.exists():
                second_name(source, target)


def second_name(source: Path, target: Path, *, or_copy: bool = True) -> None:
    """Give a file, or all files of a folder, a second name; folders are made.

    A disk that has no such names gets a copy, or without `or_copy` raises NoSecondNames.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir() and not source.is_symlink():
        for path in source.iterdir():
            second_name(path, target / path.name, or_copy=or_copy)
        return
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if not or_copy:
            raise NoSecondNames if error.errno in _NO_LINKS else error from None
        shutil.copy2(source, target, follow_symlinks=False)


class NoSecondNames(Exception):  # noqa: N818 (not an error: there are other ways)
    """The disk has no second names for files."""


def _exchanged(first: Path, second: Path) -> bool:
    """Return whether two folders changed places at once, which not every system can."""
    with suppress(OSError, AttributeError):
        at_cwd, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
        names = os.fsencode(first), os.fsencode(second)
        return ctypes.CDLL(None, use_errno=True).renameat2(at_cwd, names[0], at_cwd, names[1], exchange) == 0
    return False


def _moves_into(new: Path, place: Path, old: Path, outdated: Iterable[str]) -> list[tuple[Path, Path]]:
    """Return the moves, from and to, that put the files of `new` into `place`, and what they replace into `old`."""
    fresh = [(file, place / file.relative_to(new)) for file in new.rglob("*") if file.is_file()]
    replaced = {*(found for pattern in outdated for found in place.glob(pattern)), *(target for _, target in fresh)}
    gone = [path for path in sorted(replaced) if path.exists() and not replaced.intersection(path.parents)]
    return [(path, old / path.relative_to(place)) for path in gone] + fresh


def move_together(moves: list[tuple[Path, Path]]) -> None:
    """Make all moves, from and to, of one disk, or none; what a kill leaves the next write undoes."""
    scratch = _scratch(moves[0][0])
    try:
        scratch.mkdir()
        _move(moves, scratch)
    finally:
        _remove_folder(scratch)


def _move(moves: list[tuple[Path, Path]], scratch: Path) -> None:
    """Make all moves, or none. They are written down first, so that whoever finds them after a crash undoes them."""
    journal = scratch / _JOURNAL
    journal.write_text(json.dumps([[str(path) for path in move] for move in moves]), encoding="utf-8")
    _sync(journal)
    for source, target in moves:
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
    journal.unlink()


def _remove_folder(scratch: Path) -> None:
    """Remove a scratch folder, after undoing moves that were not finished; if they cannot be undone, it stays."""
    with suppress(OSError):
        journal, moves = scratch / _JOURNAL, list[list[str]]()
        with suppress(ValueError):  # half written: then no move was made
            moves = json.loads(journal.read_text(encoding="utf-8")) if journal.exists() else []
        for source, target in reversed(moves):
            if os.path.lexists(target) and not os.path.lexists(source):
                Path(source).parent.mkdir(parents=True, exist_ok=True)
                os.rename(target, source)
        journal.unlink(missing_ok=True)
        shutil.rmtree(scratch, ignore_errors=True)


def holds_files(folder: Path) -> bool:
    """Return whether there is a folder with anything in it but what this program has as a lock or left when killed."""
    return folder.is_dir() and any(not path.name.endswith(_MARK) and path.name != LOCK for path in folder.iterdir())


def _scratch(path: Path) -> Path:
    """Return a name beside `path` that nobody else has, after clearing away what killed processes left there."""
    folder = path.parent.resolve()
    for near in (folder, folder.parent):  # beside the folder too: it may have been replaced as a whole
        if near not in _tidied:
            _tidied.add(near)
            _tidy(near)
    host = hashlib.sha256(platform.node().encode()).hexdigest()[:4]  # no name of a machine in the names of files
    return folder / f"{path.name[:60]}.{os.getpid()}-{host}{uuid.uuid4().hex[:6]}{_MARK}"


def _tidy(folder: Path) -> None:
    """Remove the scratch files and folders of ours whose process has ended."""
    host = hashlib.sha256(platform.node().encode()).hexdigest()[:4]
    found = list[Path]()
    with suppress(OSError):  # a folder that may not be listed
        found = list(folder.glob(f"*{_MARK}"))
    for left in found:
        match = re.search(r"\.(\d+)-([0-9a-f]{4})[0-9a-f]{6}\.unified-lift-partial$", left.name)
        if match is None:
            continue
        with suppress(OSError):  # of another user, or gone meanwhile
            if not _lives(int(match[1])) if match[2] == host else time.time() - left.stat().st_mtime > _OUTDATED_S:
                _remove_folder(left) if left.is_dir() and not left.is_symlink() else left.unlink()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _sync(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError) if path.is_dir() else nullcontext():  # some file systems cannot sync folders
            os.fsync(handle)
    finally:
        os.close(handle)


def _say_if_full(error: BaseException, path: Path, written: int) -> None:
    """Raise a UserError that names the file if the error is that of a full disk, whichever library met it."""
    full = isinstance(error, OSError) and error.errno in _NO_SPACE
    with suppress(OSError):  # torch says nothing of the reason
        full |= isinstance(error, RuntimeError | OSError) and shutil.disk_usage(path.parent).free < 2**12
    if full:
        needed = f"more than the {written / 2**20:.1f} MiB that were written are needed"
        raise UserError(f"{path}: no space left on the disk, {needed}, nothing there was changed; free some") from None


@contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """Keep other processes from writing into a folder, which is made, while this one does so: `doing` says what.

    The system frees the lock of a process that ends, however it ends. Within the block the thread may lock it again.
    A UserError says which process is at work there.
    """
    ours = folder.resolve(), threading.get_ident()
    if ours in _held:
        yield
        return
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    while True:
        with open(path, "a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                who = file.read(200).strip() or "another process"
                raise UserError(f"{folder}: {who} is at work there; wait for it or choose another folder") from None
            except OSError:  # a file system without locks
                pass
            try:
                is_ours = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
            except OSError:
                is_ours = False
            if not is_ours:  # removed by its owner between our two calls
                continue
            file.truncate(0)
            file.write(f"{doing} (process {os.getpid()})")
            file.flush()
            _held.add(ours)
            try:
                yield
            finally:
                _held.discard(ours)
                with suppress(OSError):
                    path.unlink()
                with suppress(OSError):
                    if is_new:
                        folder.rmdir()  # only if nothing was written
            return


def write_held(path: Path, text: str) -> IO[str]:
    """Write a text file whole or not at all; `is_held` until what is returned is closed, or the process ends."""
    with replacing(path) as partial:
        file = open(partial, "w", encoding="utf-8")  # noqa: SIM115  # a lock is of the file, whatever its name
        try:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.write(text)
            file.flush()
        except BaseException:
            file.close()
            raise
    return file


def is_held(path: Path) -> bool:
    """Return whether a process, or this one, holds a file that `write_held` wrote."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:  # no pipe waits
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    return False


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all, in UTF-8; bytes of names that are no text as escapes, such as \\udcea."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, content: Any, *, indent: int | None = 1) -> None:
    """Write strict JSON whole or not at all; numbers that are not finite become null."""
    strict = json.loads(json.dumps(content), parse_constant=lambda _: None)
    write_text(path, json.dumps(strict, indent=indent, allow_nan=False))


def text_encoding(path: Path) -> str:
    """Return how a text is coded: as its byte order mark says, which editors of Windows write, else UTF-8."""
    with path.open("rb") as file:
        start = file.read(4)
    marks = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF16_LE: "utf-16"}
    marks |= {codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_BE: "utf-16"}  # 32 before 16: one begins like the other
    return next((name for mark, name in marks.items() if start.startswith(mark)), "utf-8")


def read_json(path: Path) -> dict:
    """Return the object a JSON file holds, in UTF-8, 16 or 32, with or without a byte order mark.

    A UserError says that the file is missing, is not JSON or holds something else.
    """
    data = parsed_json(path)
    if not isinstance(data, dict):
        raise UserError(f"{path}: holds a {type(data).__name__} where an object with named fields is expected")
    return data


def number(data: dict, key: str, source: Path, *, default: float | None = None) -> float:
    """Return a number of a JSON object; a UserError: it is missing without a default, or not a finite number."""
    value = data.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        state = "is missing" if value is None else f"is {value!r}, not a finite number"
        raise UserError(f"{source}: {key} {state}; correct this field")
    return float(value)
