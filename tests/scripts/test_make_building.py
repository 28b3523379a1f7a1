"""A building of copies of a scene: nothing is shared, everything is moved alike."""

import json

import make_building
import numpy as np
import pytest
from plyfile import PlyData

from tests.saved_model import save_model
from unified_lift.cli.main import main
from unified_lift.data import load_annotations, load_scene
from unified_lift.data.settings import DataSettings
from unified_lift.synthetic.scene import SyntheticSettings, write_synthetic


@pytest.fixture(scope="module")
def building(tmp_path_factory):
    root = tmp_path_factory.mktemp("building")
    small = SyntheticSettings(num_views=6, width=32, height=24, num_points=200, num_objects=3)
    write_synthetic(root / "scene", small)
    model = root / "model"
    words = "--iterations 3 --lift_iterations 0 --eval --quiet --logger none --device cpu".split()
    assert main(["train", "-s", str(root / "scene"), "-m", str(model), *words]) == 0
    argv = ["-m", str(model), "--out", str(root / "out"), "--copies", "2", "--distance", "7"]
    assert make_building.main(argv) == 0
    return root


def test_copies_are_read_as_one_scene_and_lie_apart(building):
    one, all_four = (load_scene(DataSettings(source_path=building / name, eval=True)) for name in ("scene", "out"))
    assert (len(all_four.train), len(all_four.test)) == (4 * len(one.train), 4 * len(one.test))
    assert len(all_four.points.positions) == 4 * len(one.points.positions)
    moved = {view.name: view.camera.position for view in all_four.train}
    for view in one.train:
        for copy, offset in enumerate(([0, 0, 0], [7, 0, 0], [0, 7, 0], [7, 7, 0])):
            np.testing.assert_allclose(moved[f"r{copy:03d}_{view.name}"], view.camera.position + offset, atol=1e-9)


def test_so_many_held_out_views_of_each_copy_are_kept(building, tmp_path):
    one = load_scene(DataSettings(source_path=building / "scene", eval=True))
    argv = ["-m", str(building / "model"), "--out", str(tmp_path / "out"), "--copies", "2", "--held_out"]
    for held_out, left in (("0", 0), ("1", 4)):
        assert make_building.main([*argv[:3], str(tmp_path / held_out), *argv[4:], held_out]) == 0
        scene = load_scene(DataSettings(source_path=tmp_path / held_out, eval=True))
        assert (len(scene.train), len(scene.test)) == (4 * len(one.train), left)


def test_ids_of_copies_differ_and_no_object_stays_none(building):
    settings = DataSettings(source_path=building / "out", eval=True)
    names = [frame["file_path"].split("/")[1].rsplit(".")[0] for frame in _content(building)["frames"]]
    found = load_annotations(settings, names)
    ids = [set(np.unique([found[n] for n in names if n.startswith(f"r{copy:03d}")])) for copy in range(4)]
    assert all(each - {0} for each in ids)
    assert len(set.union(*ids) - {0}) == sum(len(each - {0}) for each in ids)


def test_the_splat_is_moved_with_the_cameras(building):
    rows = PlyData.read(str(building / "out/merged.ply"))["vertex"].data
    one = PlyData.read(str(building / "model/point_cloud/iteration_3/point_cloud.ply"))["vertex"].data
    assert len(rows) == 4 * len(one)
    np.testing.assert_allclose(rows["x"][3 * len(one) :], one["x"] + 7, atol=1e-5)
    assert np.array_equal(rows["opacity"][: len(one)], one["opacity"])


def test_a_scene_of_another_kind_is_refused(building, tmp_path, capsys):
    model = save_model(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        make_building.main(["-m", str(model), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert "only scenes as of the demo are copied" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_in_the_way_stays(building, capsys):
    before = sorted(building.rglob("*"))
    for argv in (["--out", "scene"], ["--out", "new", "--copies", "0"], ["--out", "new", "-m", "nothing"]):
        argv = [str(building / word) if word in ("scene", "new", "nothing") else word for word in argv]
        with pytest.raises(SystemExit) as stopped:
            make_building.main(["-m", str(building / "model"), *argv])
        assert stopped.value.code == 2
    assert "is not empty; name a new folder" in capsys.readouterr().err
    assert sorted(building.rglob("*")) == before


def _content(root):
    return json.loads((root / "out/transforms.json").read_text())
