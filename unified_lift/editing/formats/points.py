"""Coloured points with the object of each, for programs that know no Gaussians."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unified_lift.editing.formats.base import Format, Part
from unified_lift.editing.formats.splat import splat_rows
from unified_lift.plyio import write_vertices


def write_points_of(folder: Path, part: Part) -> None:
    """Write `<stem>_points.ply`: x y z float32, red green blue uint8, object_id int32."""
    fields = [(name, "<f4") for name in "xyz"] + [(name, "u1") for name in ("red", "green", "blue")]
    splats = splat_rows(part.scene.gaussians)
    rows = np.zeros(len(splats), [*fields, ("object_id", "<i4")])
    for axis, name in enumerate("xyz"):
        rows[name] = splats["position"][:, axis]
    for channel, name in enumerate(("red", "green", "blue")):
        rows[name] = splats["color"][:, channel]
    rows["object_id"] = part.scene.object_ids.cpu().numpy()
    write_vertices(folder / f"{part.stem}_points.ply", rows)


FORMAT = Format(
    name="points", about="coloured points with object_id, for MeshLab, CloudCompare, Open3D", write=write_points_of
)
