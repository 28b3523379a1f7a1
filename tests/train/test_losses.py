"""A loss that somebody adds: found by name, turned on by its weight, logged, and felt by what it is a loss of."""

import pytest
import torch

from tests.train.test_training import final_state, settings_for
from unified_lift.errors import UserError
from unified_lift.train.logs import read_log
from unified_lift.train.losses import LOSSES, chosen_losses
from unified_lift.train.losses.base import GeometryLoss
from unified_lift.train.run import run

FUNCTIONS = {
    "depth": lambda out, gaussians, view: out.depth.mean(),
    "alpha": lambda out, gaussians, view: out.alpha.mean(),
    "color": lambda out, gaussians, view: (out.image - view.image.float() / 255).square().mean(),
    "opacity": lambda out, gaussians, view: gaussians.opacities.mean(),
    "scale": lambda out, gaussians, view: gaussians.scales.mean(),
}


@pytest.fixture(autouse=True)
def _registry(monkeypatch):
    for name, function in FUNCTIONS.items():
        monkeypatch.setitem(LOSSES, name, GeometryLoss(name, function))


def geometry_of(path, scene, *words):
    run(settings_for(path, iterations=3, lift_iterations=0, geometry={"loss_weights": words}), scene)
    return final_state(path, 3)["gaussians"], [line for line in read_log(path) if line["stage"] == "geometry"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_loss_is_logged_weighted_and_moves_the_gaussians(tmp_path, scene, name):
    plain, _ = geometry_of(tmp_path / "plain", scene)
    (weighted, (line,)), (zero, _) = (geometry_of(tmp_path / word, scene, f"{name}={word}") for word in ("5", "0"))
    assert line["total"] == pytest.approx(line["photometric"] + 5 * line[name])
    assert line[name] > 0
    assert any(not torch.equal(plain[key], weighted[key]) for key in plain)
    assert all(torch.equal(plain[key], zero[key]) for key in plain)


def test_a_wrong_word_is_refused_before_anything_is_written(tmp_path, scene):
    with pytest.raises(UserError, match="--loss_weights dpeth=1: no such loss; there are alpha, color, depth"):
        geometry_of(tmp_path / "model", scene, "dpeth=1")
    assert not (tmp_path / "model").exists()
    with pytest.raises(UserError, match="write NAME=WEIGHT, such as depth=0.1"):
        chosen_losses(["depth"])
