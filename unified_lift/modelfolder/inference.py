"""Looking at a trained scene: load a model folder and render views of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from unified_lift.data import load_scene
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError
from unified_lift.methods.base import Method
from unified_lift.metrics.prompts import likely_ids
from unified_lift.model.gaussians import Gaussians
from unified_lift.model.render import render
from unified_lift.modelfolder import outputs
from unified_lift.modelfolder.labels import segment_by_labels
from unified_lift.modelfolder.settings import TrainSettings
from unified_lift.types import Camera, Scene

_CPU = torch.device("cpu")
_PIXELS_AT_ONCE = 2**16  # whose probabilities of all objects are in memory together


class SavedModel(NamedTuple):
    """A trained scene as read from its folder.

    Attributes:
        settings: What it was trained with.
        iteration: Which saved iteration this is.
        gaussians: The scene.
        method: Reads ids off features; None where the scene was not lifted.
        num_codes: Rows of the codebook; 0 where the scene was not lifted.
        object_ids: Object of each Gaussian, int64 [N], where the scene was edited after the lift: the features of a
            copy are those of its original, so that only labels tell them apart. Else None.
    """

    settings: TrainSettings
    iteration: int
    gaussians: Gaussians
    method: Method | None
    num_codes: int
    object_ids: Tensor | None = None

    @property
    def is_lifted(self) -> bool:
        """Return whether the model knows objects."""
        return self.method is not None


class RenderedView(NamedTuple):
    """What a model shows from one camera.

    Attributes:
        image: Colour, not clamped, [H, W, 3].
        object_ids: Codebook row of every pixel, int64 [H, W]; None where the scene was not lifted. In an edited scene
            the object with most of the blending weight.
        confidence: Association of that row, in [0, 1], [H, W]; None where the scene was not lifted. In an edited scene
            that object's share of the blending weight.
        alpha: Accumulated opacity in [0, 1], [H, W].
        depth: Mean camera depth in world units, 0 where nothing is, [H, W].
    """

    image: Tensor
    object_ids: Tensor | None
    confidence: Tensor | None
    alpha: Tensor
    depth: Tensor


def load_model(model_path: Path, *, iteration: int = -1, device: torch.device = _CPU) -> SavedModel:
    """Return the trained scene in a model folder.

    Args:
        model_path: Model folder.
        iteration: Saved iteration; -1 = the last.
        device: Where it is to be rendered.
    Raises:
        UserError: The folder holds no run, nothing is saved, or not that iteration.
    """
    settings = outputs.read_run_settings(model_path)
    gaussians, state = outputs.read_model(model_path, iteration)
    number = outputs.saved_iterations(model_path)[-1] if iteration == -1 else iteration
    gaussians = gaussians.to(device)
    gaussians.freeze_geometry()
    if state is None:
        return SavedModel(settings, number, gaussians, None, 0)
    method = settings.build_method(zero_id="ignore")  # zero_id matters to training only
    method.load_object_state(state)
    method.to(device)
    is_edited = (model_path / outputs.EDITS_FILE).exists()
    labels = outputs.read_labels(model_path, number)[0].to(device) if is_edited else None
    return SavedModel(settings, number, gaussians, method, method.num_objects, labels)


def open_model(
    model_path: Path, *, iteration: int, source_path: Path | None, device: torch.device
) -> tuple[SavedModel, Scene]:
    """Return a trained scene and the views it was trained on, split as then; their initial points are placeholders.

    Args:
        model_path: Model folder.
        iteration: Saved iteration; -1 = the last.
        source_path: Where the scene is now; None = where it was.
        device: Where the model is to be rendered.
    Raises:
        UserError: There is no such model, or its scene folder is gone.
    """
    model = load_model(model_path, iteration=iteration, device=device)
    if source_path is not None:
        moved = replace(model.settings.data, source_path=source_path)
        model = model._replace(settings=replace(model.settings, data=moved))
    return model, views_of(model.settings.data)


def views_of(data: DataSettings) -> Scene:
    """Return the views a model was trained on, split as then; the initial points are placeholders.

    Raises:
        UserError: The scene folder is gone.
    """
    if not data.source_path.is_dir():
        raise UserError(f"{data.source_path}: the scene this model was trained on is not there; give its place with -s")
    # Initial points are for training; triangulating them again would take a minute in scenes that bring none.
    return load_scene(replace(data, random_init=True, num_random_points=4))


@torch.no_grad()
def render_view(model: SavedModel, camera: Camera) -> RenderedView:
    """Return what the model shows from a camera, as tensors on the CPU.

    Source: Eq. 2 on the rendered feature of each pixel; where the scene was edited, votes of its Gaussians.
    """
    device = model.gaussians.device
    background = torch.ones(3, device=device) if model.settings.geometry.white_background else None
    by_features = model.is_lifted and model.object_ids is None
    out = render(model.gaussians, camera, background=background, with_features=by_features)
    depth = torch.where(out.alpha > 0, out.depth / out.alpha.clamp(min=1e-6), 0.0)
    if model.method is None:
        ids, confidence = None, None
    elif model.object_ids is not None:
        ids, confidence = segment_by_labels(model.gaussians, model.object_ids, camera)
    else:
        ids, confidence = model.method.segment(out.features)
    maps = (out.image, ids, confidence, out.alpha, depth)
    return RenderedView(*(None if value is None else value.cpu() for value in maps))


def render_views(model: SavedModel, cameras: Iterable[Camera]) -> Iterator[RenderedView]:
    """Yield what the model shows from each camera, one at a time so that memory stays small."""
    for camera in cameras:
        yield render_view(model, camera)


@torch.no_grad()
def segment_view(model: SavedModel, camera: Camera, methods: Mapping[str, Method]) -> dict[str, Tensor]:
    """Return the object ids that each of several methods reads off one rendering of the model, int64 [H, W]."""
    features = render(model.gaussians, camera, with_features=True).features
    return {name: method.segment(features).object_ids.cpu() for name, method in methods.items()}


@torch.no_grad()
def render_likely_ids(model: SavedModel, camera: Camera, *, threshold: float) -> Tensor:
    """Return the object ids whose association is above the threshold at each pixel, int32 [H, W, K], -1 = none.

    Raises:
        ValueError: The scene was not lifted.
    """
    if model.method is None:
        raise ValueError("the scene was not lifted, so no object is known")
    features = render(model.gaussians, camera, with_features=True).features
    parts = features.reshape(-1, features.shape[-1]).split(_PIXELS_AT_ONCE)
    likely = torch.cat([likely_ids(model.method.association(part), threshold=threshold).cpu() for part in parts])
    return likely.view(*features.shape[:-1], -1)
