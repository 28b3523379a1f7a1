"""Structure from motion: its stages, what is done again and what is not, and what it says of the result."""

import json
import sqlite3
import sys
import threading
from contextlib import closing

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from tests.data.fixtures.floor import floor_photos, orbit
from tests.fake_pycolmap import ERROR_PX, NUM_POINTS, FakeColmap
from unified_lift.capture.sfm import SfmSettings, num_pairs, reconstruct, watched
from unified_lift.capture.sfm_report import advice, level_axes, report_lines
from unified_lift.data import load_scene
from unified_lift.data.images import write_image
from unified_lift.data.settings import DataSettings
from unified_lift.errors import UserError
from unified_lift.ops.cameras import look_at
from unified_lift.synthetic.scene import SyntheticSettings, synthetic_room
from unified_lift.types import Camera

ALL = ["extract_features", "match_exhaustive", "incremental_mapping", "undistort_images"]


@pytest.fixture
def colmap(monkeypatch):
    """Return a function that puts a fake pycolmap in place."""

    def install(**behaviour):
        fake = FakeColmap(**behaviour)
        monkeypatch.setitem(sys.modules, "pycolmap", fake)
        return fake

    return install


@pytest.fixture
def photos(tmp_path):
    """Return a folder of six photos of 64x48."""
    for n, view in enumerate(floor_photos(orbit(6, width=64, height=48))):
        write_image(tmp_path / "photos" / f"{n}.png", view.image)
    return tmp_path / "photos"


@pytest.fixture
def finished(photos, colmap):
    """Return the report of a finished reconstruction."""
    colmap()
    return run(photos)


def run(photos, **settings):
    return reconstruct(SfmSettings(photos=photos, source_path=photos.parent / "scene", quiet=True, **settings))


def test_the_scene_is_one_that_training_reads(photos, colmap):
    fake = colmap()
    run(photos)
    assert fake.calls == ALL
    scene = load_scene(DataSettings(source_path=photos.parent / "scene"))
    assert [view.name for view in scene.train] == [str(n) for n in range(6)]
    assert len(scene.points.positions) == NUM_POINTS
    expected = orbit(6, width=64, height=48)
    for view, camera in zip(scene.train, expected, strict=True):
        np.testing.assert_allclose(view.camera.cam_from_world, camera.cam_from_world, atol=1e-9)
    written = {path.name for path in (photos.parent / "scene").iterdir()}
    assert written == {"images", "sfm", "sfm_report.json", "sfm_sparse.png", "sparse"}
    assert not list((photos.parent / "scene").rglob("*.partial"))


def test_the_report_has_the_numbers_of_the_model(photos, colmap):
    colmap(groups=[4])
    report = run(photos)
    assert report == json.loads((photos.parent / "scene/sfm_report.json").read_text())
    assert (report["photos"], report["registered"], report["not_registered"]) == (6, 4, ["4", "5"])
    assert (report["points"], report["observations"]) == (NUM_POINTS, 4 * NUM_POINTS)
    assert report["mean_track_length"] == 4
    assert report["mean_reprojection_error_px"] == pytest.approx(ERROR_PX, abs=1e-3)
    assert set(report["worst_photos_px"].values()) == {ERROR_PX}
    assert report["cameras"] == [{"width": 64, "height": 48, "focal_px": 70.4, "fov_degrees": 48.9}]
    assert list(report["seconds"]) == ["photos", "features", "matches", "mapping", "undistortion"]
    text = "\n".join(report_lines(report))
    for words in ("4 of 6 photos", "0.50 px", "no pose       4, 5", "2 photos found no place"):
        assert words in text


def test_the_picture_shows_points_and_cameras(finished, photos):
    picture = Image.open(photos.parent / "scene/sfm_sparse.png").convert("RGB")
    red = (np.asarray(picture) == [0xB4, 0x53, 0x3C]).all(axis=2)
    assert all(half.sum() > 50 for half in np.array_split(red, 2, axis=1))


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ("nothing", []),
        ("matcher", ["match_sequential", *ALL[2:]]),
        ("lost result", ALL[3:]),
        ("size", ALL),
        ("photo", ALL),
        ("another photo", ALL),
    ],
)
def test_a_second_call_repeats_only_what_has_changed(change, again, finished, photos, colmap):
    fake, settings = colmap(), {}
    if change == "lost result":
        (photos.parent / "scene/sparse/0/points3D.bin").unlink()
    elif "photo" in change:
        write_image(photos / ("0.png" if change == "photo" else "9.png"), np.full((48, 64, 3), 9, np.uint8))
    elif change != "nothing":
        settings = {"matcher": "sequential"} if change == "matcher" else {"max_size": 64}
    second = run(photos, **settings)
    assert fake.calls == again
    assert second["photos"] == (7 if change == "another photo" else 6)
    if change == "nothing":
        assert second == finished
    if change == "matcher":
        assert fake.matched == [15]
        assert second["settings"]["matches"] == {"matcher": "sequential", "pairs": 15}


