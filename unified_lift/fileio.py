"""Files: written whole or not at all, and JSON with errors that a user can act on. The only place that does either."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
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
