"""File formats of exported objects and scenes. Adding one is a file with a `FORMAT`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from unified_lift.editing.formats.base import Format
from unified_lift.errors import UserError
from unified_lift.registry import members

FORMATS: dict[str, Format] = {entry.name: entry for entry in members(sys.modules[__name__], "FORMAT")}


def chosen_formats(names: Sequence[str]) -> list[Format]:
    """Return the formats of these names; a name may hold several, separated by commas.

    Raises:
        UserError: There is no such format.
    """
    words = dict.fromkeys(word for name in names for word in name.split(",") if word)
    for word in words:
        if word not in FORMATS:
            raise UserError(f"--format {word}: no such format; there are {', '.join(FORMATS)}")
    if not words:
        raise UserError(f"--format: name at least one of {', '.join(FORMATS)}")
    return [FORMATS[word] for word in words]
