"""A model folder, read back and looked at."""

from dataclasses import replace

import numpy as np
import pytest

from tests.saved_model import COIN_IDS, save_model
from unified_lift.data import load_annotations, load_scene
from unified_lift.errors import UserError
from unified_lift.modelfolder.inference import load_model, render_view


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("inference")
    save_model(root)
    return root


@pytest.fixture(scope="module")
def model(root):
    return load_model(root / "model")


@pytest.fixture(scope="module")
def views(model):
    return load_scene(model.settings.data).test


def test_rendered_ids_are_the_codes_of_the_objects_seen(model, views):
    truth = load_annotations(model.settings.data, [view.name for view in views])
    for view in views:
        codes = np.searchsorted(COIN_IDS, truth[view.name])
        assert (render_view(model, view.camera).object_ids.numpy() == codes).mean() > 0.93


def test_the_rendering_looks_like_the_photo(model, views):
    error = render_view(model, views[0].camera).image - views[0].image / 255
    assert error.square().mean().sqrt() < 0.12


def test_confidence_is_high_inside_objects_and_stays_in_range(model, views):
    confidence = render_view(model, views[0].camera).confidence
    assert confidence.median() > 0.9
    assert 0 <= confidence.min() <= confidence.max() <= 1


def test_depth_is_the_distance_along_the_camera_axis(model, views):
    camera = views[0].camera
    rotation = camera.cam_from_world[:3, :3]
    pixel = np.array([(16.5 - camera.cx) / camera.fx, (12.5 - camera.cy) / camera.fy, 1.0])
    expected = -camera.position[2] / (rotation.T @ pixel)[2]  # where this ray meets the floor z = 0
    assert float(render_view(model, camera).depth[12, 16]) == pytest.approx(expected, rel=0.03)


def test_a_white_background_fills_what_no_gaussian_covers(model, views):
    white = replace(model.settings, geometry=replace(model.settings.geometry, white_background=True))
    away = replace(views[0].camera, cam_from_world=np.diag([1.0, -1.0, -1.0, 1.0]) @ views[0].camera.cam_from_world)
    assert float(render_view(replace(model, settings=white), away).image.min()) == 1
    rendered = render_view(model, away)
    assert float(rendered.image.abs().max()) == 0
    assert float(rendered.depth.max()) == 0


def test_a_scene_without_objects_has_no_ids(tmp_path):
    model = load_model(save_model(tmp_path, lifted=False))
    rendered = render_view(model, load_scene(model.settings.data).test[0].camera)
    assert not model.is_lifted
    assert rendered.object_ids is None
    assert rendered.confidence is None


def test_the_last_iteration_is_taken_unless_another_is_asked_for(tmp_path):
    save_model(tmp_path, iteration=7, lifted=False)
    folder = save_model(tmp_path, iteration=12)
    assert load_model(folder).iteration == 12
    early = load_model(folder, iteration=7)
    assert (early.iteration, early.is_lifted) == (7, False)
    with pytest.raises(UserError, match="iteration 9 is not saved; there are 7, 12"):
        load_model(folder, iteration=9)


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere: no config.yaml"):
        load_model(tmp_path / "nowhere")
