"""What only evaluation may read of a scene: exact ids and the masks of text prompts."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from unified_lift.data.base import ANNOTATIONS, Frame, as_posed, masks_in
from unified_lift.data.images import read_image
from unified_lift.data.lens import Lens, undistort_ids
from unified_lift.data.scene import sound_scene
from unified_lift.data.settings import DataSettings
from unified_lift.data.view import check_aspect

_FOREGROUND = 128  # grey values of prompt masks above it are foreground [Gaussian Grouping]


def load_annotations(settings: DataSettings, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the exact ids of the named views that have any, int32 [H, W] at native size, undistorted."""
    described = sound_scene(replace(settings, eval=False, object_path="auto"))[1]
    frames = {frame.name: frame for frame in described.frames}
    annotations = described.annotations or partial(masks_in, settings.source_path / ANNOTATIONS)
    found = annotations([name for name in names if name in frames])
    return {name: _as_pinhole(as_posed(ids, frames[name]), frames[name].lens) for name, ids in found.items()}


def load_prompt_masks(settings: DataSettings, names: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    """Return view -> prompt -> exact mask of the named views that have any, bool [H, W] at native size, undistorted."""
    described = sound_scene(replace(settings, eval=False, object_path="auto"))[1]
    frames = {frame.name: frame for frame in described.frames}
    return {
        name: {prompt: _read_prompt_mask(path, frames[name]) for prompt, path in files.items()}
        for name, files in described.prompt_masks(names).items()
    }


def _as_pinhole(ids: np.ndarray, lens: Lens) -> np.ndarray:
    """Return the ids [H, W] of a photo at whatever size, undistorted where its lens is distorted."""
    lens = lens.resized(ids.shape[1], ids.shape[0])
    return undistort_ids(ids, lens) if lens.is_distorted else ids


def _read_prompt_mask(path: Path, frame: Frame) -> np.ndarray:
    """Return where the mask is foreground, bool [H, W]; of a colour picture the brightest channel counts."""
    mask = as_posed(read_image(path).max(axis=-1) > _FOREGROUND, frame)
    check_aspect(path, mask, frame.lens, f"the photo of {frame.name}", "fetch it again")
    return _as_pinhole(mask.astype(np.int32), frame.lens) > 0
