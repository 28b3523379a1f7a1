"""The MCMC strategy: noise, relocation, growth."""

import math

import pytest
import torch

from tests.model.test_ply import random_gaussians
from unified_lift.density import base
from unified_lift.density.base import DensityStep
from unified_lift.density.mcmc import MCMCStrategy, MCMCStrategySettings, relocation
from unified_lift.model.initialize import gaussians_from_points
from unified_lift.model.render import render
from unified_lift.modelfolder.settings import GeometrySettings
from unified_lift.train.geometry import GeometryStage
from unified_lift.train.optim import NamedAdam
from unified_lift.types import Camera

ROUND = 99  # 0-based step of a round; the first after iteration 500 of 1,000 would be 599


def settings(**changes):
    return MCMCStrategySettings(**{"relocate_from_iter": 0, "noise": 0.0} | changes)


def info(step=ROUND, num_steps=1000, radius=1.0, seed=0):
    generators = [torch.Generator().manual_seed(seed + n) for n in range(2)]
    return DensityStep(step, num_steps, radius, torch.ones(4, dtype=torch.int32), *generators, 1e-4)


def gaussians_with(opacities):
    table = random_gaussians(len(opacities), feature_dim=2)
    table.set("logit_opacities", torch.tensor(opacities).logit())
    return table


def adam_of(gaussians):
    optimizer = NamedAdam(eps=1e-15)
    for _, value in gaussians:
        value.grad = torch.ones_like(value)
    optimizer.step(gaussians.table, {name: 0.0 for name, _ in gaussians})
    return optimizer


def updated(gaussians, gradients=None, step=ROUND, **changes):
    strategy = MCMCStrategy(settings(**changes))
    state, optimizer = strategy.initial_state(len(gaussians), torch.device("cpu")), adam_of(gaussians)
    state["num_seen"] += 1
    state["grad_sum"] += 1e-6 if gradients is None else torch.tensor(gradients)
    strategy.update(gaussians, optimizer, state, info(step))
    assert {len(value) for value in state.values()} == {len(gaussians)}
    assert {len(moment) for pair in optimizer.moments.values() for moment in pair} == {len(gaussians)}
    return optimizer


def slow_relocation(opacity, scale, n):
    """Eq. 8 as it stands in the paper, in float64."""
    new = 1 - (1 - opacity) ** (1 / n)
    total = sum(
        math.comb(i - 1, k) * (-1) ** k / math.sqrt(k + 1) * new ** (k + 1) for i in range(1, n + 1) for k in range(i)
    )
    return new, opacity / total * scale


@pytest.mark.parametrize("opacity", [0.01, 0.3, 0.9])
@pytest.mark.parametrize("copies", [1, 2, 3, 7, 20])
def test_shares_are_those_of_the_double_sum_of_the_paper(opacity, copies):
    found = relocation(torch.tensor([opacity]), torch.tensor([[0.5, 1.0, 2.0]]), torch.tensor([copies]))
    new, factor = slow_relocation(opacity, 1.0, copies)
    assert float(found[0]) == pytest.approx(new, rel=1e-5)
    assert found[1][0].tolist() == pytest.approx([0.5 * factor, factor, 2 * factor], rel=1e-5)


def test_one_copy_is_the_same_gaussian_and_more_than_51_count_as_51():
    opacities, scales = torch.tensor([0.2, 0.7]), torch.rand(2, 3)
    same = relocation(opacities, scales, torch.tensor([1, 1]))
    torch.testing.assert_close(same[0], opacities)
    torch.testing.assert_close(same[1], scales)
    many = relocation(opacities, scales, torch.tensor([51, 5000]))
    assert float(many[0][1]) == pytest.approx(1 - 0.3 ** (1 / 51), rel=1e-5)
    assert bool(many[1].isfinite().all())


def test_a_round_leaves_the_picture_nearly_as_it_was():
    gaussians = gaussians_with([0.6])
    gaussians.set("means", torch.tensor([[0.0, 0.0, 3.0]]))
    gaussians.set("log_scales", torch.full((1, 3), 0.3).log())
    camera = Camera(cam_from_world=torch.eye(4).double().numpy(), fx=50, fy=50, cx=16, cy=16, width=32, height=32)
    before = render(gaussians, camera).alpha.detach()
    updated(gaussians, max_gaussians=4, grown_at=0.01)
    assert len(gaussians) == 4
    after = render(gaussians, camera).alpha.detach()
    assert float((after - before).abs().max()) < 0.03  # equal along the ray through the centre, close beside it
    assert float(after[16, 16]) == pytest.approx(float(before[16, 16]), abs=1e-3)


def test_dead_gaussians_go_to_living_ones_and_others_stay():
    gaussians = gaussians_with([0.004, 0.8, 0.001, 1e-4])
    living, others = gaussians.means[1].detach().clone(), gaussians.quats[1].detach().clone()
    optimizer = updated(gaussians, max_gaussians=4)
    assert torch.equal(gaussians.means.detach(), living.expand(4, 3))
    assert torch.equal(gaussians.quats.detach(), others.expand(4, 4))
    torch.testing.assert_close(gaussians.opacities.detach(), torch.full((4,), 1 - 0.2**0.25))
    assert bool((optimizer.moments["means"][0][1] == 0).all())
    assert bool((optimizer.moments["means"][0][0] != 0).all())


