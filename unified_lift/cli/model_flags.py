"""The flags that name a model and its objects, for every command that handles objects."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from unified_lift.modelfolder.inference import TrainedScene, load_model


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """Which objects of which model."""

    model_path: Path
    """Model folder (-m) [3DGS]."""
    level: str = ""
    """Name of a further level of objects (train.py --levels); the default is the model's own."""
    iteration: int = -1
    """Saved iteration; -1 = the last [3DGS]."""

    def load(self, device: torch.device | str = "cpu") -> TrainedScene:
        """Return the scene.

        Raises:
            UserError: No such model, level or iteration, or it knows no objects.
        """
        scene = load_model(self.model_path, level=self.level, iteration=self.iteration, device=torch.device(device))
        scene.require_labels()
        return scene
