"""What holds for every density strategy, and pruning by contribution, which all have."""

import pytest
import torch

from tests.train.test_training import StopAt, final_state, settings_for
from unified_lift.density import STRATEGIES
from unified_lift.density.base import contributions
from unified_lift.model.render import blending_weights
from unified_lift.modelfolder.settings import changed
from unified_lift.train.hooks import Interrupted
from unified_lift.train.run import latest_checkpoint, run

QUICK = {
    "default": {"densify_from_iter": 2, "densification_interval": 3, "densify_until_iter": 12, "max_gaussians": 400},
    "mcmc": {"relocate_from_iter": 2, "relocation_interval": 3, "relocate_until_iter": 12, "max_gaussians": 400},
}


def settings_of(path, name, **density):
    settings = settings_for(path, geometry={"iterations": 15}, lift={"lift_iterations": 0})
    return changed(settings, {"strategy": name, "density": QUICK.get(name, {}) | density}, origin="test")


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_an_interrupted_run_equals_an_uninterrupted_one(tmp_path, scene, name):
    whole = run(settings_of(tmp_path / "whole", name, min_contribution=0.01), scene)
    count = len(scene.points.positions)
    assert len(whole.gaussians) != count  # it did something
    for stop in (7, 13):
        settings = settings_of(tmp_path / str(stop), name, min_contribution=0.01)
        with pytest.raises(Interrupted):
            run(settings, scene, hooks=[StopAt(stop)])
        again = run(settings, scene, resume_from=latest_checkpoint(settings))
        for key, value in whole.gaussians:
            assert torch.equal(value, again.gaussians.table[key]), key
        density = final_state(settings.model_path, 15)["stage_state"]["density"]
        for key, value in final_state(tmp_path / "whole", 15)["stage_state"]["density"].items():
            assert torch.equal(value, density[key]), key


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_what_no_view_shows_is_pruned_once_and_the_rest_stays(tmp_path, scene, name):
    last = {key: 15 for key in QUICK.get(name, {}) if "until" in key}  # pruned after the last step
    kept = run(settings_of(tmp_path / "all", name, **last), scene).gaussians
    least = float(contributions(kept, [view.camera for view in scene.train]).median())
    some = run(settings_of(tmp_path / "some", name, min_contribution=least, **last), scene).gaussians
    assert len(some) == pytest.approx(len(kept) / 2, rel=0.1)
    none = run(settings_of(tmp_path / "none", name, min_contribution=1.0, **last), scene).gaussians
    assert len(none) == len(kept)  # rather all than none


def test_contribution_is_the_largest_weight_of_a_gaussian_in_any_pixel_of_any_view(scene, tmp_path):
    gaussians = run(settings_of(tmp_path, "default"), scene).gaussians
    cameras = [view.camera for view in scene.train][:3]
    expected = torch.zeros(len(gaussians))
    for camera in cameras:
        weights = blending_weights(gaussians, camera, min_weight=0.0)
        for row in range(0, len(weights.offsets) - 1, 7):
            for entry in range(int(weights.offsets[row]), int(weights.offsets[row + 1])):
                index = int(weights.gaussian_ids[entry])
                expected[index] = max(float(expected[index]), float(weights.weights[entry]))
    found = contributions(gaussians, cameras)
    assert bool((found >= expected).all())
    assert float((found - expected).median()) < 0.05
    assert 0 < float(found.max()) <= 1
    behind = gaussians.means.detach() * 0 + torch.tensor([1e4, 0.0, 0.0])
    gaussians.set("means", behind)
    assert float(contributions(gaussians, cameras).max()) == 0
