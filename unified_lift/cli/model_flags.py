"""The flags that name a model and its objects, for every command that handles objects."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import tyro

from unified_lift.cli.flags import canonical
from unified_lift.modelfolder.inference import TrainedScene, load_model
from unified_lift.settings.limits import check_ranges

Command = TypeVar("Command", bound="ModelFlags")


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """Which objects of which model."""

    model_path: Path
    """Model folder (-m) [3DGS]."""
    level: str = ""
    """Name of a further level of objects (train.py --levels); the default is the model's own."""
    iteration: int = -1
    """Saved iteration; -1 = the last [3DGS]."""

    @classmethod
    def parsed(cls: type[Command], argv: list[str], *, name: str) -> Command:
        """Return the flags of `unified-lift <name>`; a UserError where a number is out of its range."""
        command = tyro.cli(cls, args=canonical(argv), prog=f"unified-lift {name}")
        check_ranges(command)
        return command

    def load(self, device: torch.device | str = "cpu", *, source_path: Path | None = None) -> TrainedScene:
        """Return what `load_model` does; a UserError where the model knows no objects."""
        device = torch.device(device)
        scene = load_model(
            self.model_path, level=self.level, iteration=self.iteration, source_path=source_path, device=device
        )
        scene.require_labels()
        return scene
