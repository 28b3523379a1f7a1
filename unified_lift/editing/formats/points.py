"""Coloured points with the object of each, for programs that know no Gaussians: MeshLab, CloudCompare, Open3D."""

from pathlib import Path

import numpy as np

from unified_lift.model.ply import with_place
from unified_lift.model.splat import splat_rows
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.plyio import write_vertices

_TYPES = {"x": "<f4", "y": "<f4", "z": "<f4", "red": "u1", "green": "u1", "blue": "u1", "object_id": "<i4"}


def write(folder: Path, stem: str, scene: TrainedScene) -> None:
    """Write `<stem>_points.ply`: x y z as in `.ply`, red green blue uint8, object_id int32."""
    splats = splat_rows(scene.gaussians)
    positions = scene.frame.outside(splats["position"])
    columns = (*positions.T, *splats["color"].T[:3], scene.as_one_object().object_ids.cpu().numpy())
    rows = np.rec.fromarrays(columns, list(_TYPES.items()))
    write_vertices(folder / f"{stem}_points.ply", with_place(rows, positions, scene.frame))