@pytest.mark.parametrize("function", ALL)
def test_an_interrupted_stage_runs_again_and_those_before_it_do_not(function, photos, colmap):
    fake = colmap(interrupt=function)
    with pytest.raises(KeyboardInterrupt):
        run(photos)
    assert not (photos.parent / "scene/sfm_report.json").exists()
    assert not (photos.parent / "scene/images").exists()
    fake.calls.clear()
    assert run(photos)["registered"] == 6
    assert fake.calls == ALL[ALL.index(function) :]
    assert not list((photos.parent / "scene").rglob("*.partial"))


def test_an_older_scene_stays_whole_until_the_new_one_is_complete(finished, photos, colmap):
    scene = photos.parent / "scene"

    def files():
        return {path: path.read_bytes() for name in ("images", "sparse") for path in (scene / name).rglob("*.*")}

    before = files()
    colmap(interrupt="undistort_images", groups=[4])
    with pytest.raises(KeyboardInterrupt):
        run(photos, matcher="sequential")
    assert files() == before
    assert run(photos, matcher="sequential")["registered"] == 4
    assert len(list((scene / "images").iterdir())) == 4


def test_interrupted_matching_goes_on_where_it_was(photos, colmap):
    fake = colmap(interrupt="match_exhaustive")
    with pytest.raises(KeyboardInterrupt):
        run(photos)
    run(photos)
    assert fake.matched == [7, 8]  # of 6 * 5 / 2 pairs
    assert fake.block_size == 10


def test_the_largest_of_several_models_stays_and_the_others_are_told(photos, colmap):
    colmap(groups=[2, 4])
    report = run(photos)
    assert report["models"] == [4, 2]
    assert report["not_registered"] == ["0", "1"]
    assert any("do not overlap (4 and 2)" in line for line in report["advice"])


@pytest.mark.parametrize(("groups", "found"), [([], 0), ([2], 2)])
def test_too_few_registered_photos_are_an_error_with_advice(groups, found, photos, colmap):
    fake = colmap(groups=groups)
    with pytest.raises(UserError, match=f"only {found} of 6 photos fit together; take more photos that overlap"):
        run(photos)
    assert "undistort_images" not in fake.calls


def test_too_few_photos_are_an_error_before_any_work(photos, colmap):
    fake = colmap()
    for n in range(2, 6):
        (photos / f"{n}.png").unlink()
    with pytest.raises(UserError, match="gives 2 photos, at least 3"):
        run(photos)
    assert fake.calls == []


def test_an_error_of_colmap_names_stage_and_fix(photos, colmap):
    colmap(interrupt="match_exhaustive", error=RuntimeError)
    with pytest.raises(UserError, match=r"failed in matches \(in match_exhaustive\); delete .*sfm and run again"):
        run(photos)


def test_photos_of_one_size_share_a_camera_unless_told_otherwise(photos, colmap):
    write_image(photos / "tall.png", np.zeros((64, 48, 3), np.uint8))
    fake = colmap()
    run(photos)
    assert fake.extracted == [([f"{n}.jpg" for n in range(6)], "single"), (["tall.jpg"], "single")]
    fake = colmap()
    run(photos, cameras="each")
    assert [mode for _, mode in fake.extracted] == ["each", "each"]


@pytest.mark.parametrize("name", ["images", "sparse"])
def test_images_of_another_origin_are_never_replaced(name, photos, colmap):
    fake = colmap()
    precious = photos.parent / "scene" / name / "a.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("mine")
    with pytest.raises(UserError, match=f"{name}: exists and was not made by sfm; choose another -s"):
        run(photos)
    assert fake.calls == []
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("content", ["{half", "{}", '{"photos": 3}'])
def test_a_damaged_stage_cache_is_named(content, finished, photos):
    (photos.parent / "scene/sfm/stages.json").write_text(content)
    with pytest.raises(UserError, match=r"stages\.json: not readable; delete the folder"):
        run(photos)


