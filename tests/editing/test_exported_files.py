"""`.ply`, points, labels and `.splat`, read back by other readers than ours; and which parts there are."""

import json
import math
import os
import shutil
import struct
import subprocess

import numpy as np
import pytest
from plyfile import PlyData

from tests.editing.small_scene import gaussians_of, random_gaussians, scene_of
from unified_lift.editing.formats import FORMATS, chosen_formats, chosen_objects, export
from unified_lift.errors import UserError
from unified_lift.model.gaussians import SH_C0

VANILLA = [
    *("x", "y", "z", "nx", "ny", "nz"),
    *(f"f_dc_{i}" for i in range(3)),
    *(f"f_rest_{i}" for i in range(45)),
    "opacity",
    *(f"scale_{i}" for i in range(3)),
    *(f"rot_{i}" for i in range(4)),
]


def read(path):
    return PlyData.read(str(path))["vertex"].data


def test_the_ply_has_the_columns_of_3dgs_and_nothing_else_and_is_exact(tmp_path):
    scene = scene_of(random_gaussians(7))
    FORMATS["ply"](tmp_path, "scene", scene)
    rows = read(tmp_path / "scene.ply")
    assert list(rows.dtype.names) == VANILLA
    assert b"comment" not in (tmp_path / "scene.ply").read_bytes()[:3000]
    np.testing.assert_array_equal(np.stack([rows[c] for c in "xyz"], 1), scene.gaussians.means.detach())
    np.testing.assert_array_equal(rows["f_rest_15"], scene.gaussians.shN.detach()[:, 0, 1])  # first green one


def test_points_carry_the_colour_of_the_gaussian_and_its_object(tmp_path):
    scene = scene_of(random_gaussians(6), [0, 4, 4, 70_000, 0, 1])
    FORMATS["points"](tmp_path, "scene", scene)
    rows = read(tmp_path / "scene_points.ply")
    assert rows.dtype.names == ("x", "y", "z", "red", "green", "blue", "object_id")
    assert rows["object_id"].tolist() == [0, 4, 4, 70_000, 0, 1]
    colors = (scene.gaussians.sh0.detach()[:, 0].numpy() * SH_C0 + 0.5).clip(0, 1) * 255
    assert np.abs(np.stack([rows[c] for c in ("red", "green", "blue")], 1) - colors).max() <= 0.51


def test_labels_are_row_by_row_those_of_the_ply(tmp_path):
    scene = scene_of(random_gaussians(6), [0, 4, 4, 9, 0, 9], names={4: "mug"})
    FORMATS["labels"](tmp_path, "scene", scene)
    folder = tmp_path / "scene_labels"
    with np.load(folder / "segmentation.npz") as labels:
        assert labels["object_id"].tolist() == [0, 4, 4, 9, 0, 9]
        assert labels["object_id"].dtype == np.int32
        np.testing.assert_allclose(labels["confidence"], scene.confidence, atol=1e-3)
        np.testing.assert_allclose(labels["feature"], scene.gaussians.features.detach(), atol=2e-3)
    objects = json.loads((folder / "objects.json").read_text())
    assert {key: (entry["name"], entry["count"]) for key, entry in objects.items()} == {
        "0": ("object 0", 2),
        "4": ("mug", 2),
        "9": ("object 9", 2),
    }
    assert "views" not in objects["0"]  # not known here, so not said
    rows = read(folder / "point_cloud_objects.ply")
    assert list(rows.dtype.names) == [*VANILLA, *(f"obj_dc_{i}" for i in range(16)), "object_id"]
    assert rows["object_id"].tolist() == [0, 4, 4, 9, 0, 9]


def test_parts_are_the_objects_asked_for_once_each(tmp_path):
    scene = scene_of(random_gaussians(6), [0, 4, 4, 9, 0, 9])
    assert chosen_objects(scene, ["all"]) == {"object_4": 4, "object_9": 9}
    assert chosen_objects(scene, [9, "scene", "background", "09"]) == {"object_9": 9, "scene": None, "background": 0}
    export(scene, tmp_path, objects=[9, "scene", "background"], formats=["points"])
    ids = {path.name: read(path)["object_id"].tolist() for path in tmp_path.iterdir()}
    assert ids == {
        "object_9_points.ply": [9, 9],
        "scene_points.ply": [0, 4, 4, 9, 0, 9],
        "background_points.ply": [0, 0],
    }


