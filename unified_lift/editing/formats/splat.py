"""`.splat`: 32 bytes a Gaussian, no view-dependent colour; the format of early web viewers."""

from pathlib import Path

from unified_lift.editing.placement import for_float32
from unified_lift.model.splat import splat_rows
from unified_lift.modelfolder.inference import TrainedScene


def write(folder: Path, stem: str, scene: TrainedScene) -> None:
    """Write `<stem>.splat`; far from the origin inside of the scene's frame, with a frame.json beside it."""
    with open(folder / f"{stem}.splat", "wb") as file:
        for part in for_float32(folder, scene).parts():
            file.write(splat_rows(part).tobytes())
