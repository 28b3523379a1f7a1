"""A trained scene as objects: Gaussians, the object each of them belongs to, and the names of the objects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from unified_lift.errors import UserError
from unified_lift.methods.base import Method
from unified_lift.model.gaussians import Gaussians
from unified_lift.modelfolder.inference import load_model
from unified_lift.modelfolder.outputs import iteration_dir, level_dir, read_labels, saved_levels

_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class ObjectScene:
    """A scene whose objects can be handled. Operations return a new one; tensors are never changed in place.

    Attributes:
        gaussians: The scene, features included.
        object_ids: Object of each Gaussian, int64 [N]. Id 0 is the largest object of a trained scene, usually what is
            behind everything.
        confidence: Share of the votes for that object, in [0, 1], [N].
        names: Object id -> name given by the user; others are called `object <id>`.
        method: Reads ids off rendered features; None once that is not possible, as for a bare .ply.
        white_background: What is behind everything: white or black.
        source: Where it came from, for messages.
    """

    gaussians: Gaussians
    object_ids: Tensor
    confidence: Tensor
    names: Mapping[int, str] = field(default_factory=dict)
    method: Method | None = None
    white_background: bool = False
    source: Path = Path()

    def __post_init__(self) -> None:
        count = len(self.gaussians)
        if self.object_ids.shape != (count,) or self.confidence.shape != (count,):
            raise ValueError(
                f"labels must be [{count}], received {tuple(self.object_ids.shape)}, {tuple(self.confidence.shape)}"
            )

    def __len__(self) -> int:
        return len(self.gaussians)

    @property
    def objects(self) -> dict[int, int]:
        """Return object id -> number of its Gaussians, rising ids."""
        ids, counts = torch.unique(self.object_ids, return_counts=True)
        return dict(zip(ids.tolist(), counts.tolist(), strict=True))

    def name_of(self, object_id: int) -> str:
        """Return what the object is called."""
        return self.names.get(object_id, f"object {object_id}")

    def mask(self, object_ids: list[int]) -> Tensor:
        """Return which Gaussians belong to one of the objects, bool [N].

        Raises:
            UserError: An id that no Gaussian has.
        """
        known = self.objects
        for object_id in object_ids:
            if object_id not in known:
                listed = ", ".join(map(str, list(known)[:20])) + (" ..." if len(known) > 20 else "")
                raise UserError(f"{self.source}: no object {object_id}; there are {listed}")
        return torch.isin(self.object_ids, torch.tensor(object_ids, device=self.object_ids.device))

    def rows(self, chosen: Tensor) -> ObjectScene:
        """Return the scene with only the Gaussians of `chosen`, bool [N] or indices."""
        table = {name: value.detach()[chosen] for name, value in self.gaussians}
        return replace(
            self,
            gaussians=Gaussians(table),
            object_ids=self.object_ids[chosen],
            confidence=self.confidence[chosen],
        )


def load_object_scene(
    model_path: Path, *, level: str = "", iteration: int = -1, device: torch.device = _CPU
) -> ObjectScene:
    """Return the labelled scene of a model folder.

    Args:
        model_path: Model folder.
        level: Name of a further level of objects (train.py --levels); "" = the model's own.
        iteration: Saved iteration; -1 = the last.
        device: Where it is to be rendered.
    Raises:
        UserError: No model there, or one that was not lifted.
    """
    if level:
        levels = saved_levels(model_path)
        if level not in levels:
            raise UserError(
                f"{model_path}: no level {level}; there are {', '.join(levels) or 'none (train.py --levels)'}"
            )
        model_path = level_dir(model_path, level)
    model = load_model(model_path, iteration=iteration, device=device)
    if model.method is None:
        raise UserError(
            f"{model_path}: this model knows no objects; lift it: train.py with masks and --lift_iterations"
        )
    object_ids, confidence = read_labels(model_path, model.iteration)
    return ObjectScene(
        gaussians=model.gaussians,
        object_ids=object_ids.to(device),
        confidence=confidence.to(device),
        names=_names(iteration_dir(model_path, model.iteration) / "objects.json"),
        method=model.method,
        white_background=model.settings.geometry.white_background,
        source=model_path,
    )


def _names(path: Path) -> dict[int, str]:
    """Return the names that differ from the default ones."""
    try:
        listed = json.loads(path.read_text())
        named = {int(key): str(entry["name"]) for key, entry in listed.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a list of objects ({error}); train or --resume again") from None
    return {object_id: name for object_id, name in named.items() if name != f"object {object_id}"}
