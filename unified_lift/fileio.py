"""JSON files of scenes, with errors a user can act on."""

from __future__ import annotations

import json
import math
from pathlib import Path

from unified_lift.errors import UserError


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
