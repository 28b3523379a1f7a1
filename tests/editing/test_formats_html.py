"""The offline page: what is in it, where it looks from, and that a browser draws it."""

import base64
import json
import math
import os
import re
import shutil
import subprocess

import cv2
import numpy as np
import pytest

from tests.editing.small_scene import gaussians_of, random_gaussians, scene_of
from unified_lift.editing.formats.html import first_view, write
from unified_lift.errors import UserError
from unified_lift.model.splat import splat_rows

CAMERA = {"position": [0, -1, -4], "rotation": np.eye(3).tolist(), "height": 400, "fy": 200}


def constant(text, name):
    return re.search(rf"const {name} = (.*?);\s*(//|\n)", text).group(1)


def test_the_page_holds_splats_and_objects_and_asks_for_nothing_from_outside(tmp_path):
    scene = scene_of(random_gaussians(30), names={4: "</script><b>mug"})
    write(tmp_path, "scene", scene)
    text = (tmp_path / "scene.html").read_text()
    script = text.split("<script>")[1]
    assert not re.search(r"https?:|//[a-z]+\.|\b(src|href|import|fetch|XMLHttpRequest|WebSocket)\b", text)
    assert text.count("<script") == text.count("</script>") == 1  # no name can end it
    assert len(script.splitlines()) < 400
    assert base64.b64decode(json.loads(constant(text, "SPLATS"))) == splat_rows(scene.gaussians).tobytes()
    ids = np.frombuffer(base64.b64decode(json.loads(constant(text, "IDS"))), "<u2")
    objects = json.loads(constant(text, "scene"))["objects"]
    assert [objects[place]["id"] for place in ids] == scene.object_ids.tolist()
    assert objects[1]["name"] == "</script><b>mug"


@pytest.mark.parametrize(
    "name", ["/*SPLATS*/", "/*IDS*/", "/*SCENE*/", r"\1\g<0>/*OTHER*/", "{{ 7 * 7 }}", "\u2028\ud800"]
)
def test_a_name_that_looks_like_a_place_of_the_page_stays_a_name(tmp_path, name):
    write(tmp_path, "scene", scene_of(random_gaussians(30), names={4: name}))
    text = (tmp_path / "scene.html").read_text("utf-8")
    assert json.loads(constant(text, "scene"))["objects"][1]["name"] == name
    write(tmp_path, "plain", scene_of(random_gaussians(30), names={4: "x"}))
    assert len(text) <= (tmp_path / "plain.html").stat().st_size + 50


def test_a_whole_scene_is_first_seen_from_its_first_camera(tmp_path):
    (tmp_path / "cameras.json").write_text(json.dumps([CAMERA, CAMERA | {"position": [0, -1, -6]}]))
    positions = np.array([[0.0, -1, 0], [0, -1, 1], [0, -1, -1]])  # 4 and 6 away from the middle: 5 is half-way
    view = first_view(tmp_path / "cameras.json", positions, is_whole=True)
    np.testing.assert_allclose(view["eye"], [0, -1, -4])
    np.testing.assert_allclose(view["target"], [0, -1, 1])
    np.testing.assert_allclose(view["up"], [0, -1, 0])
    assert view["fieldOfView"] == pytest.approx(math.pi / 2)


def test_an_object_is_first_seen_from_the_nearest_camera_and_fills_the_view(tmp_path):
    (tmp_path / "cameras.json").write_text(
        json.dumps([CAMERA | {"position": [0, 0, -9]}, CAMERA | {"position": [5, 0, 0]}])
    )
    positions = np.array([[0.0, 0, 0], [1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])
    view = first_view(tmp_path / "cameras.json", positions, is_whole=False)
    np.testing.assert_allclose(view["target"], [0, 0, 0])
    np.testing.assert_allclose(view["eye"], [1.3, 0, 0])  # 1.3 radii / tan 45 degrees


def test_without_cameras_it_is_seen_along_z_and_broken_cameras_are_an_error(tmp_path):
    path, positions = tmp_path / "cameras.json", np.zeros((3, 3))
    view = first_view(path, positions, is_whole=True)
    assert view["eye"][2] < 0
    np.testing.assert_allclose(view["up"], [0, -1, 0])
    far = '[{"position": [0, 0, 1e300], "rotation": [[1, 0, 0], [0, 1, 0], [0, 0, 1]], "height": 9, "fy": %s}]'
    for text in ("[1]", "{", '[{"position": [0, 0]}]', "[" * 100_000, '{"a": 1}', far % 9, far % 0):
        path.write_text(text)
        with pytest.raises(UserError, match=r"cameras.json: not a list of cameras"):
            first_view(path, positions, is_whole=True)


@pytest.mark.parametrize("antialiased", [False, True])
def test_a_browser_draws_the_near_ellipse_over_the_far_one(tmp_path, antialiased):
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on PATH, nor in the variable CHROMIUM")
    # Seen along z: green (wide, flat) at depth 4 behind red at depth 3; the far one comes last in the file. White is a
    # quarter of a pixel, at (-50, -50) from the middle: 0.0625 / 0.3625 of its opacity is left if that is compensated.
    red, green, white = [[1.77, -1.77, -1.77]], [[-1.77, 1.77, -1.77]], [[1.77, 1.77, 1.77]]
    gaussians = gaussians_of(
        means=[[0, 0, -1], [-1, -1, 0], [0, 0, 0]],
        log_scales=np.log([[0.15, 0.15, 0.15], [0.005, 0.005, 0.005], [1.2, 0.3, 0.3]]),
        logit_opacities=[9, 9, 9],
        sh0=[red, white, green],
    )
    gaussians.antialiased = antialiased
    (tmp_path / "cameras.json").write_text(json.dumps([CAMERA | {"position": [0, 0, -4]}]))
    write(tmp_path, "scene", scene_of(gaussians, path=tmp_path))
    command = [
        chromium, "--headless=new", "--no-sandbox", "--hide-scrollbars", "--enable-unsafe-swiftshader",
        f"--user-data-dir={tmp_path / 'profile'}", "--window-size=400,400", "--virtual-time-budget=2000",
        f"--screenshot={tmp_path / 'shot.png'}", (tmp_path / "scene.html").as_uri(),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    image = cv2.imread(str(tmp_path / "shot.png"))[..., ::-1].astype(int)
    # The page may be lower than the window; the middle is where the red one is brightest.
    red_rows, red_columns = np.nonzero((image[..., 0] > 200) & (image[..., 1] < 60))
    assert len(red_rows) > 50
    middle = int(red_rows.mean())
    assert abs(int(red_columns.mean()) - 200) <= 2
    left_right = image[middle, [150, 250]]
    assert (left_right[:, 1] > 100).all()  # wide along x ...
    assert (left_right[:, 0] < 60).all()
    assert image[middle - 120, 200].max() < 30  # ... and low along y
    dot = image[middle - 55 : middle - 44, 145:156].max()
    assert 20 < dot < 50 if antialiased else dot > 100
