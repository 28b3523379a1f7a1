"""`_mesh.ply`: a triangle mesh with colours, for programs that know no splats."""

from pathlib import Path

import numpy as np
from plyfile import PlyData, PlyElement

from unified_lift.editing.mesh import mesh_of
from unified_lift.modelfolder.inference import TrainedScene

AUTO_UP = "y"  # Blender, MeshLab and three.js take a mesh so


def write(folder: Path, stem: str, scene: TrainedScene) -> None:
    """Write `<stem>_mesh.ply`: x y z, double far from the origin, red green blue, and triangles."""
    mesh, kind = mesh_of(scene), "<f8" if any(scene.frame.offset) else "<f4"
    types = [*((axis, kind) for axis in "xyz"), *((name, "u1") for name in ("red", "green", "blue"))]
    vertices = np.rec.fromarrays([*mesh.vertices.T, *mesh.colors.T], types)
    faces = np.zeros(len(mesh.faces), [("vertex_indices", "<i4", 3)])
    faces["vertex_indices"] = mesh.faces
    elements = [PlyElement.describe(vertices, "vertex"), PlyElement.describe(faces, "face")]
    PlyData(elements, byte_order="<").write(str(folder / f"{stem}_mesh.ply"))
