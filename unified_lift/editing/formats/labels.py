"""Labels beside the Gaussians: `segmentation.npz`, `objects.json`, and the `.ply` of Gaussian Grouping's scripts."""

from __future__ import annotations

import json
from pathlib import Path

from unified_lift.editing.formats.base import Format, Part
from unified_lift.editing.scene import ObjectScene
from unified_lift.model.ply import write_gaussians
from unified_lift.modelfolder import outputs
from unified_lift.modelfolder.labels import GaussianLabels, describe_objects


def object_list(scene: ObjectScene) -> dict[str, dict]:
    """Return id -> {name, count, color, bbox, centroid, score}, as in `objects.json` of a model folder.

    Differs: There is no `views`: how many photos show an object is not known of a scene that may have been edited.
    """
    ids, confidence = scene.object_ids.cpu(), scene.confidence.cpu()
    unknown = ids.new_zeros(int(ids.max()) + 1)
    listed = describe_objects(scene.gaussians, GaussianLabels(ids, confidence, unknown, unknown), scene.names)
    for entry in listed.values():
        del entry["views"]
    return listed


def write_labels(folder: Path, part: Part) -> None:
    """Write segmentation.npz, objects.json, point_cloud_objects.ply to `<stem>_labels`, rows as in `<stem>.ply`."""
    scene, target = part.scene, folder / f"{part.stem}_labels"
    target.mkdir()
    outputs.write_labels(target / "segmentation.npz", scene.object_ids, scene.confidence, scene.gaussians.features)
    (target / "objects.json").write_text(json.dumps(object_list(scene), indent=1))
    write_gaussians(target / "point_cloud_objects.ply", scene.gaussians, object_ids=scene.object_ids.cpu().numpy())


FORMAT = Format(name="labels", about="object of every Gaussian, names, point_cloud_objects.ply", write=write_labels)
