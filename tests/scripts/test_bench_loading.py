"""The loading benchmark names its stages and counts how often files are opened."""

import json

import bench_loading

from tests.data.fixtures import write_dataset


def test_stages_of_a_small_scene(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("unified_lift.data.scene.initial_points", bench_loading.scenes.initial_points)  # restored after
    write_dataset("messy_rooms", tmp_path / "scene")
    path = tmp_path / "loading.json"
    assert bench_loading.main(["-s", str(tmp_path / "scene"), "--repeats", "1", "--json", str(path)]) == 0
    written, printed = json.loads(path.read_text()), capsys.readouterr().out
    assert list(written["seconds"]) == ["photos and masks", "corners", "matches", "points"]
    assert all(wall > 0 for wall, _ in written["seconds"].values())
    assert written["views"] >= 5
    assert "files opened so many times: {1: " in printed
