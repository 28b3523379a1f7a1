"""Labels beside the Gaussians: `segmentation.npz`, `objects.json`, and the `.ply` of Gaussian Grouping's scripts."""

from pathlib import Path

from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.modelfolder.outputs import write_objects


def write(folder: Path, stem: str, scene: TrainedScene) -> None:
    """Write these three files to `<stem>_labels`, ordered as `<stem>.ply`."""
    # No `views`: how many photos show an object is not known of a scene that may have been edited.
    labels = scene.require_labels()
    write_objects(folder / f"{stem}_labels", scene.gaussians, labels, names=scene.names, frame=scene.frame)
