"""Labels beside the Gaussians: `segmentation.npz`, `objects.json`, and the `.ply` of Gaussian Grouping's scripts."""

from __future__ import annotations

from pathlib import Path

from unified_lift.editing.formats.base import Format, Part
from unified_lift.fileio import write_json
from unified_lift.model.ply import write_gaussians
from unified_lift.modelfolder import outputs
from unified_lift.modelfolder.labels import describe_objects


def write_labels(folder: Path, part: Part) -> None:
    """Write segmentation.npz, objects.json, point_cloud_objects.ply to `<stem>_labels`, rows as in `<stem>.ply`."""
    scene, target = part.scene, folder / f"{part.stem}_labels"
    target.mkdir()
    outputs.write_labels(target / "segmentation.npz", scene.object_ids, scene.confidence, scene.gaussians.features)
    # No `views`: how many photos show an object is not known of a scene that may have been edited.
    write_json(target / "objects.json", describe_objects(scene.gaussians, scene.require_labels(), names=scene.names))
    write_gaussians(target / "point_cloud_objects.ply", scene.gaussians, object_ids=scene.object_ids.cpu().numpy())


FORMAT = Format(name="labels", about="object of every Gaussian, names, point_cloud_objects.ply", write=write_labels)