def test_without_pycolmap_the_extra_is_named(photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    with pytest.raises(UserError, match=r'pip install "unified-lift\[sfm\]"'):
        run(photos)


def test_number_of_pairs():
    assert num_pairs(5, "exhaustive") == 10
    assert num_pairs(3, "sequential") == 3  # distances 1 and 2
    # Distances 1 to 10 give 19 + ... + 10 = 145 pairs of 20 photos, distance 16 gives 4.
    assert num_pairs(20, "sequential") == 149


def test_advice_is_silent_on_a_sound_result_and_names_each_weakness():
    sound = {"models": [10], "registered": 10, "photos": 10, "not_registered": []}
    sound |= {"mean_reprojection_error_px": 0.7, "mean_track_length": 5.0}
    assert advice(sound) == []
    weak = {**sound, "mean_reprojection_error_px": 2.5, "mean_track_length": 2.1}
    assert [line.split()[1] for line in advice(weak)] == ["reprojection", "are"]


def test_the_picture_is_upright_whatever_the_world_axes():
    poses = np.stack([np.linalg.inv(camera.cam_from_world) for camera in orbit(8, width=64, height=48)])
    turn = np.eye(4)
    turn[:3, :3] = [[0, 0, 1], [1, 0, 0], [0, 1, 0]]  # the world's z axis becomes x
    np.testing.assert_allclose(level_axes(turn @ poses)[2], [1, 0, 0], atol=0.02)  # their circle is not centred
    axes = level_axes(turn @ poses)
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(axes) == pytest.approx(1)


def test_real_colmap_finds_the_cameras_of_a_rendered_room(tmp_path):
    pytest.importorskip("pycolmap")
    cameras = room_photos(tmp_path / "photos")
    report = reconstruct(SfmSettings(photos=tmp_path / "photos", source_path=tmp_path / "scene", quiet=True))
    assert report["registered"] == len(cameras)
    assert report["mean_reprojection_error_px"] < 1.0
    scene = load_scene(DataSettings(source_path=tmp_path / "scene"))
    found, true = (
        np.stack([camera.position for camera in each]) for each in ([v.camera for v in scene.train], cameras)
    )
    found, true = found - found.mean(axis=0), true - true.mean(axis=0)
    found *= np.linalg.norm(true) / np.linalg.norm(found)
    turned = Rotation.align_vectors(true, found)[0].apply(found)
    assert np.linalg.norm(turned - true, axis=1).max() < 0.03 * np.linalg.norm(true, axis=1).max()
    # One arc of small photos tells the focal length from the distance only roughly.
    assert scene.train[0].camera.fx == pytest.approx(cameras[0].fx, rel=0.15)


def room_photos(folder):
    """Write ten photos of 320x240 of the synthetic room along an arc of 70 degrees; return their cameras."""
    room, cameras = synthetic_room(SyntheticSettings(num_objects=8)), []
    for n, angle in enumerate(np.linspace(0, np.deg2rad(70), 10)):
        position = room.rug_radius * np.array([1.8 * np.cos(angle), 1.8 * np.sin(angle), 0.9 + 0.2 * (n % 2)])
        pose = look_at(position, np.array([0, 0, 0.1 * room.rug_radius]), np.array([0.0, 0, 1]))
        camera = Camera(cam_from_world=pose, fx=300.0, fy=300.0, cx=160.0, cy=120.0, width=320, height=240)
        write_image(folder / f"{n}.png", room.render(camera)[0])
        cameras.append(camera)
    return cameras


def test_progress_is_counted_by_another_process(tmp_path, monkeypatch):
    # Two copies of SQLite in one process must never have one file open: COLMAP's would lose its locks and crash.
    database = tmp_path / "database.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE keypoints (id INTEGER)")
        connection.executemany("INSERT INTO keypoints VALUES (?)", [(1,), (2,), (3,)])
        connection.commit()
    monkeypatch.setattr(sqlite3, "connect", lambda *_, **__: pytest.fail("opened in this process"))
    seen, counted = [], threading.Event()

    def progress(done, total):
        seen.append((done, total))
        if done == 3:
            counted.set()

    with watched(database, "keypoints", 5, progress):
        assert counted.wait(20)
    assert seen[0] == (0, 5)
    assert (3, 5) in seen
    assert seen[-1] == (5, 5)
