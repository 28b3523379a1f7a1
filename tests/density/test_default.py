from dataclasses import dataclass
from typing import Annotated

import pytest
import torch

from tests.model.test_ply import random_gaussians
from tests.train.test_training import StopAt, final_state, settings_for
from unified_lift.cli.train import parse
from unified_lift.density import STRATEGIES
from unified_lift.density.base import DensityStep, Strategy, StrategyEntry, StrategySettings, keep_rows
from unified_lift.density.default import DefaultStrategy, DefaultStrategySettings
from unified_lift.errors import UserError
from unified_lift.settings.limits import Range
from unified_lift.train.hooks import Interrupted
from unified_lift.train.optim import NamedAdam
from unified_lift.train.run import latest_checkpoint, run

SETTINGS = DefaultStrategySettings(
    densify_from_iter=0, densify_until_iter=1000, densification_interval=10, opacity_reset_interval=30
)


@pytest.fixture
def gaussians():
    """Four Gaussians: 0 and 1 small, 2 and 3 large; all opaque enough."""
    table = random_gaussians(4, feature_dim=2)
    table.set("log_scales", torch.tensor([0.001, 0.001, 0.05, 0.05]).log()[:, None].expand(4, 3))
    table.set("logit_opacities", torch.tensor([0.5, 0.5, 0.5, 0.5]).logit())
    return table


@pytest.fixture
def adam(gaussians):
    """An optimiser with moments."""
    optimizer = NamedAdam(eps=1e-15)
    for _, value in gaussians:
        value.grad = torch.ones_like(value)
    optimizer.step(gaussians.table, {name: 0.0 for name, _ in gaussians})
    return optimizer


class Control:
    """The default strategy with a state, as the geometry stage holds it, and one step's gradients in it."""

    def __init__(self, gradients, gaussians, settings=SETTINGS):
        self.strategy = DefaultStrategy(settings)
        self.state = self.strategy.initial_state(len(gaussians), torch.device("cpu"))
        self.state["grad_sum"] += torch.tensor(gradients)
        self.state["num_seen"] += 1

    def act(self, gaussians, adam, step):
        generator = torch.Generator().manual_seed(0)
        radii = torch.ones(len(gaussians), dtype=torch.int32)
        self.strategy.update(
            gaussians, adam, self.state, DensityStep(step, 1000, 1.0, radii, generator, generator, 0.0)
        )
        assert {len(value) for value in self.state.values()} == {len(gaussians)}


def test_gradient_is_averaged_over_the_views_that_see_a_gaussian(gaussians, adam):
    # 3 views with a sum of 5e-4 stay below the threshold of 2e-4, 2 views do not
    control = Control([5e-4, 5e-4, 0, 0], gaussians)
    control.state["num_seen"][:2] = torch.tensor([3.0, 2.0])
    control.act(gaussians, adam, 9)
    assert len(gaussians) == 5
    assert torch.equal(gaussians.means[4], gaussians.means[1])


def test_absolute_gradients_have_a_threshold_of_their_own(gaussians, adam):
    settings = DefaultStrategySettings(densify_from_iter=0, densification_interval=10, absgrad=True)
    control = Control([7e-4, 9e-4, 0, 0], gaussians, settings)
    assert control.strategy.absolute_gradients
    assert not DefaultStrategy(SETTINGS).absolute_gradients
    control.act(gaussians, adam, 9)
    assert len(gaussians) == 5
    assert torch.equal(gaussians.means[4], gaussians.means[1])


