"""Files: written whole or not at all, and JSON with errors that a user can act on. The only place that does either."""

import codecs
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from unified_lift.errors import UserError


@contextmanager
def replacing(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Give a scratch path beside `path` to write to, and put it in place of `path` once the block ends without error.

    Folders above it are made. `sync` waits until the disk has it, so that it survives a power cut.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        if sync:
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def replacing_folder(path: Path, *, outdated: Iterable[str] = ()) -> Iterator[Path]:
    """Give an empty scratch folder, and move its files into `path` once the block ends without error.

    Files of the same names are replaced, and what fits `outdated`, glob patterns, goes; others stay. No old file is
    deleted before all new ones are in place. Folders above `path` are made.
    """
    place = path.resolve()  # `.` has no name of its own
    # Inside an existing folder: what holds it may be another disk, or not writable.
    scratch = (place if place.exists() else place.parent) / f"{place.name}.{uuid.uuid4().hex[:8]}.partial"
    new, old = scratch / "new", scratch / "old"
    try:
        new.mkdir(parents=True)
        yield new
        if place.exists():
            _swap(new, place, old, outdated)
        else:
            new.rename(place)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if not any(left.is_file() for left in old.rglob("*")):  # they could not be put back, so that they stay here
            shutil.rmtree(scratch, ignore_errors=True)


def _swap(new: Path, place: Path, old: Path, outdated: Iterable[str]) -> None:
    """Move the files of `new` into `place`, and what they replace into `old`; or leave all where it was."""
    fresh = [(file, place / file.relative_to(new)) for file in new.rglob("*") if file.is_file()]
    replaced = [*(found for pattern in outdated for found in place.glob(pattern)), *(target for _, target in fresh)]
    moves = [(path, old / path.relative_to(place)) for path in replaced] + fresh
    with ExitStack() as undo:
        for source, target in moves:
            if source.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                source.rename(target)
                undo.callback(target.rename, source)
        undo.pop_all()


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


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
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; restore it") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); write it again") from None
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
