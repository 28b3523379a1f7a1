"""`.sog`, version 2: about a twentieth of a `.ply` of degree 3; what SuperSplat publishes."""

from pathlib import Path

from unified_lift.editing.placement import for_float32
from unified_lift.model.sog_encoding import encode_sog
from unified_lift.modelfolder.inference import TrainedScene


def write(folder: Path, stem: str, scene: TrainedScene) -> None:
    """Write `<stem>.sog`, in another order; far from the origin inside of the frame, with a frame.json beside it."""
    (folder / f"{stem}.sog").write_bytes(encode_sog(for_float32(folder, scene)))
