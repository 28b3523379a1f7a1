"""`.compressed.ply`, SuperSplat's: about a quarter of a `.ply` of degree 3, and less of lower ones."""

from pathlib import Path

from unified_lift.editing.placement import for_float32
from unified_lift.model.compressed_ply import packed
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.plyio import write_elements


def write(folder: Path, stem: str, scene: TrainedScene) -> None:
    """Write `<stem>.compressed.ply`, in another order; far from the origin inside, with a frame.json beside it."""
    write_elements(folder / f"{stem}.compressed.ply", packed(for_float32(folder, scene)))
