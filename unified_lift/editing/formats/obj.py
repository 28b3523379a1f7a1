"""`.obj`: the triangle mesh of `mesh` as text, with a colour behind each vertex."""

from pathlib import Path

import numpy as np

from unified_lift.editing.mesh import mesh_of
from unified_lift.modelfolder.inference import TrainedScene

AUTO_UP = "y"  # Blender, MeshLab and three.js take a mesh so


def write(folder: Path, stem: str, scene: TrainedScene) -> None:
    """Write `<stem>.obj`: `v x y z r g b`, colours 0 to 1, and `f`."""
    mesh = mesh_of(scene)
    with open(folder / f"{stem}.obj", "w") as file:
        rows = np.column_stack([mesh.vertices, mesh.colors / 255])
        np.savetxt(file, rows, fmt=["v %.9g", "%.9g", "%.9g", "%.4g", "%.4g", "%.4g"])
        np.savetxt(file, mesh.faces + 1, fmt=["f %d", "%d", "%d"])
