"""Files: written whole or not at all, and JSON with errors that a user can act on. The only place that does either."""

import json
import math
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unified_lift.errors import UserError


@contextmanager
def replacing(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Give a scratch path beside `path` to write to, and put it in place of `path` once the block ends without error.

    Args:
        path: The file to write; folders above it are made.
        sync: Wait until the disk has it, so that it survives a power cut.
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

    Files of the same names are replaced, others stay. No old file is deleted before all new ones are in place.

    Args:
        path: The folder to write; folders above it are made.
        outdated: Glob patterns of what else in `path` goes when the new files come.
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
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        if any(left.is_file() for left in old.rglob("*")):
            raise  # they could not be put back, so that they stay here
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    shutil.rmtree(scratch, ignore_errors=True)


def _swap(new: Path, place: Path, old: Path, outdated: Iterable[str]) -> None:
    """Move the files of `new` into `place`, and what they replace into `old`; or leave all where it was."""
    names = [file.relative_to(new) for file in new.rglob("*") if file.is_file()]
    replaced = [found for pattern in outdated for found in place.glob(pattern)] + [place / name for name in names]
    moved: list[tuple[Path, Path]] = []
    try:
        for source, target in (
            *((source, old / source.relative_to(place)) for source in replaced),
            *((new / name, place / name) for name in names),
        ):
            if source.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                source.rename(target)
                moved.append((source, target))
    except BaseException:
        for source, target in reversed(moved):
            target.rename(source)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any, *, indent: int | None = 1) -> None:
    """Write strict JSON (no NaN) whole or not at all."""
    write_text(path, json.dumps(content, indent=indent, allow_nan=False))


def read_json(path: Path) -> dict:
    """Return the object a JSON file holds.

    Raises:
        UserError: The file is missing, is not JSON or holds something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; restore it") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); write it again") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: holds a {type(data).__name__} where an object with named fields is expected")
    return data


def number(data: dict, key: str, source: Path, *, default: float | None = None) -> float:
    """Return a finite number of a JSON object.

    Raises:
        UserError: It is missing without a default, or not a finite number.
    """
    value = data.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        state = "is missing" if value is None else f"is {value!r}, not a finite number"
        raise UserError(f"{source}: {key} {state}; correct this field")
    return float(value)
