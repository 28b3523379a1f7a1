"""`.ply` as 3DGS writes it, without any column of our own, exact: opens in every viewer."""

from pathlib import Path

from unified_lift.model.ply import write_gaussians
from unified_lift.modelfolder.inference import TrainedScene


def write(folder: Path, stem: str, scene: TrainedScene) -> None:
    """Write `<stem>.ply`."""
    write_gaussians(folder / f"{stem}.ply", scene.gaussians, frame=scene.frame)
