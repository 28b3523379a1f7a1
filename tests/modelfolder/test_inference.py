"""A model folder, read back and looked at."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.saved_model import COIN_IDS, floor_gaussians, save_model
from unified_lift.data import load_annotations, load_scene
from unified_lift.errors import UserError
from unified_lift.methods.unified_lift.codebook import final_codes
from unified_lift.model.render import render
from unified_lift.modelfolder import inference, outputs
from unified_lift.modelfolder.inference import load_model, render_likely_ids, render_view
from unified_lift.modelfolder.labels import GaussianLabels
from unified_lift.modelfolder.outputs import iteration_dir


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
    with pytest.raises(UserError, match="knows no objects"):
        model.mask([0])


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


# ---- objects ----


def test_a_saved_model_is_a_scene_of_objects(model):
    assert set(model.objects) == set(range(len(COIN_IDS)))
    assert sum(model.objects.values()) == len(model) == len(model.gaussians)
    assert model.name_of(2) == "object 2"
    mask = model.mask([1, 3])
    part = model.subset(mask)
    assert set(part.objects) == {1, 3}
    assert torch.equal(part.gaussians.means, model.gaussians.means[mask])
    with pytest.raises(UserError, match="no object 9; there are 0, 1, 2, 3"):
        model.mask([1, 9])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("segmentation.npz", "PK", "segmentation.npz: not a readable NPZ"),
        ("objects.json", '{"0": 1}', "objects.json: not a list of objects"),
        ("objects.json", "[", "objects.json: not a readable JSON file"),
    ],
)
def test_damaged_files_of_labels_are_named(tmp_path, name, content, message):
    folder = save_model(tmp_path)
    (iteration_dir(folder, 40) / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load_model(folder)


# ---- ids in more than one way ----


@pytest.fixture(scope="module")
def camera(views):
    return views[0].camera


def test_likely_ids_are_those_whose_association_is_above_the_threshold(model, camera, monkeypatch):
    association = model.method.association(render(model.gaussians, camera).features.flatten(0, 1)).view(24, 32, -1)
    monkeypatch.setattr(inference, "_PIXELS_AT_ONCE", 100)  # 768 pixels: the last part is not full
    likely = render_likely_ids(model, camera, threshold=0.1)
    assert likely.shape == (24, 32, 4)  # no more than there are codes
    for code in range(4):
        assert torch.equal((likely == code).any(dim=-1), association[..., code] > 0.1)
    assert (likely[..., 1] >= 0).any()  # somewhere two at once


def test_the_association_agrees_with_the_ids(model, camera):
    features = render(model.gaussians, camera).features.detach()
    segmentation = model.method.segment(features)
    association = model.method.association(features.flatten(0, 1)).view(24, 32, -1)
    assert torch.equal(association.argmax(dim=-1), segmentation.object_ids)
    torch.testing.assert_close(association.max(dim=-1).values, segmentation.confidence)
    torch.testing.assert_close(association.sum(dim=-1), torch.ones(24, 32))


@pytest.mark.parametrize(("rows", "width"), [(4, 16), (150, 32)])
def test_a_model_of_many_objects_has_wider_codes_and_is_read_back(tmp_path, rows, width):
    model = save_model(tmp_path)
    folder = iteration_dir(model, 40)
    gaussians = floor_gaussians()
    features = torch.nn.functional.pad(gaussians.features.detach(), (0, width - 16))
    gaussians.set("features", features)
    method = load_model(model).method
    method._set_tensor("codebook", final_codes(torch.eye(rows, 16)))
    assert method.object_state().shape == (rows, width)
    labels = GaussianLabels(features.argmax(dim=1), torch.ones(len(features)))
    outputs.write_objects(folder, gaussians, labels, method=method, num_views={})
    read = load_model(model)
    torch.testing.assert_close(read.method.object_state(), method.object_state())
    assert read.method.segment(read.gaussians.features[:3]).object_ids.shape == (3,)


def test_codes_that_do_not_fit_the_features_of_the_model_are_told(tmp_path):
    model = save_model(tmp_path)
    torch.save(torch.eye(4, 12), codes := iteration_dir(model, 40) / "classifier.pth")
    with pytest.raises(UserError, match=re.escape(str(codes))):
        load_model(model)
