"""`.splat`: 32 bytes a Gaussian, no view-dependent colour; the format of early web viewers."""

from pathlib import Path

from unified_lift.model.splat import splat_rows
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.modelfolder.outputs import write_frame


def write(folder: Path, stem: str, scene: TrainedScene) -> None:
    """Write `<stem>.splat`; far from the origin inside of the scene's frame, with a frame.json beside it."""
    rows = splat_rows(scene.gaussians)
    if any(scene.frame.offset):
        write_frame(folder, scene.frame)
    else:
        rows["position"] = scene.frame.outside(rows["position"])
        rows["scale"] /= scene.frame.scale
    rows.tofile(folder / f"{stem}.splat")
