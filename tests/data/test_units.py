"""The frame that a scene is worked on in, and the seed points that start in it."""

import dataclasses

import numpy as np
import pytest

from tests.data.fixtures.floor import LANDMARK, orbit
from tests.data.fixtures.moved import move_scene
from unified_lift.data import load_scene
from unified_lift.data.settings import DataSettings
from unified_lift.data.units import frame_notes, frame_of, seeds_inside
from unified_lift.ops.cameras import look_at, project
from unified_lift.types import IDENTITY, PointCloud, Similarity, View

UTM = (435_000.0, 5_650_000.0, 110.0)


def views_at(positions, target=(0.0, 0.0, 0.0)):
    """Return views that look at a point, or away from it where they stand on it."""
    camera, views = orbit(1, width=32, height=24)[0], []
    for n, position in enumerate(np.asarray(positions, np.float64)):
        forward = np.subtract(target, position) if np.linalg.norm(np.subtract(target, position)) > 1e-9 else [1, n, 0]
        pose = look_at(position, position + forward, np.array([0.0, 0.0, 1.0]))
        views.append(View(name=str(n), camera=dataclasses.replace(camera, cam_from_world=pose), image=None))
    return views


def ring(count=12, radius=4.0, centre=(0.0, 0.0, 0.0)):
    angles = 2 * np.pi * np.arange(count) / count
    return np.stack([radius * np.cos(angles), radius * np.sin(angles), 0.3 * radius * np.cos(3 * angles)], 1) + centre


def cloud_of(positions):
    return PointCloud(positions=np.asarray(positions), colors=np.zeros((len(positions), 3), np.uint8))


def no_points():
    return None


@pytest.mark.parametrize("extent", [0.6, 1, 4, 100, 240])
@pytest.mark.parametrize("distance", [0, 1, 25])
def test_an_ordinary_scene_is_worked_on_as_it_is(extent, distance):
    def unread():
        raise AssertionError("points are read where no one needs them")

    centre = (distance * extent, 0, 0)
    assert frame_of(views_at(ring(radius=extent, centre=centre), centre), unread) == IDENTITY
    assert frame_notes(IDENTITY, views_at(ring())) == []


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.1, 1, 1e3, 1e6])
@pytest.mark.parametrize("offset", [(0.0, 0.0, 0.0), UTM, (1e7, -1e7, 0.0)])
def test_any_other_scene_has_its_middle_at_the_origin_and_an_ordinary_extent(scale, offset):
    offset = np.multiply(offset, min(1.0, scale * 1e3))  # float64 holds no scene of micrometres on a map
    views = views_at(ring(radius=4 * scale, centre=offset))
    frame = frame_of(views, no_points)
    inside = np.stack([frame.camera_inside(view.camera).position for view in views])
    radius = np.linalg.norm(inside - np.median(inside, axis=0), axis=1).max()
    assert 2.7 < radius < 6
    assert np.linalg.norm(inside.mean(axis=0)) < (1 if scale == 0.1 or any(offset) else 1e-6) + 32 * 4 * (scale == 1e6)
    assert np.log2(frame.scale) == round(np.log2(frame.scale))  # a power of two loses nothing
    expected = ring(radius=4 * scale, centre=offset)
    np.testing.assert_allclose(frame.outside(inside), expected, rtol=1e-12, atol=1e-7 * scale)
    np.testing.assert_allclose(frame.inside(expected), inside, atol=2e-6)


def test_what_a_camera_sees_does_not_move():
    frame, (view, *_) = Similarity(offset=UTM, scale=0.25), views_at(ring(centre=UTM), target=UTM)
    points = np.random.default_rng(0).normal(size=(20, 3)) + UTM
    pixels, depth = project(points, view.camera)
    again, less = project(frame.inside(points), frame.camera_inside(view.camera))
    np.testing.assert_allclose(again, pixels, atol=1e-5)
    np.testing.assert_allclose(less, 0.25 * depth, atol=1e-7)


@pytest.mark.parametrize("tremble", [0, 1e-9, 1e-5])
@pytest.mark.parametrize("scale", [1e-3, 1, 1e4])
@pytest.mark.parametrize("offset", [(0, 0, 0), UTM])
def test_of_a_camera_that_only_turns_the_points_tell_the_extent(tremble, scale, offset):
    rng = np.random.default_rng(1)
    views = views_at(offset + scale * tremble * rng.normal(size=(12, 3)), target=np.add(offset, (0, 0, 0)))
    points = offset + scale * ring(200, radius=5.0)
    frame = frame_of(views, lambda: cloud_of(points))
    reach = np.median(np.linalg.norm(frame.inside(points) - frame.inside(views[0].camera.position), axis=1))
    assert 2.7 < reach < 6
    assert any(frame.offset) == any(offset)
    # Without points nothing tells it; noise of the last digits is no extent.
    assert frame_of(views_at(np.tile(offset, (5, 1))), no_points).scale == 1


@pytest.mark.parametrize(
    "more",
    [np.full((1, 3), 1e5), np.zeros((6, 3)), np.full((1, 3), 1e-9)],
    ids=["one wrong pose", "half of them stand still", "one at the origin"],
)
def test_odd_cameras_do_not_decide(more):
    assert frame_of(views_at(np.concatenate([ring(), more])), no_points) == IDENTITY


