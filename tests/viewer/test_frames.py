"""What a frame of the viewer shows, when it is drawn, and how large."""

import json
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.saved_model import camera_above, floor_scene, save_model, window_of
from tests.viewer import window as browser
from unified_lift.errors import UserError
from unified_lift.evaluation.pictures import object_colors, quantize_uint8
from unified_lift.evaluation.video import path_through
from unified_lift.model.render import render
from unified_lift.modelfolder.labels import GaussianLabels
from unified_lift.ops.cameras import look_at, project
from unified_lift.types import Camera
from unified_lift.viewer import renderer as drawing
from unified_lift.viewer.frames import FrameLoop, Window


@pytest.fixture(scope="module")
def coins():
    return floor_scene()


@pytest.fixture(scope="module")
def above(coins):
    """A camera right above the middle of object 1."""
    return camera_above(coins.gaussians.means[coins.mask([1])].mean(dim=0))


@pytest.fixture
def renderer(coins):
    return drawing.Renderer(coins)


def middle(frame):
    return frame[len(frame) // 2, frame.shape[1] // 2].astype(int)


def with_values(scene, **values):
    table = {name: value.detach() for name, value in scene.gaussians} | values
    return replace(scene, gaussians=type(scene.gaussians)(table))


# ---- pictures ----


def test_rgb_is_the_rendering_with_its_view_dependent_colour(coins, above, renderer):
    shiny = with_values(coins, shN=torch.full_like(coins.gaussians.shN, 0.2))
    with torch.no_grad():
        expected = quantize_uint8(render(shiny.gaussians, above, with_features=False).image)
        plain = quantize_uint8(render(coins.gaussians, above, with_features=False).image)
    np.testing.assert_array_equal(renderer.frame(shiny, above, mode="RGB"), expected)
    assert (expected != plain).any()


def test_ids_show_the_palette_colour_of_the_object_over_its_shading(coins, above, renderer):
    picture, shading = (middle(renderer.frame(coins, above, mode=mode)) for mode in ("Object ids", "RGB"))
    with torch.no_grad():
        alpha = float(render(coins.gaussians, above, with_features=False).alpha[32, 48])
    expected = 0.75 * alpha * object_colors(np.array(1)) + 0.25 * shading
    assert np.abs(picture - expected).max() <= 1


def test_uncertainty_is_dark_where_votes_agree_and_bright_where_they_do_not(coins, above, renderer):
    doubtful = replace(coins, labels=GaussianLabels(coins.object_ids, torch.where(coins.object_ids == 1, 0.0, 1.0)))
    sure, unsure = (middle(renderer.frame(scene, above, mode="Uncertainty")) for scene in (coins, doubtful))
    assert unsure.sum() > sure.sum() + 150


def test_features_give_each_object_its_own_colour_whatever_is_edited(coins, above, renderer):
    colors = drawing.feature_colors(coins)(torch.eye(4, 16))
    assert torch.pdist(colors).min() > 0.2
    assert torch.allclose(colors.mean(dim=0), torch.full((3,), 0.5), atol=1e-5)  # grey is the mean of the objects
    whole = renderer.frame(coins, above, mode="Features")
    alone = renderer.frame(coins.subset(coins.mask([1])), above, mode="Features")
    assert np.abs(middle(whole) - middle(alone)).max() <= 16


def test_features_of_a_single_object_and_of_few_dimensions_can_be_drawn(coins, above):
    alone = coins.subset(coins.mask([2]))
    assert torch.allclose(drawing.feature_colors(alone)(alone.gaussians.features), torch.full((1,), 0.5))
    narrow = with_values(coins, features=coins.gaussians.features[:, :2].detach())
    assert drawing.Renderer(narrow).frame(narrow, above, mode="Features").shape == (64, 96, 3)


def test_the_selected_object_is_outlined_and_its_inside_stays(coins, above, renderer):
    plain, marked = (renderer.frame(coins, above, mode="RGB", selected=chosen) for chosen in (None, 1))
    yellow = (marked == (255, 214, 10)).all(axis=2)
    assert yellow.any()
    np.testing.assert_array_equal(middle(marked), middle(plain))
    ids = renderer.frame(coins, above, mode="Object ids")
    inside = np.abs(ids.astype(int) - middle(ids)).max(axis=2) < 10
    assert not (yellow & inside).any()


def test_an_outline_surrounds_a_mask_by_hand():
    inside = np.zeros((250, 250), dtype=bool)
    inside[100:150, 100:150] = True
    frame = drawing.outlined(np.full((250, 250, 3), 90, dtype=np.uint8), inside)
    assert tuple(frame[125, 125]) == (90, 90, 90)  # inside
    assert tuple(frame[125, 150]) == (255, 214, 10)  # 1/250 of the height beside it
    assert tuple(frame[125, 151]) == (20, 20, 20)  # and a dark edge
    assert tuple(frame[125, 152]) == (90, 90, 90)


@pytest.mark.parametrize("mode", list(drawing.MODES))
def test_a_scene_of_which_everything_is_hidden_is_background(coins, above, renderer, mode):
    nothing = coins.subset(torch.zeros(len(coins), dtype=torch.bool))
    frame = renderer.frame(nothing, above, mode=mode, selected=1)
    assert frame.shape == (64, 96, 3)
    assert frame.max() <= 3  # the darkest colour of inferno


def test_a_renderer_notices_another_scene_mode_and_selection(coins, above, renderer):
    seen = [
        renderer.frame(coins, above, mode="Object ids"),
        renderer.frame(coins, above, mode="Object ids", selected=1),
        renderer.frame(coins, above, mode="Features", selected=1),
        renderer.frame(coins.subset(~coins.mask([1])), above, mode="Features", selected=1),
    ]
    assert all((a != b).any() for a, b in zip(seen, seen[1:], strict=False))


def test_thumbnails_fill_their_frame_and_are_drawn_again_only_if_looks_change(coins):
    cameras = [camera_above((0.5, 0.5, 0)), camera_above((-2, -2, 0))]
    thumbnails = drawing.Thumbnails(cameras)
    first = thumbnails.jpegs(coins, [1, 2])
    assert all(data[:2] == b"\xff\xd8" for data in first.values())
    moved = replace(coins, names={1: "cup"})
    assert thumbnails.jpegs(moved, [1])[1] is first[1]
    color = torch.where((coins.object_ids == 1)[:, None, None], -1.0, coins.gaussians.sh0.detach())
    again = thumbnails.jpegs(with_values(coins, sh0=color), [1, 2])
    assert again[1] != first[1]
    assert again[2] is first[2]


def test_the_thumbnail_of_a_coin_reaches_the_borders(coins):
    picture = drawing.thumbnail(coins.subset(coins.mask([1])), [camera_above((0, 0, 0))]).astype(int)
    backdrop = picture[0, 0]
    rows = np.flatnonzero((np.abs(picture - backdrop).max(axis=2) > 40).any(axis=1))
    assert picture.shape == (drawing.SIZE[1], drawing.SIZE[0], 3)
    assert 0.6 * drawing.SIZE[1] < np.ptp(rows) <= drawing.SIZE[1]


# ---- cameras ----


def test_a_window_camera_sees_what_the_browser_says():
    camera = drawing.camera_of(window_of((1, 0, 0, 0), (1, 2, 3), np.pi / 2, 400, 200))
    assert camera.fx == camera.fy == pytest.approx(100)  # 90 degrees from top to bottom
    pixels, depth = project(np.array([[1.0, 2, 5], [1, 4, 5]]), camera)
    np.testing.assert_allclose(pixels, [[200, 100], [200, 200]], atol=1e-9)  # y points down
    np.testing.assert_allclose(depth, 2)


def test_a_window_opens_where_the_first_camera_was_with_its_field_of_view():
    ring = [np.array([np.cos(t), np.sin(t), 0.5]) * 3 for t in np.arange(0, 6, 1)]
    lens = {"fx": 50.0, "fy": 50.0, "cx": 50.0, "cy": 50.0, "width": 100, "height": 100}
    cameras = [Camera(cam_from_world=look_at(p, np.zeros(3), np.array([0, 0, 1.0])), **lens) for p in ring]
    position, target, up, fov = drawing.start_view(cameras)
    np.testing.assert_allclose(position, ring[0])
    np.testing.assert_allclose(target, 0, atol=1e-6)
    np.testing.assert_allclose(up, [0, 0, 1], atol=1e-3)
    assert fov == pytest.approx(np.pi / 2)


def test_saved_cameras_are_read_and_a_broken_list_is_named(tmp_path):
    entry = {"id": 0, "img_name": "a", "width": 8, "height": 6, "position": [1, 2, 3], "fx": 5.0, "fy": 6.0}
    (tmp_path / "cameras.json").write_text(json.dumps([entry | {"rotation": np.eye(3).tolist()}]))
    (camera,) = drawing.saved_cameras(tmp_path)
    np.testing.assert_allclose(camera.position, [1, 2, 3])
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (5, 6, 4, 3)
    for text in ("[]", "{", "[{}]", "[1]"):
        (tmp_path / "cameras.json").write_text(text)
        with pytest.raises(UserError, match=r"cameras\.json"):
            drawing.saved_cameras(tmp_path)


def test_a_path_passes_through_its_views_evenly_and_turns_with_them():
    def at(x, turn):
        pose = look_at(np.array([x, 0, 0]), np.array([x + np.sin(turn), 0, np.cos(turn)]), np.array([0, -1.0, 0]))
        return Camera(cam_from_world=pose, fx=50.0, fy=50.0, cx=80.0, cy=50.0, width=161, height=100)

    keys = [at(0.0, 0.0), at(1.0, 0.5), at(2.0, 1.0)]
    path = path_through(keys, count=5, height=60)
    np.testing.assert_allclose([camera.position[0] for camera in path], [0, 0.5, 1, 1.5, 2], atol=1e-9)
    for camera, key in zip(path[::2], keys, strict=True):
        np.testing.assert_allclose(camera.cam_from_world, key.cam_from_world, atol=1e-9)
    np.testing.assert_allclose(path[1].cam_from_world[2, :3], [np.sin(0.25), 0, np.cos(0.25)], atol=1e-9)
    assert {(camera.width, camera.height) for camera in path} == {(96, 60)}  # even
    assert path[0].fy == pytest.approx(30)
    assert len(path_through([keys[0], keys[0]], count=3)) == 3  # standing still is allowed
    with pytest.raises(UserError, match="two views at least, there are 1"):
        path_through(keys[:1], count=5)


# ---- pace ----


def test_moving_frames_shrink_until_they_keep_the_pace_and_grow_back():
    window = Window(camera_above((0, 0, 0), width=640, rows=400), send=None)
    seconds_per_pixel = 4e-6  # a whole frame of 640 x 400 takes a second
    for _ in range(20):
        width, height = window.size(moving=True)
        window.took(width * height * seconds_per_pixel)
    assert width * height * seconds_per_pixel == pytest.approx(1 / 24, rel=0.1)
    assert width / height == pytest.approx(1.6, rel=0.05)
    assert window.size(moving=False) == (640, 400)
    for seconds, size in ((1e-4, (640, 400)), (10, (96, 60))):  # never unrecognisable
        for _ in range(20):
            window.took(seconds)
        assert window.size(moving=True) == size
    assert Window(camera_above((0, 0, 0), width=8192, rows=4096), send=None).size(moving=False) == (2048, 1024)


@pytest.mark.parametrize(("seconds", "settled"), [(0.5, 0.25), (4.0, 1.0), (60.0, 2.0)])
def test_the_slower_a_whole_frame_the_longer_a_camera_has_to_rest_before_one(seconds, settled):
    desk = Desk(cost=seconds)
    desk.look()
    desk.loop.step()
    desk.cost = 0.0
    desk.look()
    assert desk.loop.step() == pytest.approx(settled)
    desk.now += settled - 0.01
    assert desk.loop.step() == pytest.approx(0.01)
    desk.now += 0.02
    assert desk.loop.step() is None
    assert [moving for *_, moving in desk.sent] == [False, True, False]


class Desk:
    """A frame loop with a clock of its own and windows that keep what they are sent."""

    def __init__(self, cost=0.0):
        self.now, self.cost, self.drawn, self.sent = 100.0, cost, [], []
        self.loop = FrameLoop(self.draw, clock=lambda: self.now)

    def draw(self, camera, moving):
        self.drawn.append((camera.width, camera.height))
        self.now += self.cost
        return np.zeros((camera.height, camera.width, 3), dtype=np.uint8)

    def look(self, key="a", width=400):
        camera = camera_above((0, 0, 0), width=width, rows=200)
        self.loop.watch(key, camera, lambda picture, moving: self.sent.append((key, picture.shape[1], moving)))


def test_a_window_gets_a_whole_frame_and_small_ones_while_its_camera_moves_and_a_whole_one_at_rest():
    desk = Desk(cost=0.01)
    desk.look()
    assert desk.loop.step() is None
    assert desk.loop.step() is None
    assert desk.drawn == [(400, 200)]  # a new window: one whole frame, then nothing
    assert desk.sent == [("a", 400, False)]
    for _ in range(3):
        desk.look()
        wait = desk.loop.step()
        desk.now += 0.05
    assert all(moving for *_, moving in desk.sent[1:])
    assert all(width < 400 for width, _ in desk.drawn[1:])
    assert 0 < wait <= 0.25
    small = len(desk.drawn)
    assert desk.loop.step() > 0  # not yet at rest: nothing new to draw
    assert len(desk.drawn) == small
    desk.now += 0.25
    assert desk.loop.step() is None
    assert desk.drawn[small:] == [(400, 200)]


def test_a_camera_that_moves_while_a_frame_is_drawn_is_served_again_at_once():
    desk = Desk()
    desk.look()
    desk.loop.step()
    desk.look()
    draw = desk.draw
    desk.loop._draw = lambda camera, moving: (desk.look(width=300), draw(camera, moving))[1]
    assert desk.loop.step() == 0


def test_an_edit_redraws_every_window_and_a_drag_does_so_roughly():
    desk = Desk()
    desk.look("a")
    desk.look("b", width=300)
    desk.loop.step()
    desk.loop.redraw()
    desk.loop.step()
    assert desk.sent[2:] == [("a", 400, False), ("b", 300, False)]
    desk.loop.redraw(rough=True)
    assert desk.loop.step() > 0
    assert [moving for *_, moving in desk.sent[4:]] == [True, True]
    desk.now += 0.3
    desk.loop.step()
    assert [width for _, width, _ in desk.sent[6:]] == [400, 300]
    desk.loop.forget("a")
    desk.loop.redraw()
    desk.loop.step()
    assert desk.sent[8:] == [("b", 300, False)]  # a closed window gets nothing more


def test_memory_that_frames_leave_goes_back_now_and_then_however_long_the_camera_moves(monkeypatch):
    freed = []
    monkeypatch.setattr("unified_lift.viewer.frames.release_memory", lambda _: freed.append(len(loop.drawn)))
    loop = Desk()
    for _ in range(40):
        loop.look()
        loop.loop.step()
    assert freed == [16, 32]


def test_a_frame_without_memory_is_left_out_and_told_once_and_later_ones_are_drawn():
    lacking, told = [True], []
    desk = Desk(cost=0.01)

    def draw(camera, moving):
        if lacking[0]:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return np.zeros((camera.height, camera.width, 3), dtype=np.uint8)

    desk.loop = FrameLoop(draw, failed=told.append, clock=lambda: desk.now)
    for _ in range(3):
        desk.look()
        desk.loop.step()
    assert desk.sent == []
    assert [line.split(";")[0] for line in told] == ["a frame: out of GPU memory: 2.00 GiB asked for"]
    lacking[0] = False
    desk.now += 0.3  # the camera rests
    assert desk.loop.step() is None
    assert [width for _, width, _ in desk.sent] == [400]
    lacking[0] = True
    desk.loop.redraw()
    desk.loop.step()
    assert len(told) == 2


def test_a_window_is_told_that_memory_lacks_and_shows_the_scene_later(tmp_path, open_viewer, monkeypatch):
    viewer = open_viewer(save_model(tmp_path))
    port, token = browser.SERVER.match(viewer.url).groups()
    with monkeypatch.context() as lacking, browser.Window(int(port), token) as window:
        lacking.setattr(drawing, "render", lambda *_, **__: bytearray(1 << 62))
        window.look()
        window.wait_for("a frame: out of memory")
        window.messages.clear()
        lacking.undo()
        window.look(0.1)
        window.wait_for("BackgroundImage")


def test_the_thread_draws_what_is_asked_and_ends():
    arrived = threading.Event()
    loop = FrameLoop(lambda camera, moving: np.zeros((camera.height, camera.width, 3), dtype=np.uint8))
    loop.start()
    loop.watch("a", camera_above((0, 0, 0)), lambda *_: arrived.set())
    assert arrived.wait(10)
    loop.stop()
    assert not loop._thread.is_alive()
