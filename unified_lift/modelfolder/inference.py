"""Looking at a trained scene: load a model folder, render views of it, read the objects of pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unified_lift.data import load_scene
from unified_lift.data.cache import DataCache
from unified_lift.errors import UserError
from unified_lift.methods.base import Method
from unified_lift.metrics.prompts import likely_ids
from unified_lift.model.gaussians import Gaussians
from unified_lift.model.ply import read_gaussians
from unified_lift.model.render import render
from unified_lift.modelfolder import outputs
from unified_lift.modelfolder.labels import GaussianLabels, segment_by_labels
from unified_lift.modelfolder.settings import TrainSettings
from unified_lift.reading import read_tensors, reading
from unified_lift.types import IDENTITY, Camera, Scene, Similarity

_CPU = torch.device("cpu")
_PIXELS_AT_ONCE = 2**16  # whose probabilities of all objects are in memory together


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedScene:
    """A trained scene. Edits return a new one; tensors are never changed in place.

    Object 0 is the largest object of a trained scene, usually the background. In an edited scene only labels tell
    objects apart, since the features of a copy are those of its original.
    """

    gaussians: Gaussians  # features included if the scene was lifted
    labels: GaussianLabels | None = None  # None: not lifted, so that no objects are known
    method: Method | None = None  # reads ids off rendered features; None: not lifted
    names: Mapping[int, str] = field(default_factory=dict)  # given by the user; others are called `object <id>`
    num_views: Mapping[int, int] = field(default_factory=dict)  # training views that show an object; none for copies
    frame: Similarity = IDENTITY  # the Gaussians are inside of it; files, names of places and edits are outside
    settings: TrainSettings = field(default_factory=TrainSettings)  # of the training
    path: Path = Path()  # the model folder
    iteration: int = 0  # which of the saved ones
    is_edited: bool = False  # whether objects were changed after training
    placed: np.ndarray | None = None  # of a part placed for a file: the user's coordinates -> the file's, [4, 4]

    def __post_init__(self) -> None:
        if self.labels is not None and not len(self.object_ids) == len(self.confidence) == len(self):
            raise ValueError(f"{len(self.object_ids)} labels and {len(self.confidence)} confidences of {len(self)}")

    def __len__(self) -> int:
        return len(self.gaussians)

    @property
    def is_lifted(self) -> bool:
        """Return whether the features of the scene tell objects apart."""
        return self.method is not None

    def require_labels(self) -> GaussianLabels:
        """Return the labels; a UserError where the scene was not lifted, so that it knows no objects."""
        if self.labels is None:
            fix = "lift it: train.py with masks and --lift_iterations"
            raise UserError(f"{self.path}: this model knows no objects; {fix}")
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

    @cached_property
    def rows(self) -> dict[int, Tensor]:
        """Return object id -> its Gaussians, rising, int64, rising ids: one sort instead of a mask for each object."""
        order = self.object_ids.argsort(stable=True)
        return dict(zip(self.objects, order.split(list(self.objects.values())), strict=True))

    def name_of(self, object_id: int) -> str:
        """Return what the object is called."""
        return self.names.get(object_id, f"object {object_id}")

    def mask(self, object_ids: Sequence[int]) -> Tensor:
        """Return which Gaussians belong to one of the objects, bool [N]; a UserError if one has no Gaussian."""
        for object_id in object_ids:
            if object_id not in self.objects:
                listed = ", ".join(map(str, list(self.objects)[:20])) + (" ..." if len(self.objects) > 20 else "")
                raise UserError(f"{self.path}: no object {object_id}; there are {listed}")
        return torch.isin(self.object_ids, torch.tensor(list(object_ids), device=self.object_ids.device))

    def subset(self, chosen: Tensor) -> TrainedScene:
        """Return the scene with only the Gaussians of `chosen`, bool [N] or indices."""
        chosen = chosen.nonzero()[:, 0] if chosen.dtype == torch.bool else chosen  # once, not for each parameter
        table = {name: value[chosen] for name, value in self.gaussians.state_dict().items()}
        labels = None if self.labels is None else self.labels.of(chosen)
        return replace(self, gaussians=self.gaussians.like(table, takes_over=True), labels=labels)

    def as_one_object(self) -> TrainedScene:
        """Return the scene; where it knows no objects, with all of it as object 0."""
        if self.labels is not None:
            return self
        ids = torch.zeros(len(self), dtype=torch.int64, device=self.gaussians.device)
        return replace(self, labels=GaussianLabels(ids, torch.ones_like(ids).float()), names={0: "scene"})


class RenderedView(NamedTuple):
    """What a scene shows from one camera; ids and confidence are None where it was not lifted."""

    image: Tensor  # colour, not clamped, [H, W, 3]
    object_ids: Tensor | None  # int64 [H, W]
    confidence: Tensor | None  # association of that object, if edited its share of the blending weight, [0, 1], [H, W]
    alpha: Tensor  # accumulated opacity in [0, 1], [H, W]
    depth: Tensor  # mean camera depth in the user's units, 0 where nothing is, [H, W]


def load_model(
    model_path: Path,
    *,
    level: str = "",
    iteration: int = -1,
    source_path: Path | None = None,
    device: torch.device = _CPU,
) -> TrainedScene:
    """Return the trained scene in a model folder.

    `level` names a further granularity of masks (train.py --levels), "" = the model's own; `iteration` -1 is the last
    saved one; `source_path` is where the photos are now, if they moved.
    A UserError: the folder holds no run, no such level or iteration, or files that are damaged.
    """
    if level and level not in (known := outputs.saved_levels(model_path)):
        listed = ", ".join(known) or "none (train.py --levels)"
        raise UserError(f"{model_path}: no level {level}; there are {listed}")
    model_path = outputs.level_dir(model_path, level) if level else model_path
    settings = outputs.read_run_settings(model_path)
    if source_path is not None:
        settings = replace(settings, data=replace(settings.data, source_path=source_path))
    saved = outputs.saved_iterations(model_path)
    if not saved:
        raise UserError(f"{model_path}: no point_cloud/iteration_* there; let train.py finish (or --resume it) first")
    iteration = saved[-1] if iteration == -1 else iteration
    if iteration not in saved:
        raise UserError(f"{model_path}: iteration {iteration} is not saved; there are {', '.join(map(str, saved))}")
    folder = outputs.iteration_dir(model_path, iteration)
    is_lifted = (folder / "classifier.pth").exists()
    ply, frame = "point_cloud_objects.ply" if is_lifted else "point_cloud.ply", outputs.read_frame(model_path)
    gaussians = read_gaussians(folder / ply, frame).to(device)
    gaussians.freeze_geometry()
    gaussians.antialiased = settings.geometry.antialiased
    model = TrainedScene(gaussians=gaussians, frame=frame, settings=settings, path=model_path, iteration=iteration)
    model = replace(model, is_edited=(model_path / outputs.EDITS_FILE).exists())
    if not is_lifted:
        return model
    method = settings.build_method(zero_id="ignore")  # zero_id matters to training only
    with reading(codes := folder / "classifier.pth", "table of objects", fix="train or --resume again"):
        method.load_object_state(read_tensors(codes, fix="train or --resume again"))
        probe = method.to(device).segment(gaussians.features[:2].detach())  # raises where the tables do not fit
        if not method.num_objects or not bool(probe.confidence.isfinite().all()):
            raise ValueError(f"it holds {method.num_objects} objects, none of which can be told")
    labels, names, num_views = outputs.read_objects(folder, device, count=len(gaussians))
    if not model.is_edited and labels.object_ids.max() >= method.num_objects:
        what = f"holds {method.num_objects} objects, segmentation.npz object {labels.object_ids.max()}"
        raise UserError(f"{codes}: {what}; train or --resume again")
    return replace(model, method=method.to(device), labels=labels, names=names, num_views=num_views)


def views_of(model: TrainedScene) -> Scene:
    """Return the views a model was trained on, split as then, points replaced; a UserError if they are gone."""
    data = model.settings.data
    if not data.source_path.is_dir():
        raise UserError(f"{data.source_path}: the scene this model was trained on is not there; give its place with -s")
    # Initial points are for training; triangulating them again would take a minute in scenes that bring none.
    white = model.settings.geometry.white_background
    few = replace(data, random_init=True, num_random_points=4)
    return load_scene(few, frame=model.frame, white=white, cache=DataCache("auto", device=_CPU))


@torch.no_grad()
def render_view(model: TrainedScene, camera: Camera) -> RenderedView:
    """Return what a scene shows from a camera, as tensors on the CPU.

    Source: Eq. 2 on the rendered feature of each pixel; where the scene was edited, label voting of its Gaussians.
    """
    with_features = model.is_lifted and not model.is_edited
    out = render(model.gaussians, camera, background=model.background, with_features=with_features)
    depth = torch.where(out.alpha > 0, out.depth / out.alpha.clamp(min=1e-6), 0.0) / model.frame.scale
    image, alpha, depth = out.image.cpu(), out.alpha.cpu(), depth.cpu()
    if model.is_edited and model.labels is not None:
        ids, confidence = segment_by_labels(model.gaussians, model.object_ids, camera)
    elif model.method is not None:
        ids, confidence = model.method.segment(out.features)
    else:
        return RenderedView(image, None, None, alpha, depth)
    return RenderedView(image, ids.cpu(), confidence.cpu(), alpha, depth)


@torch.no_grad()
def render_likely_ids(model: TrainedScene, camera: Camera, *, threshold: float) -> Tensor:
    """Return the object ids whose association is above the threshold at each pixel, int32 [H, W, K], -1 = none."""
    assert model.method is not None
    features = render(model.gaussians, camera, with_features=True).features
    parts = features.reshape(-1, features.shape[-1]).split(_PIXELS_AT_ONCE)
    likely = torch.cat([likely_ids(model.method.association(part), threshold=threshold).cpu() for part in parts])
    return likely.view(*features.shape[:-1], -1)


def object_at(model: TrainedScene, camera: Camera, u: float, v: float) -> int | None:
    """Return the object a pixel (corner origin) shows most, None where nothing is; a UserError: outside the image."""
    if not (0 <= u < camera.width and 0 <= v < camera.height):
        raise UserError(f"point {u:g},{v:g} lies outside the image of {camera.width} x {camera.height} pixels")
    pixel = torch.tensor([[int(u), int(v)]])
    (object_id,), (share,) = segment_by_labels(model.gaussians, model.object_ids, camera, pixels=pixel)
    return int(object_id) if share > 0 else None
