"""unified-lift check-data, as a user calls it."""

import json

import pytest

from tests.data.fixtures import write_dataset
from unified_lift.cli.main import main


@pytest.fixture
def scene(tmp_path):
    write_dataset("colmap", tmp_path / "scene")
    return tmp_path / "scene"


def test_a_sound_scene_is_one_page_and_exit_code_0(scene, capsys):
    assert main(["check-data", "-s", str(scene), "--quiet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    topics = [line.split()[0] for line in lines[:-1]]
    assert topics == ["scene", "views", "cameras", "masks", "split", "radius", "points", "ground"]
    assert lines[-1] == "fine: this scene can be trained"


def test_problems_are_exit_code_1_and_stand_in_the_json(scene, tmp_path, capsys):
    (scene / "images/cam2/0001.png").unlink()
    (scene / "object_mask/cam2/0002.png").write_bytes(b"")
    assert main(["check-data", "-s", str(scene), "--json", str(tmp_path / "c.json"), "--strict", "--quiet"]) == 1
    said = capsys.readouterr().out
    content = json.loads((tmp_path / "c.json").read_text())
    assert content["fine"] is False
    found = [finding for finding in content["findings"] if finding["status"] == "problem"]
    assert len(found) == 2
    for finding in found:
        assert f"problem  {finding['what']}\n" in said
        assert f"-> {finding['cure']}\n" in said
    assert not list(tmp_path.glob("*.partial"))


def test_what_is_no_scene_is_exit_code_2(tmp_path, capsys):
    assert main(["check-data", "-s", str(tmp_path), "--quiet"]) == 2
    assert "fits no known layout" in capsys.readouterr().err
    assert main(["check-data", "-s", str(tmp_path / "gone"), "--quiet"]) == 2


def test_nothing_is_written_into_the_scene(scene):
    before = {path: path.stat().st_mtime_ns for path in scene.rglob("*")}
    main(["check-data", "-s", str(scene), "--quiet"])
    assert {path: path.stat().st_mtime_ns for path in scene.rglob("*")} == before


def test_flags_reach_the_reader(scene, capsys):
    (scene / "images").rename(scene / "images_4")
    assert main(["check-data", "-s", str(scene), "-i", "images_4", "--llffhold", "3", "--quiet"]) == 0
    assert "6 train, 3 held out" in capsys.readouterr().out
    assert main(["check-data", "-s", str(scene), "--quiet"]) == 1
    assert "no such image folder" in capsys.readouterr().out
