"""`.spz`, version 4: as version 3, with a zstd frame for each column; a little smaller, and newer readers only."""

from pathlib import Path

from unified_lift.model.spz import encode_spz
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.modelfolder.outputs import write_frame

TURNED_OVER = True  # right-up-back: y and z are turned over


def write(folder: Path, stem: str, scene: TrainedScene) -> None:
    """Write `<stem>_v4.spz`, inside of the scene's frame, with a frame.json beside it: sizes of 8 bits fit no other."""
    write_frame(folder, scene.frame)
    (folder / f"{stem}_v4.spz").write_bytes(encode_spz(scene.gaussians, version=4))
