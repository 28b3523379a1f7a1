"""Meshes: the surface of a field, and of Gaussians."""

import numpy as np
import pytest
import torch
from plyfile import PlyData

from tests.editing.small_scene import gaussians_of, scene_of
from unified_lift.editing import mesh as meshes
from unified_lift.editing.formats import export
from unified_lift.editing.placement import Placement
from unified_lift.errors import UserError

MIDDLE = np.array([1.0, -2.0, 3.0])


def volume(vertices, faces):
    """Return the volume inside of a closed mesh whose faces are counter-clockwise from outside."""
    a, b, c = (vertices[faces[:, index]] for index in range(3))
    return float((a * np.cross(b, c)).sum() / 6)


def test_the_net_of_a_sphere_is_closed_faces_outwards_and_lies_on_it():
    grid = np.stack(np.meshgrid(*[np.arange(21.0)] * 3, indexing="ij"), axis=-1) - 10.2
    places, faces = meshes.surface_net(np.linalg.norm(grid, axis=-1) - 7)
    assert np.abs(np.linalg.norm(places - 10.2, axis=1) - 7).max() < 0.15
    assert volume(places - 10.2, faces) == pytest.approx(4 / 3 * np.pi * 7**3, rel=0.03)
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    assert len(np.unique(edges, axis=0)) == len(edges)  # each edge once in each direction
    assert {tuple(edge) for edge in edges} == {tuple(edge) for edge in edges[:, ::-1]}


def test_no_surface_is_made_beside_what_is_not_known():
    field = np.ones((6, 6, 6))
    field[:, :, :3] = -1  # a plane between z = 2 and 3
    places, faces = meshes.surface_net(field)
    assert len(faces) == 2 * 4 * 4
    assert set(places[:, 2]) == {2.5}
    field[3:, :, 3] = np.nan
    assert meshes.surface_net(field)[0][:, 0].max() < 3
    assert len(meshes.surface_net(np.full((6, 6, 6), np.nan))[1]) == 0


def ball():
    """Return a sphere of radius 0.5 of opaque flat Gaussians, red above (y below -2), blue below."""
    order = np.arange(600) + 0.5
    z, turn = 1 - 2 * order / 600, order * np.pi * (3 - 5**0.5)
    out = np.column_stack([np.sqrt(1 - z * z) * np.cos(turn), np.sqrt(1 - z * z) * np.sin(turn), z])
    axis = np.column_stack([1 + z, -out[:, 1], out[:, 0], 0 * z])  # turns z to `out`
    colors = np.where(out[:, 1:2] < 0, [1.77, -1.77, -1.77], [-1.77, -1.77, 1.77])
    return scene_of(
        gaussians_of(
            means=MIDDLE + 0.5 * out, quats=axis, log_scales=np.log([[0.05, 0.05, 0.002]] * 600),
            logit_opacities=[6.0] * 600, sh0=colors[:, None],
        ),
        [0] * 600,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _coarse(monkeypatch):
    monkeypatch.setattr(meshes, "_CELLS", 48)
    monkeypatch.setattr(meshes, "_MOST_VIEWS", 24)


def test_a_ball_of_gaussians_becomes_a_ball(tmp_path):
    made = export(ball(), tmp_path, formats=["mesh", "obj"], placement=Placement(up="auto", scale=2))["scene"]
    assert [path.name for path in made] == ["scene.obj", "scene_mesh.ply"]
    content = PlyData.read(str(tmp_path / "scene_mesh.ply"))
    rows = content["vertex"].data
    places, faces = np.stack([rows[axis] for axis in "xyz"], axis=1), np.stack(content["face"]["vertex_indices"])
    # Up was -y, a mesh has +y: half a turn about x or z.
    middle = 2 * MIDDLE * [1, -1, -1] if places[:, 2].mean() < 0 else 2 * MIDDLE * [-1, -1, 1]
    radius = np.linalg.norm(places - middle, axis=1)
    assert np.abs(radius - 1).max() < 0.1
    assert volume(places - middle, faces) == pytest.approx(
        4 / 3 * np.pi, rel=0.1
    )  # borders of discs, which are soft, add a little
    top = places[:, 1] > middle[1] + 0.3
    assert rows["red"][top].min() > 200
    assert rows["blue"][top].max() < 60
    text = (tmp_path / "scene.obj").read_text().splitlines()
    assert text[0].startswith("v ")
    np.testing.assert_allclose([float(word) for word in text[0].split()[1:4]], places[0], rtol=1e-5)
    assert text[-1] == "f " + " ".join(str(index + 1) for index in faces[-1])


def test_what_has_no_surface_is_an_error():
    scene = ball()
    scene.gaussians.set("logit_opacities", torch.full((600,), -9.0))
    with pytest.raises(UserError, match="no surface to make a mesh of"):
        meshes.mesh_of(scene)