def test_if_all_are_dead_or_none_is_nothing_moves():
    for opacities in ([0.001] * 4, [0.5] * 4):
        gaussians = gaussians_with(opacities)
        before = {name: value.detach().clone() for name, value in gaussians}
        updated(gaussians, max_gaussians=4)
        for name, value in gaussians:
            torch.testing.assert_close(value.detach(), before[name], rtol=0, atol=0)


def test_the_budget_is_reached_by_equal_factors_and_kept():
    counts, count = [100], 100
    for step in range(99, 700, 100):  # rounds at iterations 100 to 700, the last one of growth at 400
        count = base.budget(count, 1600, step=step, last=400, interval=100)
        counts.append(count)
    assert counts == [100, 200, 400, 800, 1600, 1600, 1600, 1600]
    assert base.budget(5000, 1600, step=99, last=400, interval=100) == 5000


def test_its_losses_have_the_weights_of_the_settings_in_units_of_the_scene(scene):
    strategy = MCMCStrategy(settings(opacity_weight=0.3, scale_weight=0.02))
    assert strategy.loss_weights(4.0) == {"opacity": 0.3, "scale": 0.005}
    geometry = GeometrySettings(iterations=10, loss_weights=("opacity=0.7",))
    gaussians = gaussians_from_points(scene.points, sh_degree=1)
    stage = GeometryStage(scene, gaussians, geometry, strategy, seed=0)
    assert stage.weights["opacity"] == 0.7  # what the user says goes before
    assert stage.weights["scale"] == pytest.approx(0.02 / scene.radius)


def test_growth_follows_the_budget_over_a_run():
    gaussians, seen = gaussians_with([0.5] * 50), []
    for step in range(99, 1000, 100):
        updated(gaussians, step=step, max_gaussians=800, grown_at=0.5)
        seen.append(len(gaussians))
    assert seen == sorted(seen)
    assert seen[3] == 800  # iteration 400 of rounds until 833
    assert seen[-1] == 800
    assert all(later / before < 2.2 for before, later in zip(seen, seen[1:]))


def test_without_a_budget_as_many_are_added_as_are_too_coarse():
    gaussians = gaussians_with([0.5] * 4)
    updated(gaussians, [3e-4, 1e-4, 2e-4, 0.0])
    assert len(gaussians) == 6


def test_gaussians_with_large_gradients_are_chosen():
    gaussians = gaussians_with([0.5] * 4)
    place = gaussians.means[2].detach().clone()
    updated(gaussians, [0.0, 0.0, 1e-4, 0.0], max_gaussians=9, grown_at=0.01)
    assert torch.equal(gaussians.means.detach()[4:], place.expand(5, 3))
    gaussians = gaussians_with([0.5] * 4)
    updated(gaussians, [0.0, 0.0, 1e-4, 0.0], max_gaussians=400, grown_at=0.01, gradient_power=0.0)
    chosen = (gaussians.means.detach()[4:, None] == gaussians.means.detach()[:4]).all(dim=2).sum(dim=0)
    assert all(60 < int(count) < 140 for count in chosen)  # by opacity alone all are as likely


def test_noise_has_the_shape_of_the_covariance_and_spares_opaque_gaussians():
    count = 4000
    gaussians = gaussians_with([1e-4] * count + [0.9] * count)
    gaussians.set("means", torch.zeros(2 * count, 3))
    gaussians.set("quats", torch.tensor([math.sqrt(0.5), 0, 0, math.sqrt(0.5)]).expand(2 * count, 4) * 3)  # x to y
    gaussians.set("log_scales", torch.tensor([0.3, 0.1, 0.05]).log().expand(2 * count, 3))
    strategy = MCMCStrategy(settings(noise=5e5))
    strategy.update(gaussians, adam_of(gaussians), strategy.initial_state(2 * count, "cpu"), info(5, radius=2.0))
    moved = gaussians.means.detach()
    share = 1 / (1 + math.exp(-100 * (0.005 - 1e-4)))
    expected = torch.tensor([0.1, 0.3, 0.05]).square() * (share * 5e5 * 1e-4 / 4)
    torch.testing.assert_close(moved[:count].std(dim=0), expected, rtol=0.05, atol=0)
    assert float(moved[count:].abs().max()) < 1e-30


def test_nothing_moves_after_the_last_round_and_first_values_are_those_of_the_settings():
    gaussians = gaussians_with([0.001, 0.8])
    before = gaussians.means.detach().clone()
    for step in (899, 50):  # after 5/6 of the steps, and between rounds
        updated(gaussians, step=step, max_gaussians=100)
        assert torch.equal(gaussians.means.detach(), before)
    scales = gaussians.scales.detach().clone()
    MCMCStrategy(settings(initial_opacity=0.25, initial_scale=0.5)).begin(gaussians)
    torch.testing.assert_close(gaussians.opacities.detach(), torch.full((2,), 0.25))
    torch.testing.assert_close(gaussians.scales.detach(), scales / 2)
