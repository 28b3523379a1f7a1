"""unified-lift sfm, as a user calls it."""

import sys

import pytest

from tests.capture.test_capture_frames import write_video
from tests.data.fixtures.floor import floor_photos, orbit
from tests.fake_pycolmap import FakeColmap
from unified_lift.cli.main import main
from unified_lift.data.images import write_image


@pytest.fixture
def colmap(monkeypatch):
    fake = FakeColmap()
    monkeypatch.setitem(sys.modules, "pycolmap", fake)
    return fake


@pytest.fixture
def photos(tmp_path):
    for n, view in enumerate(floor_photos(orbit(5, width=64, height=48))):
        write_image(tmp_path / "photos" / f"{n}.png", view.image)
    return tmp_path / "photos"


def test_photos_become_a_scene_that_check_data_finds_fine(photos, colmap, capsys):
    scene = str(photos.parent / "scene")
    assert main(["sfm", str(photos), "-s", scene, "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "5 of 5 photos" in said
    assert "sfm_report.json" in said
    assert main(["check-data", "-s", scene, "--quiet"]) == 0
    assert "5 with a pose; photos 64x48 (5)" in capsys.readouterr().out


def test_a_video_gives_as_many_frames_as_asked_for(tmp_path, colmap, capsys):
    write_video(tmp_path / "v.mp4", [view.image[..., ::-1] for view in floor_photos(orbit(9, width=64, height=48))])
    argv = ["sfm", str(tmp_path / "v.mp4"), "-s", str(tmp_path / "scene"), "--frames", "4", "--matcher", "sequential"]
    assert main([*argv, "--max_size", "64", "--quiet"]) == 0
    assert "4 of 4 photos" in capsys.readouterr().out
    assert "match_sequential" in colmap.calls


def test_finished_stages_are_said_to_be_there(photos, colmap, capsys):
    argv = ["sfm", str(photos), "-s", str(photos.parent / "scene")]
    main(argv)
    bars = capsys.readouterr().err
    assert all(f"{n}/5 " in bars for n in range(1, 6))
    main(argv)
    assert capsys.readouterr().out.count("there already") == 5


def test_ctrl_c_ends_with_130_and_the_next_call_goes_on(photos, colmap, capsys):
    argv = ["sfm", str(photos), "-s", str(photos.parent / "scene"), "--quiet"]
    colmap.interrupt = "incremental_mapping"
    assert main(argv) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")
    colmap.calls.clear()
    assert main(argv) == 0
    assert colmap.calls == ["incremental_mapping", "undistort_images"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["gone", "-s", "scene"], "no such folder or file"),
        (["photos", "-s", "scene", "--max_size", "8"], "--max_size 8"),
        (["photos", "-s", "scene", "--frames", "2"], "--frames 2"),
        (["photos", "-s", "photos"], "choose a scene folder beside it"),
        (["photos", "-s", "photos/scene"], "choose a scene folder beside it"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(argv, words, photos, colmap, capsys, monkeypatch):
    monkeypatch.chdir(photos.parent)
    assert main(["sfm", *argv, "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error
    assert error.count("\n") == 1
