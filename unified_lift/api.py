"""The public functions of `unified_lift`, with the arguments a script would give them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from unified_lift import data
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError
from unified_lift.modelfolder import inference
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.types import Camera, Scene

__all__ = ["UserError", "load_model", "load_scene", "render", "segment"]


def load_scene(path: str | Path, *, images: str = "images", resolution: int = -1) -> Scene:
    """Return the scene in a folder of any layout that training reads: photos, cameras, masks and points.

    Args:
        path: Scene folder.
        images: Image folder inside a COLMAP scene.
        resolution: 1, 2, 4 and 8 divide the size of the photos, another number is their width in pixels, -1 shrinks
            those wider than 1600 px.
    Raises:
        UserError: Names the file and what to do about it.
    """
    return data.load_scene(DataSettings(source_path=Path(path), images=images, resolution=resolution))


def load_model(path: str | Path, *, iteration: int = -1, device: str | torch.device = "cpu") -> TrainedScene:
    """Return the trained scene in a model folder, ready to be rendered on a device.

    Args:
        path: Model folder, `-m` of train.py.
        iteration: Saved iteration; -1 = the last.
        device: Where it is rendered.
    Raises:
        UserError: The folder holds no run, nothing is saved, or not that iteration.
    """
    return inference.load_model(Path(path), iteration=iteration, device=torch.device(device))


def render(model: TrainedScene, camera: Camera) -> Tensor:
    """Return the picture a camera takes of a trained scene, float32 in [0, 1], [H, W, 3], on the CPU."""
    return inference.render_view(model, camera).image.clamp(0, 1)


def segment(model: TrainedScene, camera: Camera) -> Tensor:
    """Return the object id of every pixel, int64 [H, W], on the CPU.

    Ids are those of the model: the same object has the same id in every view, in `object_ids` of the saved point cloud
    and in `--objects` of the commands. 0 is not special.

    Raises:
        UserError: The scene was trained without a lift, so that it knows no objects.
    """
    ids = inference.render_view(model, camera).object_ids
    if ids is None:
        raise UserError(f"iteration {model.iteration} was saved without a lift; train on with --lift_iterations")
    return ids
