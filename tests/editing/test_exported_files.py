"""`.ply`, points and labels, read back by other readers than ours; and which parts there are."""

import json

import numpy as np
import pytest
from plyfile import PlyData

from tests.editing.small_scene import random_gaussians, scene_of
from unified_lift.editing.formats import FORMATS, chosen_formats, chosen_objects, export
from unified_lift.errors import UserError

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
    colors = (scene.gaussians.sh0.detach()[:, 0].numpy() * 0.28209479 + 0.5).clip(0, 1) * 255
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


def test_uncertain_gaussians_are_left_out_and_an_object_of_none_has_no_file(tmp_path):
    scene = scene_of(random_gaussians(4), [0, 4, 4, 9], confidence=[1.0, 0.2, 0.5, 0.1])
    made = export(scene, tmp_path, objects=["scene", 4, 9], min_confidence=0.5)
    assert made == {"scene": [tmp_path / "scene.ply"], "object_4": [tmp_path / "object_4.ply"], "object_9": []}
    assert [len(read(tmp_path / name)) for name in ("scene.ply", "object_4.ply")] == [2, 1]


def test_formats_are_found_by_name_with_commas_or_spaces_and_once():
    assert chosen_formats(["ply,spz", "html", "ply"]) == [FORMATS[name] for name in ("ply", "spz", "html")]
    assert set(FORMATS) == {"ply", "splat", "spz", "html", "labels", "points"}
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
    with pytest.raises(UserError, match="the disk is full, nothing was written"):
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