@pytest.mark.parametrize("reader", ["colmap", "transforms", "messy_rooms"])
@pytest.mark.parametrize(("scale", "offset"), [(1e-3, (0, 0, 0)), (1.0, UTM), (1e4, (1e7, -1e7, 30.0))])
def test_every_reader_gives_the_same_scene_wherever_it_is(reader, scale, offset, dataset, read):
    root = dataset(reader)
    before = read(root, eval=True)
    move_scene(root, scale, offset)
    scene = read(root, eval=True)
    factor, shift = scale * scene.frame.scale, scene.frame.inside(np.array(offset, np.float64))
    assert 1 < factor * before.radius < 10
    assert scene.radius == pytest.approx(factor * before.radius, rel=1e-5)
    assert any("saved in yours (frame.json)" in note for note in scene.notes)
    for old, new in zip((*before.train, *before.test), (*scene.train, *scene.test), strict=True):
        np.testing.assert_allclose(new.camera.position, factor * old.camera.position + shift, atol=1e-6)
        expected = project(LANDMARK[None], old.camera)[0]
        np.testing.assert_allclose(project(factor * LANDMARK[None] + shift, new.camera)[0], expected, atol=1e-4)
    assert scene.points.positions.dtype == np.float32
    if reader != "messy_rooms":  # whose points are made of the photos
        np.testing.assert_allclose(scene.points.positions, factor * before.points.positions + shift, atol=1e-5)


def test_a_frame_that_is_given_is_taken(dataset):
    frame, settings = Similarity(offset=(1.0, 0.0, 0.0), scale=2.0), DataSettings(source_path=dataset("transforms"))
    before, scene = load_scene(settings), load_scene(settings, frame=frame)
    assert scene.frame == frame
    position = before.train[0].camera.position
    np.testing.assert_allclose(scene.train[0].camera.position, 2 * (position - [1, 0, 0]))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_poses_that_float32_has_rounded_are_told(kind):
    views = views_at((ring() + UTM).astype(kind), target=UTM)
    frame = frame_of(views, no_points)
    inside = [dataclasses.replace(view, camera=frame.camera_inside(view.camera)) for view in views]
    notes = frame_notes(frame, inside)
    assert notes[0] == "trained in coordinates less 435000 5650000 110, saved in yours (frame.json)"
    assert ("the cameras' places are rounded to 0.5 units by float32; write" in notes[-1]) == (kind == np.float32)


# ---- seed points ----


def seeds(positions, frame=IDENTITY):
    found, notes = seeds_inside(cloud_of(positions), frame, views_at(ring()))
    return found.positions, notes


@pytest.fixture
def surface():
    """Points of a ball that keep some distance from each other."""
    return np.random.default_rng(3).normal(size=(300, 3)).astype(np.float32)


def test_a_clean_cloud_starts_as_it_is(surface):
    pair = np.concatenate([surface, surface[:5] + 1e-5])  # near, but not the same: COLMAP finds such pairs
    found, notes = seeds(pair)
    np.testing.assert_array_equal(found, pair)
    assert notes == []
    many = np.random.default_rng(4).normal(size=(20_000, 3)).astype(np.float32)
    assert len(seeds(many)[0]) == 20_000
    assert seeds(np.zeros((0, 3)))[1] == []


@pytest.mark.parametrize("tremble", [0, 1e-9, 1e-5])
@pytest.mark.parametrize("times", [2, 4, 30])
def test_points_at_one_place_are_one(surface, tremble, times):
    many = np.repeat(surface.astype(np.float64), times, axis=0)
    found, notes = seeds(many + tremble * np.random.default_rng(0).normal(size=many.shape))
    assert 300 <= len(found) < 400  # a few stand on both sides of the border of a cell
    assert notes == [f"{300 * times - len(found)} of {300 * times} points are where another is: left out"]
    if tremble == 0:
        np.testing.assert_array_equal(found, surface)


@pytest.mark.parametrize("distance", [1e5, 1e6, 1e20, 1e300])
def test_points_alone_in_the_far_distance_are_left_out(surface, distance):
    far = np.concatenate([np.eye(3), -np.eye(3)[:2]]) * distance
    found, notes = seeds(np.concatenate([surface.astype(np.float64), far]))
    np.testing.assert_array_equal(found, surface)
    assert notes == ["5 points alone in the far distance are left out"]


def test_a_sky_stays(surface):
    sky = np.random.default_rng(5).normal(size=(4000, 3))
    sky *= 1e5 / np.linalg.norm(sky, axis=1, keepdims=True)
    assert len(seeds(np.concatenate([surface, sky]))[0]) == 300 + 4000


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_points_that_float32_has_rounded_are_spread_over_its_steps(surface, kind):
    frame = Similarity(offset=UTM)
    found, notes = seeds((surface + UTM).astype(np.float32).astype(kind), frame)
    assert len(found) == 300
    assert notes == ["points are spread again over the 0.5 units to which float32 has rounded them"]
    error = np.abs(found - surface)
    assert (error.max(axis=0) <= [0.04, 0.51, 1e-4]).all()
    exact, notes = seeds(surface + np.array(UTM), frame)
    np.testing.assert_allclose(exact, surface, atol=1e-6)
    assert notes == []


def test_the_radius_of_a_camera_that_only_turns_is_a_share_of_the_points_distance(scene):
    still = [dataclasses.replace(view, camera=scene.train[0].camera) for view in scene.train]
    points = cloud_of(ring(50, radius=40.0))
    assert dataclasses.replace(scene, train=tuple(still), points=points).radius == pytest.approx(10, rel=0.1)
    assert dataclasses.replace(scene, train=tuple(still)).radius == 1


@pytest.mark.parametrize("distance", [1e3, 1e6])
def test_a_wrong_pose_does_not_spoil_the_radius(scene, distance):
    camera = scene.train[0].camera
    pose = camera.cam_from_world.copy()
    pose[:3, 3] += distance
    wrong = dataclasses.replace(scene.train[0], camera=dataclasses.replace(camera, cam_from_world=pose))
    many = scene.train * 3
    expected = dataclasses.replace(scene, train=many).radius
    assert dataclasses.replace(scene, train=(*many, wrong)).radius == pytest.approx(expected)
