"""`.glb`: glTF with KHR_gaussian_splatting, exact."""

from pathlib import Path

from unified_lift.editing.placement import for_float32
from unified_lift.model.gltf import encode_glb
from unified_lift.modelfolder.inference import TrainedScene

TURNED_OVER = True  # right-up-back: y and z are turned over


def write(folder: Path, stem: str, scene: TrainedScene) -> None:
    """Write `<stem>.glb`; far from the origin inside of the scene's frame, with a frame.json beside it."""
    (folder / f"{stem}.glb").write_bytes(encode_glb(for_float32(folder, scene)))
