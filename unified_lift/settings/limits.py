"""Limits of settings, written beside the field: `log_interval: Annotated[int, Range(1)] = 50`."""

import math
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from unified_lift.errors import UserError
from unified_lift.types import Range as Range  # where readers find it too, which know no settings

_MOST_COUNT = 2**31 - 1


def leaves(settings: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Return `dotted.name -> (value, annotation)` of every setting of a tree of dataclasses."""
    found: dict[str, tuple[Any, Any]] = {}
    hints = typing.get_type_hints(type(settings), include_extras=True)
    for field in fields(settings):
        value, name = getattr(settings, field.name), prefix + field.name
        found |= leaves(value, f"{name}.") if is_dataclass(value) else {name: (value, hints[field.name])}
    return found


def check_ranges(settings: Any) -> None:
    """Raise a UserError naming the flag of the first number of the tree that is not finite or out of its range."""
    for name, (value, hint) in leaves(settings).items():
        for fault in faults(value, hint):
            raise UserError(f"--{name.rpartition('.')[2]} {fault}")


def faults(value: Any, hint: Any) -> Iterator[str]:
    """Yield what is wrong with a value by the ranges of its annotation, such as `must be at least 1, received 0`."""
    ranges = [each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Range)]
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, float) and not math.isfinite(number):
            yield f"must be finite, received {number}"
            continue
        for least, most, above in ranges:
            most = _MOST_COUNT if isinstance(number, int) and most == Range().most else most
            if number <= above:
                yield f"must be larger than {above}, received {number}"
            if number < least:
                yield f"must be at least {least}, received {number}"
            if number > most:
                yield f"goes up to {most}, received {number}"
