"""Looking at a trained scene: load a model folder, render views of it, read the objects of pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unified_lift.data import load_scene
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError
from unified_lift.fileio import read_json
from unified_lift.methods.base import Method
from unified_lift.metrics.prompts import likely_ids
from unified_lift.model.gaussians import Gaussians
from unified_lift.model.render import render
from unified_lift.modelfolder import outputs
from unified_lift.modelfolder.labels import GaussianLabels, describe_objects, segment_by_labels
from unified_lift.modelfolder.settings import TrainSettings
from unified_lift.types import Camera, Scene

_CPU = torch.device("cpu")
_PIXELS_AT_ONCE = 2**16  # whose probabilities of all objects are in memory together


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedScene:
    """A trained scene. Edits return a new one; tensors are never changed in place.

    Attributes:
        gaussians: The scene, features included if it was lifted.
        labels: Object of each Gaussian; None where the scene was not lifted, so that it knows no objects. Id 0 is the
            largest object of a trained scene, usually the background.
        method: Reads ids off rendered features; None where the scene was not lifted.
        names: Object id -> name given by the user; others are called `object <id>`.
        num_views: Object id -> training views that show it; absent for copies.
        settings: What it was trained with.
        path: Its model folder.
        iteration: Which saved iteration this is.
        is_edited: Whether objects were changed after training. Then only labels tell them apart, since the features of
            a copy are those of its original.
    """

    gaussians: Gaussians
    labels: GaussianLabels | None = None
    method: Method | None = None
    names: Mapping[int, str] = field(default_factory=dict)
    num_views: Mapping[int, int] = field(default_factory=dict)
    settings: TrainSettings = field(default_factory=TrainSettings)
    path: Path = Path()
    iteration: int = 0
    is_edited: bool = False

    def __post_init__(self) -> None:
        shapes = [] if self.labels is None else [tuple(self.object_ids.shape), tuple(self.confidence.shape)]
        if any(shape != (len(self),) for shape in shapes):
            raise ValueError(f"labels must be [{len(self)}], received {shapes}")

    def __len__(self) -> int:
        return len(self.gaussians)

    @property
    def is_lifted(self) -> bool:
        """Return whether the features of the scene tell objects apart."""
        return self.method is not None

    def require_labels(self) -> GaussianLabels:
        """Return the labels; a UserError where the scene was not lifted, so that it knows no objects."""
        if self.labels is None:
            problem = "this model knows no objects; lift it: train.py with masks and --lift_iterations"
            raise UserError(f"{self.path}: {problem}")
        return self.labels

    @property
    def object_ids(self) -> Tensor:
        """Return the object of each Gaussian, int64 [N]; a UserError where the scene was not lifted."""
        return self.require_labels().object_ids

    @property
    def confidence(self) -> Tensor:
        """Return how sure each label is, in [0, 1], [N]; a UserError where the scene was not lifted."""
        return self.require_labels().confidence

    @property
    def background(self) -> Tensor:
        """Return the colour behind all Gaussians, white or black, [3]."""
        return torch.full((3,), float(self.settings.geometry.white_background), device=self.gaussians.device)

    @cached_property
    def objects(self) -> dict[int, int]:
        """Return object id -> number of its Gaussians, rising ids."""
        ids, counts = torch.unique(self.object_ids, return_counts=True)
        return dict(zip(ids.tolist(), counts.tolist(), strict=True))

    def name_of(self, object_id: int) -> str:
        """Return what the object is called."""
        return self.names.get(object_id, f"object {object_id}")

    def described(self) -> dict[int, dict[str, Any]]:
        """Return id -> {name, count, color, bbox, centroid, views, score} of every object, see `describe_objects`."""
        return describe_objects(self.gaussians, self.require_labels(), names=self.names, num_views=self.num_views)

    def mask(self, object_ids: Sequence[int]) -> Tensor:
        """Return which Gaussians belong to one of the objects, bool [N]; a UserError if one has no Gaussian."""
        for object_id in object_ids:
            if object_id not in self.objects:
                listed = ", ".join(map(str, list(self.objects)[:20])) + (" ..." if len(self.objects) > 20 else "")
                raise UserError(f"{self.path}: no object {object_id}; there are {listed}")
        return torch.isin(self.object_ids, torch.tensor(list(object_ids), device=self.object_ids.device))

    def subset(self, chosen: Tensor) -> TrainedScene:
        """Return the scene with only the Gaussians of `chosen`, bool [N] or indices."""
        table = {name: value.detach()[chosen] for name, value in self.gaussians}
        labels = GaussianLabels(self.object_ids[chosen], self.confidence[chosen])
        return replace(self, gaussians=Gaussians(table), labels=labels)


class RenderedView(NamedTuple):
    """What a scene shows from one camera.

    Attributes:
        image: Colour, not clamped, [H, W, 3].
        object_ids: Object of every pixel, int64 [H, W]; None where the scene was not lifted.
        confidence: Association of that object, in an edited scene its share of the blending weight, in [0, 1], [H, W].
        alpha: Accumulated opacity in [0, 1], [H, W].
        depth: Mean camera depth in world units, 0 where nothing is, [H, W].
    """

    image: Tensor
    object_ids: Tensor | None
    confidence: Tensor | None
    alpha: Tensor
    depth: Tensor


def load_model(
    model_path: Path,
    *,
    level: str = "",
    iteration: int = -1,
    source_path: Path | None = None,
    device: torch.device = _CPU,
) -> TrainedScene:
    """Return the trained scene in a model folder.

    Args:
        level: Name of a further granularity of masks (train.py --levels); "" = the model's own.
        iteration: Saved iteration; -1 = the last.
        source_path: Where the photos are now, if they moved.
        device: Where it is to be rendered.
    Raises:
        UserError: The folder holds no run, no such level or iteration, or files that are damaged.
    """
    if level:
        known = outputs.saved_levels(model_path)
        if level not in known:
            listed = ", ".join(known) or "none (train.py --levels)"
            raise UserError(f"{model_path}: no level {level}; there are {listed}")
        model_path = outputs.level_dir(model_path, level)
    settings = outputs.read_run_settings(model_path)
    if source_path is not None:
        settings = replace(settings, data=replace(settings.data, source_path=source_path))
    gaussians, state = outputs.read_model(model_path, iteration)
    number = outputs.saved_iterations(model_path)[-1] if iteration == -1 else iteration
    gaussians = gaussians.to(device)
    gaussians.freeze_geometry()
    model = TrainedScene(gaussians=gaussians, settings=settings, path=model_path, iteration=number)
    if state is None:
        return model
    method = settings.build_method(zero_id="ignore")  # zero_id matters to training only
    method.load_object_state(state)
    method.to(device)
    saved = outputs.read_labels(model_path, number)
    labels = GaussianLabels(saved.object_ids.to(device), saved.confidence.to(device))
    names, num_views = _listed_objects(outputs.iteration_dir(model_path, number) / "objects.json")
    is_edited = (model_path / outputs.EDITS_FILE).exists()
    return replace(model, method=method, labels=labels, names=names, num_views=num_views, is_edited=is_edited)


def _listed_objects(path: Path) -> tuple[dict[int, str], dict[int, int]]:
    """Return the names that differ from the default ones, and in how many views each object is seen."""
    if not path.exists():
        return {}, {}
    listed = read_json(path)
    try:
        names = {int(key): str(entry["name"]) for key, entry in listed.items()}
        num_views = {int(key): int(entry.get("views", 0)) for key, entry in listed.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a list of objects ({error}); train or --resume again") from None
    return {object_id: name for object_id, name in names.items() if name != f"object {object_id}"}, num_views


def open_model(
    model_path: Path, *, iteration: int, source_path: Path | None, device: torch.device
) -> tuple[TrainedScene, Scene]:
    """Return what `load_model` and `views_of` return."""
    model = load_model(model_path, iteration=iteration, source_path=source_path, device=device)
    return model, views_of(model.settings.data)


def views_of(data: DataSettings) -> Scene:
    """Return the views a model was trained on, split as then, points replaced; a UserError if they are gone."""
    if not data.source_path.is_dir():
        raise UserError(f"{data.source_path}: the scene this model was trained on is not there; give its place with -s")
    # Initial points are for training; triangulating them again would take a minute in scenes that bring none.
    return load_scene(replace(data, random_init=True, num_random_points=4))


@torch.no_grad()
def render_view(model: TrainedScene, camera: Camera) -> RenderedView:
    """Return what a scene shows from a camera, as tensors on the CPU.

    Source: Eq. 2 on the rendered feature of each pixel; where the scene was edited, label voting of its Gaussians.
    """
    by_features = model.method is not None and not model.is_edited
    out = render(model.gaussians, camera, background=model.background, with_features=by_features)
    depth = torch.where(out.alpha > 0, out.depth / out.alpha.clamp(min=1e-6), 0.0)
    ids, confidence = None, None
    if model.is_edited:
        ids, confidence = segment_by_labels(model.gaussians, model.object_ids, camera)
    elif model.method is not None:
        ids, confidence = model.method.segment(out.features)
    if ids is not None and confidence is not None:
        ids, confidence = ids.cpu(), confidence.cpu()
    return RenderedView(out.image.cpu(), ids, confidence, out.alpha.cpu(), depth.cpu())


@torch.no_grad()
def segment_view(model: TrainedScene, camera: Camera, methods: Mapping[str, Method]) -> dict[str, Tensor]:
    """Return the object ids that each of several methods reads off one rendering of a scene, int64 [H, W]."""
    features = render(model.gaussians, camera, with_features=True).features
    return {name: method.segment(features).object_ids.cpu() for name, method in methods.items()}


@torch.no_grad()
def render_likely_ids(model: TrainedScene, camera: Camera, *, threshold: float) -> Tensor:
    """Return the object ids whose association is above the threshold at each pixel, int32 [H, W, K], -1 = none."""
    if model.method is None:
        raise ValueError("the scene was not lifted, so no object is known")
    features = render(model.gaussians, camera, with_features=True).features
    parts = features.reshape(-1, features.shape[-1]).split(_PIXELS_AT_ONCE)
    likely = torch.cat([likely_ids(model.method.association(part), threshold=threshold).cpu() for part in parts])
    return likely.view(*features.shape[:-1], -1)


def object_at(model: TrainedScene, camera: Camera, u: float, v: float) -> int | None:
    """Return the object at a pixel, u to the right and v down in corner-origin pixels; None where nothing is.

    It is the one whose Gaussians the pixel shows most, hence the one that an edit would move. A pixel outside the image
    is a UserError.
    """
    if not (0 <= u < camera.width and 0 <= v < camera.height):
        raise UserError(f"point {u:g},{v:g} lies outside the image of {camera.width} x {camera.height} pixels")
    pixel = torch.tensor([[int(u), int(v)]])
    (object_id,), (share,) = segment_by_labels(model.gaussians, model.object_ids, camera, pixels=pixel)
    return int(object_id) if share > 0 else None
