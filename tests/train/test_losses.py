"""A loss that somebody adds: found by name, turned on by its weight, logged, and felt by what it is a loss of."""

import math

import pytest
import torch

from tests.model.test_ply import random_gaussians
from tests.train.test_training import final_state, settings_for
from unified_lift.errors import UserError
from unified_lift.model.gaussians import Gaussians
from unified_lift.train.hooks import Hook
from unified_lift.train.logs import read_log
from unified_lift.train.losses import LOSSES, chosen_losses
from unified_lift.train.losses.base import GeometryLoss
from unified_lift.train.losses.needle import needle
from unified_lift.train.run import run

KNOWN = dict(LOSSES)
FUNCTIONS = {
    "depth": lambda out, gaussians, view: out.depth.mean(),
    "alpha": lambda out, gaussians, view: out.alpha.mean(),
    "color": lambda out, gaussians, view: (out.image - view.image.float() / 255).square().mean(),
    "opacity": lambda out, gaussians, view: gaussians.opacities.mean(),
    "scale": lambda out, gaussians, view: gaussians.scales.mean(),
}
PARAMETERS = {"means": (3,), "quats": (4,), "log_scales": (3,), "logit_opacities": (), "sh0": (1, 3), "shN": (0, 3)}
PARAMETERS |= {"features": (0,)}


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


def test_needles_by_hand_and_with_a_finite_gradient():
    scales = torch.tensor([[1.0, 2.0, 3.0], [0.1, 1.0, 4.0], [1e-30, 1.0, 1.0]])
    gaussians = Gaussians({name: torch.zeros(3, *shape) for name, shape in PARAMETERS.items()})
    gaussians.set("log_scales", scales.log())
    assert needle(None, gaussians, None).item() == pytest.approx((0 + 40 - 10 + math.exp(30) - 10) / 3)
    gaussians.set("log_scales", scales[1:2].log())
    needle(None, gaussians, None).backward()
    torch.testing.assert_close(gaussians.log_scales.grad, torch.tensor([[-40.0, 0, 40]]))


def test_the_size_of_gaussians_is_bounded_after_every_step(tmp_path, scene):
    sizes = []

    class Watch(Hook):
        def after_step(self, stage, step, terms):
            sizes.append(stage.gaussians.scales.max().item() / scene.radius)

    changes = {"iterations": 8, "lift_iterations": 0, "scaling_lr": 0.3}
    plain, bounded = (settings_for(tmp_path / str(share), max_scale=share, **changes) for share in (0, 0.02))
    run(plain, scene, hooks=[Watch()])
    assert max(sizes) > 0.03
    sizes.clear()
    run(bounded, scene, hooks=[Watch()])
    assert 0.0199 < max(sizes) <= 0.02 * (1 + 1e-5)


def test_a_wrong_word_is_refused_before_anything_is_written(tmp_path, scene):
    with pytest.raises(UserError, match="--loss_weights dpeth=1: no such loss; there are alpha, color, depth"):
        geometry_of(tmp_path / "model", scene, "dpeth=1")
    assert not (tmp_path / "model").exists()
    for word in ("depth", "depth=nan", "depth=much"):
        with pytest.raises(UserError, match=f"{word}: write NAME=WEIGHT, such as depth=0.1"):
            chosen_losses([word])

    with pytest.raises(UserError, match="write NAME=WEIGHT, such as depth=0.1"):
        chosen_losses(["depth"])


def test_opacity_and_scale_are_plain_means():
    sizes = {"means": 3, "quats": 4, "log_scales": 3, "logit_opacities": 0, "sh0": 3, "shN": 0, "features": 0}
    table = {name: torch.zeros(2, size) if size else torch.zeros(2) for name, size in sizes.items()}
    table |= {"sh0": torch.zeros(2, 1, 3), "shN": torch.zeros(2, 0, 3), "features": torch.zeros(2, 0)}
    table["logit_opacities"] = torch.tensor([0.2, 0.6]).logit()
    table["log_scales"] = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 9.0]]).log()
    gaussians = Gaussians(table)
    assert float(KNOWN["opacity"].function(None, gaussians, None).detach()) == pytest.approx(0.4)
    assert float(KNOWN["scale"].function(None, gaussians, None).detach()) == pytest.approx(4.0)


def test_weights_of_a_strategy_count_unless_others_are_given():
    weights = {"opacity": 0.01, "scale": 0.02}
    found = {loss.name: weight for loss, weight in chosen_losses(("scale=0", "needle=1"), weights).items()}
    assert found == {"opacity": 0.01, "needle": 1.0}


@pytest.mark.parametrize("name", [name for name, loss in KNOWN.items() if loss.gradient is not None])
def test_a_derivative_that_a_loss_says_itself_is_that_of_autograd(name):
    gaussians = random_gaussians(7, feature_dim=0)
    KNOWN[name].function(None, gaussians, None).backward()
    said = KNOWN[name].gradient(gaussians)
    assert said
    for key, value in gaussians:
        expected = value.grad if value.grad is not None else torch.zeros_like(value)
        torch.testing.assert_close(said.get(key, torch.zeros_like(value)).detach(), expected)


def test_it_moves_parameters_as_autograd_would(tmp_path, scene, monkeypatch):
    words = ("opacity=3", "scale=2")
    monkeypatch.setitem(LOSSES, "scale", KNOWN["scale"])
    results = []
    for gradient in (KNOWN["opacity"].gradient, None):
        monkeypatch.setitem(LOSSES, "opacity", KNOWN["opacity"]._replace(gradient=gradient))
        results.append(geometry_of(tmp_path / str(len(results)), scene, *words))
    for key, value in results[0][0].items():
        torch.testing.assert_close(value, results[1][0][key], rtol=1e-5, atol=1e-6)
    assert results[0][1][0]["opacity"] == pytest.approx(results[1][1][0]["opacity"], rel=1e-5)
