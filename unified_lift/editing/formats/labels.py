"""Labels beside the Gaussians: `segmentation.npz`, `objects.json`, and the `.ply` of Gaussian Grouping's scripts."""

from __future__ import annotations

from pathlib import Path

from unified_lift.fileio import write_json
from unified_lift.model.ply import write_gaussians
from unified_lift.modelfolder import outputs
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.modelfolder.labels import describe_objects


def write(folder: Path, stem: str, scene: TrainedScene) -> None:
    """Write segmentation.npz, objects.json, point_cloud_objects.ply to `<stem>_labels`, ordered as `<stem>.ply`."""
    target, labels = folder / f"{stem}_labels", scene.require_labels()
    target.mkdir()
    outputs.write_labels(target / "segmentation.npz", labels, scene.gaussians.features)
    # No `views`: how many photos show an object is not known of a scene that may have been edited.
    write_json(target / "objects.json", describe_objects(scene.gaussians, labels, names=scene.names))
    write_gaussians(target / "point_cloud_objects.ply", scene.gaussians, object_ids=labels.object_ids.cpu().numpy())