def test_a_scene_without_background_or_without_objects_says_so():
    with pytest.raises(UserError, match="has no object 0; it was removed"):
        chosen_objects(scene_of(random_gaussians(2), [3, 4]), ["background"])
    with pytest.raises(UserError, match="no object but the background"):
        chosen_objects(scene_of(random_gaussians(2), [0, 0]), ["all"])


def test_formats_are_found_by_name_with_commas_or_spaces_and_once():
    assert chosen_formats(["ply,spz", "html", "ply"]) == [FORMATS[name] for name in ("ply", "spz", "html")]
    assert set(FORMATS) == {
        *("compressed", "glb", "html", "labels", "mesh", "obj", "ply", "points", "sog", "splat", "spz", "spz4", "usda"),
    }
    with pytest.raises(UserError, match="name at least one of"):
        chosen_formats([","])


@pytest.fixture
def failing(monkeypatch):
    def add(error):
        def write(folder, stem, scene):
            (folder / "half.bin").write_bytes(b"half")
            raise error

        monkeypatch.setitem(FORMATS, "bad", write)

    return add


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("x"), PermissionError(13, "no")])
def test_whatever_interrupts_an_export_leaves_what_was_there_before_and_nothing_else(tmp_path, failing, error):
    scene, out = scene_of(random_gaussians(3)), tmp_path / "out"
    failing(error)
    with pytest.raises(type(error)):
        export(scene, out, formats=["ply", "bad"])
    assert list(tmp_path.iterdir()) == []
    export(scene, out)
    before = (out / "scene.ply").read_bytes()
    with pytest.raises(type(error)):
        export(scene_of(random_gaussians(3, seed=1)), out, formats=["ply", "bad"])
    assert (out / "scene.ply").read_bytes() == before
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "scene.ply"]


def test_a_full_disk_is_an_error_that_says_nothing_was_written(tmp_path, failing):
    failing(OSError(28, "full"))
    with pytest.raises(UserError, match="out: no space left on the disk, .*nothing there was changed"):
        export(scene_of(random_gaussians(3)), tmp_path / "out", formats=["bad"])
    assert list(tmp_path.iterdir()) == []


