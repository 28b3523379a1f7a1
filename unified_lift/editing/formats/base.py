"""What an export format is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from unified_lift.modelfolder.inference import TrainedScene


@dataclass(frozen=True, kw_only=True)
class Part:
    """What goes into one set of files.

    Attributes:
        stem: What names of files begin with: `scene`, `background` or `object_<id>`.
        scene: The Gaussians, in the order in which they are written.
        is_whole: Whether this is the scene, not something cut out of it.
    """

    stem: str
    scene: TrainedScene
    is_whole: bool


@dataclass(frozen=True, kw_only=True)
class Format:
    """A file format. Adding one is a file of this package with a `FORMAT`.

    Attributes:
        name: What the user calls it.
        about: One line for users.
        write: Writes a part into a folder, under names that begin with its stem.
    """

    name: str
    about: str
    write: Callable[[Path, Part], None]
