"""Rooms of the robustness table: noise changes masks and nothing else; fewer views are the first of the same."""

from dataclasses import replace

import pytest

from unified_lift.bench import tables
from unified_lift.bench.tables import BASE, KINDS, write_room
from unified_lift.data import DataSettings, load_scene
from unified_lift.errors import UserError
from unified_lift.synthetic.scene import SyntheticSettings, build_cameras, synthetic_room

TINY = SyntheticSettings(num_objects=3, num_views=10, width=32, height=24, num_points=300)  # 8 training views


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(tables, "BASE", TINY)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def loaded(folder):
    return load_scene(DataSettings(source_path=folder, eval=True))


def test_amounts_are_settings_and_start_at_the_easiest():
    for kind, (_, amounts) in KINDS.items():
        assert len(set(amounts)) == len(amounts)
        assert list(amounts) == sorted(amounts, reverse=kind == "views")
        assert amounts[0] == (BASE.num_train if kind == "views" else 0)
        for amount in amounts if kind != "views" else ():
            assert getattr(replace(BASE, **{kind: amount}), kind) == amount


def test_noise_changes_masks_and_nothing_else(tmp_path):
    write_room(tmp_path / "clean", "drop", "0", seed=1)
    write_room(tmp_path / "noisy", "drop", "0.5", seed=1)
    for folder in ("images", "annotations/gt_instance"):
        assert files(tmp_path / "clean" / folder) == files(tmp_path / "noisy" / folder)
    for name in ("transforms.json", "points3D.ply"):
        assert (tmp_path / "clean" / name).read_bytes() == (tmp_path / "noisy" / name).read_bytes()
    assert files(tmp_path / "clean/object_mask") != files(tmp_path / "noisy/object_mask")
    assert {path.name for path in tmp_path.iterdir()} == {"clean", "noisy"}
    with pytest.raises(UserError, match="--room drop 2: .*drop.* up to 1"):
        write_room(tmp_path / "x", "drop", "2", seed=1)
    with pytest.raises(UserError, match="--room views 0: a synthetic scene needs a training view"):
        write_room(tmp_path / "x", "views", "0", seed=1)
    with pytest.raises(UserError, match="--room drp: no such kind of noise; there are drop"):
        write_room(tmp_path / "x", "drp", "0", seed=1)


def test_fewer_views_are_the_first_ones_with_the_same_held_out(tmp_path):
    scenes = {}
    for count in (8, 3):
        write_room(tmp_path / str(count), "views", str(count), seed=1)
        scenes[count] = loaded(tmp_path / str(count))
    names = {count: [view.name for view in scene.train] for count, scene in scenes.items()}
    assert names[8] == sorted(names[8])
    assert names[3] == names[8][:3]
    assert [view.name for view in scenes[3].test] == [view.name for view in scenes[8].test]
    assert len(scenes[3].test) == 2


def test_initial_points_of_fewer_views_come_from_these_alone(tmp_path):
    for count in (8, 1):
        write_room(tmp_path / str(count), "views", str(count), seed=1)
    settings = replace(TINY, seed=1)
    camera = build_cameras(synthetic_room(settings), settings)[0]

    def seen(points):
        x, y, z = (points @ camera.cam_from_world[:3, :3].T + camera.cam_from_world[:3, 3]).T
        column, row = camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy
        return (z > 0) & (column > 0) & (column < camera.width) & (row > 0) & (row < camera.height)

    kept, whole = (loaded(tmp_path / name).points.positions for name in ("1", "8"))
    assert len(kept) == TINY.num_points
    assert seen(kept).all()
    assert not seen(whole).all()