def test_training_with_absolute_gradients_adds_more_and_resumes_bit_for_bit(tmp_path, scene, monkeypatch):
    options = {"lift_iterations": 0, "absgrad_threshold": 2e-4, "densify_grad_threshold": 2e-4}
    settings = {name: settings_for(tmp_path / name, absgrad=name != "plain", **options) for name in ("plain", "a", "b")}
    plain, whole = (len(run(settings[name], scene).gaussians) for name in ("plain", "a"))
    assert whole > plain
    with pytest.raises(Interrupted):
        run(settings["b"], scene, hooks=[StopAt(11)])
    run(settings["b"], scene, resume_from=latest_checkpoint(settings["b"]))
    one, other = (final_state(tmp_path / name, 24)["gaussians"] for name in ("a", "b"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    gsplat = settings_for(tmp_path / "c", absgrad=True, geometry={"rasterizer": "gsplat"})
    monkeypatch.setattr("unified_lift.train.run.chosen_device", lambda *_, **__: torch.device("cpu"))
    with pytest.raises(UserError, match="--rasterizer gsplat: has no absolute gradients"):
        run(gsplat, scene)


def test_small_coarse_gaussian_is_cloned_in_place(gaussians, adam):
    control = Control([1.0, 0, 0, 0], gaussians)
    control.act(gaussians, adam, 9)
    assert len(gaussians) == 5
    for _, value in gaussians:
        assert torch.equal(value[0], value[4])
    assert bool((adam.moments["means"][0][4] == 0).all())
    assert bool((adam.moments["means"][0][:4] != 0).all())


def test_large_coarse_gaussian_is_split_into_two_smaller_ones_and_removed(gaussians, adam):
    parent = {name: value.detach()[2].clone() for name, value in gaussians}
    control = Control([0, 0, 1.0, 0], gaussians)
    control.act(gaussians, adam, 9)
    assert len(gaussians) == 5  # 4 - 1 + 2
    torch.testing.assert_close(gaussians.scales[3:].detach(), torch.full((2, 3), 0.05 / 1.6))
    assert bool((gaussians.features[3:] == parent["features"]).all())
    distance = (gaussians.means[3:].detach() - parent["means"]).norm(dim=1)
    assert bool((distance > 0).all())
    assert bool((distance < 5 * 0.05).all())


def test_faint_gaussians_are_removed(gaussians, adam):
    gaussians.set("logit_opacities", torch.tensor([0.5, 0.004, 0.5, 0.5]).logit())
    kept = gaussians.means.detach()[[0, 2, 3]]
    Control([0.0, 0, 0, 0], gaussians).act(gaussians, adam, 9)
    assert torch.equal(gaussians.means.detach(), kept)
    assert len(adam.moments["means"][0]) == 3


def test_huge_gaussians_are_removed_only_after_the_first_reset(gaussians, adam):
    gaussians.set("log_scales", torch.tensor([0.001, 0.001, 0.05, 0.2]).log()[:, None].expand(4, 3))
    control = Control([0.0] * 4, gaussians)
    control.act(gaussians, adam, 19)
    assert len(gaussians) == 4
    control.act(gaussians, adam, 39)
    assert len(gaussians) == 3


def test_opacity_reset_lowers_to_one_percent_and_forgets_moments(gaussians, adam):
    gaussians.set("logit_opacities", torch.tensor([0.5, 0.008, 0.5, 0.9]).logit())
    Control([0.0] * 4, gaussians).act(gaussians, adam, 29)
    torch.testing.assert_close(gaussians.opacities.detach(), torch.tensor([0.01, 0.008, 0.01, 0.01]))
    assert bool((adam.moments["logit_opacities"][0] == 0).all())
    assert bool((adam.moments["means"][0] != 0).all())


def test_nothing_happens_before_after_and_between_rounds(gaussians, adam):
    settings = DefaultStrategySettings(densify_from_iter=20, densify_until_iter=41, densification_interval=10)
    control = Control([1.0] * 4, gaussians, settings)
    for step in (9, 19, 24, 40, 49):  # 0-based; 29 and 39 would act
        control.act(gaussians, adam, step)
        assert len(gaussians) == 4
    control.act(gaussians, adam, 29)
    assert len(gaussians) > 4


def test_number_of_gaussians_is_bounded(gaussians, adam):
    settings = DefaultStrategySettings(densify_from_iter=0, densification_interval=10, max_gaussians=5)
    Control([1.0, 2.0, 0, 0], gaussians, settings).act(gaussians, adam, 9)
    assert len(gaussians) == 5
    assert torch.equal(gaussians.means[4], gaussians.means[1])  # the coarsest one was chosen


def test_a_budget_is_reached_by_the_coarsest_whatever_the_threshold(adam, gaussians):
    settings = DefaultStrategySettings(
        densify_from_iter=0, densification_interval=10, max_gaussians=8, grown_at=0.02, opacity_reset_interval=0
    )  # 10 of 500 iterations, one round
    Control([1e-7, 3e-7, 0, 0], gaussians, settings).act(gaussians, adam, 9)
    assert len(gaussians) == 6  # two have a gradient at all
    assert torch.equal(gaussians.means[4:].detach().sort(dim=0)[0], gaussians.means[:2].detach().sort(dim=0)[0])


def test_densification_ends_half_way_unless_told():
    for until, last in ((0, 498), (800, 798)):
        strategy = DefaultStrategy(DefaultStrategySettings(densify_until_iter=until))
        state = strategy.initial_state(1, torch.device("cpu"))
        assert strategy.statistics(state, last, 1000)
        assert not strategy.statistics(state, last + 1, 1000)


class Shrink(Strategy):
    """Removes the first Gaussian after each step and remembers how often it did."""

    def initial_state(self, count, device):
        return {"rounds": torch.zeros(count)}

    def update(self, gaussians, optimizer, state, info):
        state["rounds"] += 1
        keep = torch.arange(len(gaussians)) >= self.settings.num_removed
        keep_rows(gaussians, optimizer, state, keep)


@dataclass(frozen=True, kw_only=True)
class ShrinkSettings(StrategySettings):
    num_removed: Annotated[int, Range(1)] = 1


def test_another_strategy_is_found_by_name_brings_its_settings_and_is_resumed(tmp_path, scene, monkeypatch):
    monkeypatch.setitem(STRATEGIES, "shrink", StrategyEntry("shrink", ShrinkSettings, Shrink))
    argv = ["-s", "scene", "-m", str(tmp_path), "--strategy", "shrink", "--num_removed"]
    settings = parse(
        [*argv, "2", "--iterations", "6", "--lift_iterations", "0", "--logger", "none", "--quiet"]
    ).settings
    count = len(scene.points.positions)
    with pytest.raises(Interrupted):
        run(settings, scene, hooks=[StopAt(4)])
    state = run(settings, scene, resume_from=latest_checkpoint(settings))
    assert len(state.gaussians) == count - 12
    saved = final_state(tmp_path, 6)["stage_state"]["density"]
    assert saved["rounds"].tolist() == [6.0] * (count - 12)
    with pytest.raises(UserError, match="--num_removed must be at least 1, received 0"):
        parse([*argv, "0"])
    with pytest.raises(UserError, match="--strategy shrik: no such density strategy; there are default, mcmc, shrink"):
        parse([*argv[:5], "shrik"])
    with pytest.raises(UserError, match="was trained with --strategy shrink, now default"):
        run(settings_for(tmp_path), scene, resume_from=latest_checkpoint(settings))