def test_files_replace_those_of_the_same_name_and_others_stay(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    scene = scene_of(random_gaussians(3))
    for _ in range(2):
        made = export(scene, tmp_path, formats=["labels", "ply"])
    assert [str(path.relative_to(tmp_path)) for path in made["scene"]] == [
        "scene.ply",
        "scene_labels/objects.json",
        "scene_labels/point_cloud_objects.ply",
        "scene_labels/segmentation.npz",
    ]
    assert (tmp_path / "mine.txt").read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; give a folder"):
        export(scene, tmp_path / "file")


def test_an_export_into_the_present_folder_works(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export(scene_of(random_gaussians(3)), type(tmp_path)("."))
    assert (tmp_path / "here/scene.ply").exists()


# ---- .splat, byte by byte ----


def splat_of(tmp_path, **columns):
    FORMATS["splat"](tmp_path, "scene", scene_of(gaussians_of(**columns)))
    return (tmp_path / "scene.splat").read_bytes()


def test_a_gaussian_is_32_bytes_position_scale_colour_opacity_rotation(tmp_path):
    data = splat_of(
        tmp_path,
        means=[[1, -2, 3.5]],
        log_scales=[[0, math.log(2), math.log(0.25)]],
        sh0=[[[0.1 / SH_C0, -0.1 / SH_C0, 0]]],  # colours 0.6, 0.4, 0.5: 153, 102, 127.5
        logit_opacities=[math.log(3)],  # 0.75: 191.25
        quats=[[0, 2, 0, -2]],  # length one: (0, 0.7071, 0, -0.7071), times 128: 90.5
    )
    assert len(data) == 32
    assert struct.unpack("<3f", data[:12]) == (1, -2, 3.5)
    assert struct.unpack("<3f", data[12:24]) == (1, 2, 0.25)
    assert list(data[24:28]) == [153, 102, 128, 191]
    assert list(data[28:32]) == [128, 219, 128, 37]


def test_colours_and_rotations_out_of_range_are_clipped_not_wrapped(tmp_path):
    data = splat_of(tmp_path, sh0=[[[9, -9, 0]]], logit_opacities=[50], quats=[[1, 0, 0, 0]])
    assert list(data[24:32]) == [255, 0, 128, 255, 255, 128, 128, 128]


def test_rows_stay_in_the_order_of_the_scene(tmp_path):
    # Other writers would put the large opaque one first.
    data = splat_of(tmp_path, means=[[1, 0, 0], [2, 0, 0]], log_scales=[[-5] * 3, [3] * 3], logit_opacities=[-3, 3])
    assert [struct.unpack("<f", data[at : at + 4])[0] for at in (0, 32)] == [1, 2]


# ---- read by the npm package @playcanvas/splat-transform, where it is installed ----


@pytest.fixture(scope="module")
def tool():
    found = os.environ.get("SPLAT_TRANSFORM") or shutil.which("splat-transform")
    if found is None:
        pytest.skip("no splat-transform on PATH, nor in SPLAT_TRANSFORM: npm install @playcanvas/splat-transform")
    return lambda *argv: subprocess.run([found, "-q", "-w", *argv], check=True, capture_output=True, timeout=120)


def columns(path, names):
    rows = read(path)
    return np.stack([rows[name].astype(float) for name in names], axis=1)


# Largest differences: of positions and coefficients in units, log scales, colour and opacity in 1/255, rotations in
# radians. Those of a .splat are off by two halves of a step: this reader takes 127.5 for zero where others take 128.
@pytest.mark.parametrize(
    ("name", "position", "log_scale", "color", "opacity", "angle", "sh"),
    [
        ("ply", 0, 0, 0, 0, 1e-6, 0),
        ("splat", 0, 1e-6, 0.51, 0.51, 0.03, None),
        ("spz", 2**-17, 1 / 32 + 1e-5, 0.95, 0.51, 0.006, 8.51 / 128),
    ],
)
def test_positions_sizes_colours_and_rotations_come_back(
    tmp_path, tool, name, position, log_scale, color, opacity, angle, sh
):
    scene = scene_of(random_gaussians(500))
    export(scene, tmp_path / "out", formats=["ply", name])
    back = tmp_path / "back.ply"
    tool(tmp_path / f"out/scene.{name}", back)
    ours = tmp_path / "out/scene.ply"
    assert len(columns(back, "x")) == 500

    def gap(names, change=lambda values: values):
        return np.abs(change(columns(ours, names)) - change(columns(back, names))).max()

    assert gap("xyz") <= position
    assert gap([f"scale_{i}" for i in range(3)]) <= log_scale
    assert gap([f"f_dc_{i}" for i in range(3)], lambda dc: 255 * np.clip(SH_C0 * dc + 0.5, 0, 1)) <= color
    assert gap(["opacity"], lambda logit: 255 / (1 + np.exp(-logit))) <= opacity
    quats = [columns(path, [f"rot_{i}" for i in range(4)]) for path in (ours, back)]
    first, second = (value / np.linalg.norm(value, axis=1, keepdims=True) for value in quats)
    halves = np.minimum(np.linalg.norm(first - second, axis=1), np.linalg.norm(first + second, axis=1))
    assert 2 * halves.max() <= angle
    if sh is not None:
        rest = [f"f_rest_{i}" for i in range(45)]
        assert gap(rest, lambda values: values.clip(-1, 127 / 128)) <= sh


def test_an_object_can_be_cut_out_of_the_ply_with_labels_by_its_id(tmp_path, tool):
    scene = scene_of(random_gaussians(30), [0, 4, 7] * 10)
    export(scene, tmp_path / "out", formats=["labels"])
    source, back = tmp_path / "out/scene_labels/point_cloud_objects.ply", tmp_path / "back.ply"
    tool(source, "-V", "object_id,eq,7", back)
    np.testing.assert_array_equal(columns(back, "xyz"), scene.gaussians.means.detach()[scene.object_ids == 7])
