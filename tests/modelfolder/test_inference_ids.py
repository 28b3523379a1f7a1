"""Ids of a saved model in more than one way: all likely ones, and those of other segmentations."""

import pytest
import torch

from tests.saved_model import save_model
from unified_lift.data import load_scene
from unified_lift.model.render import render
from unified_lift.modelfolder import inference
from unified_lift.modelfolder.inference import load_model, render_likely_ids, render_view, segment_view


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(save_model(tmp_path_factory.mktemp("ids")))


@pytest.fixture(scope="module")
def camera(model):
    return load_scene(model.settings.data).test[0].camera


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


def test_several_segmentations_read_one_rendering(model, camera):
    other = model.settings.build_method(zero_id="ignore")
    other.load_object_state(model.method.codebook.flip(0))
    ids = segment_view(model, camera, {"own": model.method, "flipped": other})
    assert torch.equal(ids["own"], render_view(model, camera).object_ids)
    assert torch.equal(ids["flipped"], 3 - ids["own"])


def test_likely_ids_of_a_scene_without_objects_are_refused(tmp_path, camera):
    with pytest.raises(ValueError, match="not lifted"):
        render_likely_ids(load_model(save_model(tmp_path, lifted=False)), camera, threshold=0.2)
