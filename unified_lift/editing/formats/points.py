"""Coloured points with the object of each, for programs that know no Gaussians: MeshLab, CloudCompare, Open3D."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from unified_lift.model.ply import with_place
from unified_lift.model.splat import splat_rows
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.plyio import write_blocks

_TYPES = {"x": "<f4", "y": "<f4", "z": "<f4", "red": "u1", "green": "u1", "blue": "u1", "object_id": "<i4"}


def write(folder: Path, stem: str, scene: TrainedScene) -> None:
    """Write `<stem>_points.ply`: x y z as in `.ply`, red green blue uint8, object_id int32."""
    ids, kinds = scene.as_one_object().object_ids.cpu().numpy(), np.dtype(list(_TYPES.items()))

    def blocks() -> Iterator[np.ndarray]:
        first = 0
        for part in scene.gaussians.parts():
            splats = splat_rows(part)
            positions = scene.frame.outside(splats["position"])
            rows = np.empty(len(part), kinds)
            columns = (*positions.T, *splats["color"].T[:3], ids[first : first + len(part)])
            for name, column in zip(_TYPES, columns, strict=True):
                rows[name] = column
            yield with_place(rows, positions, scene.frame)
            first += len(part)

    write_blocks(folder / f"{stem}_points.ply", blocks(), count=len(scene))
