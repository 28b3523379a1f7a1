"""What can be done with the objects of a scene. Each function returns a new scene; the one given stays as it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unified_lift.errors import UserError
from unified_lift.model.gaussians import SH_C0, Gaussians
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.modelfolder.labels import GaussianLabels
from unified_lift.ops.harmonics import rotate_harmonics
from unified_lift.ops.quaternions import multiply, rotation_from_quaternion

Vector = tuple[float, float, float]

CENTROID = "centroid"
"""The middle of what moves, see `centroid`: objects turn and grow where they stand."""

_LUMA = (0.2126, 0.7152, 0.0722)  # Rec. 709
_DARK = 0.1  # shading of an object much darker than this is not blown up when it is painted bright


@dataclass(frozen=True)
class Rotation:
    """A right-handed rotation about an axis of the world.

    Attributes:
        axis: Direction, any length but zero.
        degrees: Angle.
    """

    axis: Vector = (0.0, 0.0, 1.0)
    degrees: float = 0.0

    @property
    def is_identity(self) -> bool:
        """Return whether it turns nothing."""
        return self.degrees == 0

    @property
    def wxyz(self) -> Tensor:
        """Return the unit quaternion, float64 [4]."""
        axis = torch.tensor(self.axis, dtype=torch.float64)
        half = math.radians(self.degrees) / 2
        return torch.cat([torch.tensor([math.cos(half)], dtype=torch.float64), math.sin(half) * axis / axis.norm()])

    @staticmethod
    def of_quaternion(wxyz: Sequence[float]) -> Rotation:
        """Return the rotation of a quaternion of any length but zero; its angle lies in [0, 180] degrees."""
        w, x, y, z = (float(value) for value in wxyz)
        sine = math.sqrt(x * x + y * y + z * z)
        if sine == 0:
            return Rotation()
        sign = -1.0 if w < 0 else 1.0
        axis = (sign * x / sine, sign * y / sine, sign * z / sine)
        return Rotation(axis, math.degrees(2 * math.atan2(sine, abs(w))))


def remove(scene: TrainedScene, ids: Sequence[int]) -> TrainedScene:
    """Return the scene without the objects.

    Raises:
        UserError: No such object, or nothing would be left.
    """
    gone = scene.mask(list(ids))
    if bool(gone.all()):
        raise UserError(f"{scene.path}: without {_listed(ids)} nothing is left; keep one object at least")
    return _without_stale_names(scene.rows(~gone))


def isolate(scene: TrainedScene, ids: Sequence[int]) -> TrainedScene:
    """Return the scene with nothing but the objects.

    Raises:
        UserError: No such object.
    """
    return _without_stale_names(scene.rows(scene.mask(list(ids))))


def recolour(scene: TrainedScene, ids: Sequence[int], *, color: Vector, strength: float = 1.0) -> TrainedScene:
    """Return the scene with the objects painted: their mean colour becomes `color`, brighter and darker places stay.

    With y the luma of a colour c, c becomes color * (y + 0.1) / (mean y + 0.1); the same linear map acts on the higher
    coefficients, so that highlights and the like take the new colour too.

    Args:
        scene: The scene.
        ids: Objects, painted one by one.
        color: RGB in [0, 1].
        strength: 0 = as it was, 1 = none of the old hue.
    Raises:
        UserError: No such object.
    """
    scene.mask(list(ids))
    sh0, shN = scene.gaussians.sh0.detach().clone(), scene.gaussians.shN.detach().clone()  # noqa: N806
    luma = torch.tensor(_LUMA, dtype=torch.float64, device=sh0.device)
    paint = torch.tensor(color, dtype=torch.float64, device=sh0.device)
    for object_id in ids:
        rows = scene.mask([object_id])
        colors = sh0[rows].double() * SH_C0 + 0.5  # [n, 1, 3]
        share = 1 / ((colors @ luma).mean().clamp(min=0) + _DARK)
        painted = (1 - strength) * colors + strength * share * ((colors @ luma)[..., None] + _DARK) * paint
        higher = shN[rows].double()
        sh0[rows] = ((painted - 0.5) / SH_C0).float()
        shN[rows] = ((1 - strength) * higher + strength * share * (higher @ luma)[..., None] * paint).float()
    return _with(scene, sh0=sh0, shN=shN)


def move(
    scene: TrainedScene,
    ids: Sequence[int],
    *,
    rotation: Rotation | None = None,
    translation: Vector = (0.0, 0.0, 0.0),
    scale: float = 1.0,
    about: str | Vector = CENTROID,
) -> TrainedScene:
    """Return the scene with the objects moved together: x becomes R scale (x - pivot) + pivot + translation.

    Their view-dependent colour turns with them.

    Args:
        scene: The scene.
        ids: Objects that move as one body.
        rotation: R; None = none.
        translation: World units.
        scale: Growth, > 0.
        about: The pivot, or "centroid".
    Raises:
        UserError: No such object.
    """
    rows = scene.mask(list(ids))
    moved = _transformed(scene, rows, rotation or Rotation(), translation, scale, about)
    table = {}
    for name, value in moved.items():
        table[name] = getattr(scene.gaussians, name).detach().clone()
        table[name][rows] = value
    return _with(scene, **table)


def duplicate(
    scene: TrainedScene,
    ids: Sequence[int],
    *,
    rotation: Rotation | None = None,
    translation: Vector = (0.0, 0.0, 0.0),
    scale: float = 1.0,
    about: str | Vector = CENTROID,
    new_ids: Sequence[int] | None = None,
) -> TrainedScene:
    """Return the scene with moved copies of the objects behind all that is there; they are called "copy of ...".

    Args:
        scene: The scene.
        ids: Objects; their copies move as one body.
        rotation: As for `move`; so are translation, scale and about.
        translation: World units.
        scale: Growth.
        about: The pivot.
        new_ids: Ids of the copies, as many; None = those of `next_ids`.
    Raises:
        UserError: No such object, or a new id is taken.
    """
    rows = scene.mask(list(ids))
    fresh = next_ids(scene, len(ids)) if new_ids is None else list(new_ids)
    taken = sorted(set(fresh) & set(scene.objects))
    if taken or len(set(fresh)) != len(ids) or min(fresh) < 0:
        problem = f"id {taken[0]} is taken" if taken else f"{len(ids)} objects need as many new ids, none negative"
        raise UserError(f"new_ids {fresh}: {problem}; leave them out to take free ones")
    moved = _transformed(scene, rows, rotation or Rotation(), translation, scale, about)
    copies = {name: value.detach()[rows] for name, value in scene.gaussians} | moved
    renamed = scene.object_ids[rows].clone()
    for old, new in zip(ids, fresh, strict=True):
        renamed[scene.object_ids[rows] == old] = new
    labels = GaussianLabels(
        torch.cat([scene.object_ids, renamed]), torch.cat([scene.confidence, scene.confidence[rows]])
    )
    return scene.changed(
        gaussians=Gaussians({name: torch.cat([value.detach(), copies[name]]) for name, value in scene.gaussians}),
        labels=labels,
        names=dict(scene.names) | {new: f"copy of {scene.name_of(old)}" for old, new in zip(ids, fresh, strict=True)},
    )


def next_ids(scene: TrainedScene, count: int) -> list[int]:
    """Return the ids that the next copies take: above all there are, and above those of training, removed or not."""
    trained = scene.method.num_objects if scene.method is not None else 0
    first = max(int(scene.object_ids.max()) + 1, trained)
    return list(range(first, first + count))


def rename(scene: TrainedScene, object_id: int, name: str) -> TrainedScene:
    """Return the scene with an object called `name`.

    Raises:
        UserError: No such object, or no name.
    """
    scene.mask([object_id])
    if not name.strip():
        raise UserError(f"rename: the new name of object {object_id} is empty")
    return scene.changed(names=dict(scene.names) | {object_id: name.strip()})


def merge(scene: TrainedScene, ids: Sequence[int]) -> TrainedScene:
    """Return the scene with all of the objects made one: that of the first id, whose name stays.

    Raises:
        UserError: No such object.
    """
    rows = scene.mask(list(ids))
    object_ids = scene.object_ids.clone()
    object_ids[rows] = ids[0]
    return _without_stale_names(scene.changed(labels=GaussianLabels(object_ids, scene.confidence)))


def _transformed(
    scene: TrainedScene, rows: Tensor, rotation: Rotation, translation: Vector, scale: float, about: str | Vector
) -> dict[str, Tensor]:
    """Return the parameters of `rows` that a similarity changes, moved; in float64, so that little is rounded."""
    gaussians = scene.gaussians
    means = gaussians.means.detach()[rows].double()
    wxyz = rotation.wxyz.to(means.device)
    offset = torch.tensor(translation, dtype=torch.float64, device=means.device)
    if isinstance(about, str):
        if about != CENTROID:
            raise ValueError(f"about must be {CENTROID!r} or a point, received {about!r}")
        pivot = _centroid(means, scene.confidence[rows])
    else:
        pivot = torch.tensor(about, dtype=torch.float64, device=means.device)
    if rotation.is_identity and scale == 1:
        return {"means": (means + offset).float()}
    matrix = rotation_from_quaternion(wxyz)
    moved = {"means": (scale * (means - pivot) @ matrix.T + pivot + offset).float()}
    if scale != 1:
        moved["log_scales"] = (gaussians.log_scales.detach()[rows].double() + math.log(scale)).float()
    if not rotation.is_identity:
        moved["quats"] = multiply(wxyz, gaussians.quats.detach()[rows].double()).float()
        moved["shN"] = rotate_harmonics(gaussians.shN.detach()[rows], matrix)
    return moved


def centroid(scene: TrainedScene, ids: Sequence[int]) -> Vector:
    """Return the middle of objects: the mean of their centres, each by its confidence, so that strays hardly count.

    Raises:
        UserError: No such object.
    """
    rows = scene.mask(list(ids))
    x, y, z = _centroid(scene.gaussians.means.detach()[rows].double(), scene.confidence[rows]).tolist()
    return x, y, z


def _centroid(means: Tensor, confidence: Tensor) -> Tensor:
    weights = confidence.double() if bool((confidence > 0).any()) else torch.ones_like(confidence).double()
    return (weights[:, None] * means).sum(dim=0) / weights.sum()


def _with(scene: TrainedScene, **table: Tensor) -> TrainedScene:
    """Return the scene with some parameters replaced."""
    return scene.changed(gaussians=Gaussians({name: value.detach() for name, value in scene.gaussians} | table))


def _without_stale_names(scene: TrainedScene) -> TrainedScene:
    """Return the scene without names of objects that are gone: their ids may be given again."""
    known = scene.objects
    return scene.changed(names={object_id: name for object_id, name in scene.names.items() if object_id in known})


def _listed(ids: Sequence[int]) -> str:
    return ("object " if len(ids) == 1 else "objects ") + ", ".join(map(str, ids))
