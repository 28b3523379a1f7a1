"""Scenes on disk: one reader per layout, chosen by looking at the folder.

Adding a dataset is one file with a `READER`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from unified_lift.data import scene
from unified_lift.data.base import Frame, Reader
from unified_lift.data.cache import DataCache
from unified_lift.data.images import Progress
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError
from unified_lift.registry import members
from unified_lift.types import Scene

_READERS: list[Reader] = sorted(members(sys.modules[__name__], "READER"), key=lambda reader: reader.precedence)
DATASETS: dict[str, Reader] = {reader.name: reader for reader in _READERS}
"""All readers; a folder is read by the first that recognises it."""


def detect_reader(settings: DataSettings) -> Reader:
    """Return the reader of the scene folder; a UserError says that it is missing or fits no layout."""
    root = settings.source_path
    if not root.is_dir():
        raise UserError(f"{root}: no such scene folder; correct -s/--source_path")
    found = next((reader for reader in DATASETS.values() if reader.detect(root)), None)
    if found is None:
        looked = "; ".join(f"{reader.looks_for} ({reader.name})" for reader in DATASETS.values())
        raise UserError(f"{root}: fits no known layout; looked for {looked}")
    return found


def load_scene(settings: DataSettings, *, progress: Progress | None = None, cache: DataCache | None = None) -> Scene:
    """Return the scene of `settings.source_path`, whatever its layout.

    Args:
        progress: Called with (done, total) after each loaded view.
        cache: Keeps photos and masks; None = in memory.
    Raises:
        UserError: Names the file or flag and the fix.
    """
    return scene.build_scene(detect_reader(settings), settings, progress=progress, cache=cache)


def load_frames(settings: DataSettings) -> list[Frame]:
    """Return the posed photos of `settings.source_path` as files, each with its mask file; no pixel is read."""
    described = scene.describe(detect_reader(settings), settings)
    scene.check_frames(described, settings.source_path)
    return list(described.frames)


def expected_bytes(settings: DataSettings) -> int:
    """Return about how many bytes photos and masks of the scene take once loaded; no pixel is read."""
    train, test = scene.split_frames(scene.describe(detect_reader(settings), settings), settings)
    return scene.expected_bytes([*train, *test], settings)


def load_annotations(settings: DataSettings, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the exact ids of the named views, int32 [H, W] at native size; for evaluation only.

    Views without annotation are absent; the dictionary is empty where the dataset has none.
    """
    return scene.read_annotations(detect_reader(settings), settings, names)


def load_prompt_masks(settings: DataSettings, names: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    """Return view -> prompt -> exact mask, bool [H, W] at native size, of the named views; for evaluation only.

    Views without any are absent; the dictionary is empty where the dataset annotates no prompts.
    """
    return scene.read_prompt_masks(detect_reader(settings), settings, names)
