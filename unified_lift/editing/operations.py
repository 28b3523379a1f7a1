"""What can be done with the objects of a scene, a class each. `apply` returns a new scene; the one given stays."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from torch import Tensor

from unified_lift.editing.fill import fill
from unified_lift.errors import UserError
from unified_lift.model.gaussians import SH_C0
from unified_lift.modelfolder.inference import TrainedScene, views_of
from unified_lift.ops.harmonics import rotate_harmonics
from unified_lift.ops.quaternions import multiply, rotation_from_quaternion

Vector = tuple[float, float, float]
WHOLE = (-1,)
"""In place of object ids: all there are. A script calls it `scene`."""

_LUMA = (0.2126, 0.7152, 0.0722)  # Rec. 709
_DARK = 0.1  # shading of an object much darker than this is not blown up when it is painted bright
_SPACING_NEIGHBOUR = 4  # the distance to the 4th neighbour is how far apart Gaussians of a surface lie
_MIN_PART_SHARE = 0.05  # of an object's Gaussians: a smaller piece that touches no other piece of it is an outlier


@dataclass(frozen=True)
class Rotation:
    """A right-handed rotation by `degrees` about an axis of the world, of any length but zero."""

    axis: Vector = (0.0, 0.0, 1.0)
    degrees: float = 0.0

    @property
    def wxyz(self) -> Tensor:
        """Return the unit quaternion, float64 [4]."""
        axis, half = torch.tensor(self.axis, dtype=torch.float64), math.radians(self.degrees) / 2
        axis = axis / axis.abs().max()  # its square could be 0 or infinite
        return torch.cat([axis.new_tensor([math.cos(half)]), math.sin(half) * axis / axis.norm()])


@dataclass(frozen=True, kw_only=True)
class Operation(ABC):
    """An edit, with its settings as fields. Adding one is a subclass, and an entry of `script.OPERATIONS`."""

    @property
    def key(self) -> str:
        """Return what a script calls it."""
        return type(self).__name__.lower()

    def apply(self, scene: TrainedScene) -> TrainedScene:
        """Return the scene after it; a UserError: no such object, or nothing would be left."""
        scene = scene.as_one_object()
        ids: dict[str, Any] = {"objects": tuple(scene.objects)} if getattr(self, "objects", None) == WHOLE else {}
        edited = replace(self, **ids)._edited(scene)
        names = {object_id: name for object_id, name in edited.names.items() if object_id in edited.objects}
        return replace(edited, names=names, is_edited=True)  # ids of objects that are gone may be given again

    @abstractmethod
    def _edited(self, scene: TrainedScene) -> TrainedScene: ...


@dataclass(frozen=True, kw_only=True)
class ObjectOperation(Operation):
    """An edit of objects that are given by their ids, or of `WHOLE`, the scene."""

    objects: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Remove(ObjectOperation):
    """Take objects away; `fill` trains what is around again on the scene's photos, so that no hole is left.

    `shadow`: what is filled loses the object's shadow too.
    """

    fill: bool = False
    shadow: bool = True

    def _edited(self, scene: TrainedScene) -> TrainedScene:
        removed = scene.mask(self.objects)
        if bool(removed.all()):
            listed = ", ".join(map(str, self.objects))
            raise UserError(f"{scene.path}: without objects {listed} nothing is left; keep one object at least")
        if not self.fill:
            return scene.subset(~removed)
        if not (scene.path / "config.yaml").exists():
            raise UserError(f"{scene.path}: fill needs the photos, and this model names none; leave fill out")
        return fill(scene, removed, views_of(scene).train, shadow=self.shadow)


class Isolate(ObjectOperation):
    """Take everything else away."""

    def _edited(self, scene: TrainedScene) -> TrainedScene:
        return scene.subset(scene.mask(self.objects))


class Merge(ObjectOperation):
    """Make objects one: that of the first id, whose name stays."""

    def _edited(self, scene: TrainedScene) -> TrainedScene:
        object_ids = torch.where(scene.mask(self.objects), self.objects[0], scene.object_ids)
        return replace(scene, labels=replace(scene.require_labels(), object_ids=object_ids))


@dataclass(frozen=True, kw_only=True)
class Clean(ObjectOperation):
    """Give Gaussians that hardly belong to objects to the nearest other objects, with confidence 0.

    Those are Gaussians below `min_confidence` (0 where no camera saw them), and parts which hold under 5 % of an
    object's Gaussians and are farther from its other parts than about `outliers` times the usual distance between its
    Gaussians; 5 is a good value, 0 = off.
    """

    min_confidence: float = 0.0
    outliers: float = 0.0

    def _edited(self, scene: TrainedScene) -> TrainedScene:
        means, chosen = scene.gaussians.means.detach().cpu().double().numpy(), scene.mask(self.objects).cpu().numpy()
        object_ids, confidence = scene.object_ids.cpu().numpy(), scene.confidence.cpu().numpy()
        doubtful = chosen & (confidence < self.min_confidence)
        for object_id in self.objects:
            rows = scene.rows[object_id].cpu().numpy()
            own = rows[~doubtful[rows]]
            if self.outliers > 0:
                doubtful[own] = _outlying(means[own], self.outliers)
            if doubtful[rows].all():
                raise UserError(f"nothing would be left of object {object_id}; lower min_confidence or raise outliers")
        if chosen.all() or not doubtful.any():
            return scene.subset(torch.from_numpy(~doubtful))
        nearest = cKDTree(means[~chosen]).query(means[doubtful])[1]
        found = {"object_ids": scene.object_ids.clone(), "confidence": scene.confidence.clone()}
        labels = replace(scene.require_labels(), **found)
        labels.object_ids[doubtful] = torch.from_numpy(object_ids[~chosen][nearest]).to(labels.object_ids)
        labels.confidence[doubtful] = 0
        return replace(scene, labels=labels)


@dataclass(frozen=True, kw_only=True)
class Recolour(ObjectOperation):
    """Paint objects one by one: their mean colour becomes `color`, brighter and darker places stay.

    With y the luma of a colour c, c becomes color * (y + 0.1) / (mean y + 0.1); the same linear map acts on the higher
    coefficients, so that highlights and the like take the new colour too.
    `color` is #rrggbb; `strength` 0 leaves an object as it was, 1 leaves none of the old hue.
    """

    color: str
    strength: float = 1.0

    def _edited(self, scene: TrainedScene) -> TrainedScene:
        table = scene.gaussians.state_dict()
        sh0, shN = table["sh0"].clone(), table["shN"].clone()  # noqa: N806
        rgb = [value / 255 for value in bytes.fromhex(self.color.removeprefix("#"))]
        luma, paint = (torch.tensor(each, dtype=torch.float64, device=sh0.device) for each in (_LUMA, rgb))
        kept = 1 - self.strength
        scene.mask(self.objects)  # raises where one is not there
        for object_id in self.objects:
            own = scene.rows[object_id]
            colors, higher = sh0[own].double() * SH_C0 + 0.5, shN[own].double()  # [n, 1, 3], [n, K - 1, 3]
            share = 1 / ((colors @ luma).mean().clamp(min=0) + _DARK)
            painted = kept * colors + self.strength * share * ((colors @ luma)[..., None] + _DARK) * paint
            sh0[own] = ((painted - 0.5) / SH_C0).float()
            shN[own] = (kept * higher + self.strength * share * (higher @ luma)[..., None] * paint).float()
        painted_over = scene.gaussians.like(table | {"sh0": sh0, "shN": shN}, takes_over=True)  # the rest is shared
        return replace(scene, gaussians=painted_over)


@dataclass(frozen=True, kw_only=True)
class Move(ObjectOperation):
    """Move objects together: x becomes R scale (x - pivot) + pivot + translate; view-dependent colour turns with them.

    R is `rotate`; `translate` and the pivot `about` are in the user's coordinates; None = the centroid.
    """

    rotate: Rotation = Rotation()
    translate: Vector = (0.0, 0.0, 0.0)
    scale: float = 1.0
    about: Vector | None = None

    def _edited(self, scene: TrainedScene) -> TrainedScene:
        chosen, table = scene.mask(self.objects), scene.gaussians.state_dict()
        for name, value in self._moved(scene, chosen).items():
            table[name] = table[name].clone()
            table[name][chosen] = value
        return replace(scene, gaussians=scene.gaussians.like(table, takes_over=True))

    def _moved(self, scene: TrainedScene, chosen: Tensor) -> dict[str, Tensor]:
        """Return the parameters of `chosen` that the move changes; in float64, so that little is rounded."""
        table = {name: value[chosen] for name, value in scene.gaussians.state_dict().items()}
        means = table["means"].double()
        about = centroid(scene, self.objects) if self.about is None else scene.frame.inside(np.array(self.about))
        pivot, offset = means.new_tensor(about), scene.frame.scale * means.new_tensor(self.translate)
        if self.rotate.degrees == 0 and self.scale == 1:
            return {"means": (means + offset).float()}
        wxyz = self.rotate.wxyz.to(means.device)
        matrix = rotation_from_quaternion(wxyz)
        moved = {"means": (self.scale * (means - pivot) @ matrix.T + pivot + offset).float()}
        return moved | turned(table, wxyz if self.rotate.degrees else None, self.scale)


@dataclass(frozen=True, kw_only=True)
class Duplicate(Move):
    """Add moved copies of objects behind all Gaussians, "copy of ..."; `new_ids` are theirs, None = `next_ids`."""

    new_ids: tuple[int, ...] | None = None

    def _edited(self, scene: TrainedScene) -> TrainedScene:
        chosen, count = scene.mask(self.objects), len(self.objects)
        fresh = next_ids(scene, count) if self.new_ids is None else list(self.new_ids)
        taken = sorted(set(fresh) & set(scene.objects))
        if taken or len(set(fresh)) != count or min(fresh) < 0:
            problem = f"id {taken[0]} is taken" if taken else f"{count} objects need as many new ids, none negative"
            raise UserError(f"new_ids {fresh}: {problem}; leave them out to take free ones")
        names, becomes = dict(scene.names), dict(zip(self.objects, fresh, strict=True))
        known, index = scene.object_ids[chosen].unique(return_inverse=True)
        ids = known.new_tensor([becomes[old] for old in known.tolist()])[index]
        rows = torch.cat([torch.arange(len(scene), device=chosen.device), chosen.nonzero()[:, 0]])
        for old, new in becomes.items():
            names[new] = f"copy of {scene.name_of(old)}"
        moved, table = self._moved(scene, chosen), scene.gaussians.state_dict()
        table = {name: torch.cat([value, moved.get(name, value[chosen])]) for name, value in table.items()}
        labels = replace(scene.require_labels().of(rows), object_ids=torch.cat([scene.object_ids, ids]))
        gaussians = scene.gaussians.like(table, takes_over=True)
        return replace(scene, gaussians=gaussians, labels=labels, names=names)


@dataclass(frozen=True, kw_only=True)
class Rename(Operation):
    """Call objects by names: pairs of object id and name."""

    names: tuple[tuple[int, str], ...]

    def _edited(self, scene: TrainedScene) -> TrainedScene:
        new = {object_id: name.strip() for object_id, name in self.names}
        scene.mask(list(new))
        for object_id, name in new.items():
            if not name:
                raise UserError(f"rename: the new name of object {object_id} is empty")
        return replace(scene, names={**scene.names, **new})


def turned(table: Mapping[str, Tensor], wxyz: Tensor | None, scale: float) -> dict[str, Tensor]:
    """Return what a rotation (unit quaternion, float64 [4], None = none) and a scale change but for positions.

    Those are rotations, sizes and view-dependent colours; in float64, so that little is rounded.
    """
    changed = {}
    if scale != 1:
        changed["log_scales"] = (table["log_scales"].double() + math.log(scale)).float()
    if wxyz is not None:
        changed["quats"] = multiply(wxyz, table["quats"].double()).float()
        changed["shN"] = rotate_harmonics(table["shN"], rotation_from_quaternion(wxyz))
    return changed


def next_ids(scene: TrainedScene, count: int) -> list[int]:
    """Return the ids that the next copies take: above all present ones, and above those of training, removed or not."""
    first = max(int(scene.object_ids.max()) + 1, scene.method.num_objects if scene.method is not None else 0)
    return list(range(first, first + count))


def centroid(scene: TrainedScene, ids: Sequence[int]) -> Vector:
    """Return the mean of the centres of objects, each by its confidence, so that outliers hardly count.

    It is inside of the scene's frame, as the Gaussians are.
    """
    chosen = scene.mask(ids)
    weights = scene.confidence[chosen].double()
    weights = weights if bool((weights > 0).any()) else torch.ones_like(weights)
    x, y, z = ((weights[:, None] * scene.gaussians.means.detach()[chosen].double()).sum(dim=0) / weights.sum()).tolist()
    return x, y, z


def pieces(points: np.ndarray, factor: float) -> np.ndarray:
    """Return which piece each of points [n, 3] is in; pieces lie about `factor` spacings apart, int [n]."""
    if len(points) <= _SPACING_NEIGHBOUR:
        return np.zeros(len(points), dtype=int)
    spacing = float(np.median(cKDTree(points).query(points, k=_SPACING_NEIGHBOUR + 1)[0][:, -1]))
    # Cells that touch are linked instead of points: a large object has too many pairs of near points.
    size = max(factor * spacing / 2, 1e-9 * float(np.ptp(points)), 1e-12)
    cells, cell = np.unique(np.floor(points / size).astype(np.int64), axis=0, return_inverse=True)
    pairs = cKDTree(cells).query_pairs(1, p=np.inf, output_type="ndarray")
    links = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(cells),) * 2)
    return connected_components(links, directed=False)[1][cell.ravel()]


def _outlying(points: np.ndarray, factor: float) -> np.ndarray:
    """Return which points [n, 3] lie in small parts about `factor` spacings away from everything else, bool [n]."""
    part = pieces(points, factor)
    return (np.bincount(part) < _MIN_PART_SHARE * len(points))[part]
