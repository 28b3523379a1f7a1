"""Coloured points with the object of each, for programs that know no Gaussians: MeshLab, CloudCompare, Open3D."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unified_lift.editing.formats.splat import splat_rows
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.plyio import write_vertices

_COLORS = ("red", "green", "blue")
_ROW = np.dtype([*((axis, "<f4") for axis in "xyz"), *((color, "u1") for color in _COLORS), ("object_id", "<i4")])


def write(folder: Path, stem: str, scene: TrainedScene) -> None:
    """Write `<stem>_points.ply`: x y z float32, red green blue uint8, object_id int32."""
    splats = splat_rows(scene.gaussians)
    rows = np.zeros(len(splats), _ROW)
    for name, column in zip("xyz", splats["position"].T, strict=True):
        rows[name] = column
    for name, column in zip(_COLORS, splats["color"].T):  # opacity, the fourth column, has no place here
        rows[name] = column
    rows["object_id"] = scene.object_ids.cpu().numpy()
    write_vertices(folder / f"{stem}_points.ply", rows)
