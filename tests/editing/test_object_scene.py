"""The scene of objects that query, edit, export and view share."""

import pytest
import torch

from tests.saved_model import COIN_IDS, save_model
from unified_lift.errors import UserError
from unified_lift.modelfolder.inference import load_model
from unified_lift.modelfolder.outputs import iteration_dir


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("objects"))


def test_a_saved_model_is_a_scene_of_objects(model):
    scene = load_model(model)
    assert set(scene.objects) == set(range(len(COIN_IDS)))
    assert sum(scene.objects.values()) == len(scene) == len(scene.gaussians)
    assert scene.name_of(2) == "object 2"
    assert bool((scene.confidence <= 1).all())


def test_rows_of_one_object_are_that_object(model):
    scene = load_model(model)
    mask = scene.mask([1, 3])
    part = scene.rows(mask)
    assert set(part.objects) == {1, 3}
    assert torch.equal(part.gaussians.means, scene.gaussians.means[mask])
    assert len(scene) > len(part)  # the scene itself did not change


def test_an_unknown_object_is_named_with_those_there_are(model):
    with pytest.raises(UserError, match="no object 9; there are 0, 1, 2, 3"):
        load_model(model).mask([1, 9])


def test_a_model_without_lift_and_broken_labels_are_errors_that_say_so(tmp_path):
    with pytest.raises(UserError, match="knows no objects"):
        load_model(save_model(tmp_path / "bare", lifted=False)).require_labels()
    broken = save_model(tmp_path / "broken")
    path = iteration_dir(broken, 40) / "segmentation.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="segmentation.npz: not readable"):
        load_model(broken)
    save_model(tmp_path / "names")
    (iteration_dir(tmp_path / "names" / "model", 40) / "objects.json").write_text('{"0": 1}')
    with pytest.raises(UserError, match="not a list of objects"):
        load_model(tmp_path / "names" / "model")
