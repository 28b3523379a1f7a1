"""What a mask format tells the readers, check-data and their messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np


class MaskFile(NamedTuple):
    """The mask of one view: a file or folder, and which part of it where one file holds several views."""

    path: Path
    format: MaskFormat
    part: str = ""


@dataclass(frozen=True, kw_only=True)
class MaskFormat:
    """One way to store segment ids. A view's mask is `<view><suffix>` unless `locate` says otherwise."""

    looks_for: str  # how its files are named, for messages
    suffixes: tuple[str, ...]
    read: Callable[[MaskFile], tuple[np.ndarray, str]]  # ids, [H, W] or uint8 RGB [H, W, 3], and kind, as "16-bit"
    # (mask folder, view name) -> file or folder and the part of it, None where the view has no mask
    locate: Callable[[Path, str], tuple[Path, str] | None] | None = None
    precedence: int = 50  # where a view has masks in several formats, that with the smallest number is read

    def find(self, folder: Path, name: str) -> MaskFile | None:
        """Return the mask of a view in a folder, None where it has none in this format."""
        if self.locate is not None:
            found = self.locate(folder, name)
            return MaskFile(found[0], self, found[1]) if found else None
        paths = (folder / f"{name}{suffix}" for suffix in self.suffixes)
        return next((MaskFile(path, self) for path in paths if path.is_file()), None)
