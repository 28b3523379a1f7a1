import pytest
import torch

from tests.model.test_ply import random_gaussians
from unified_lift.density.default import DensityControl, DensitySettings, reset_opacities
from unified_lift.train.optim import NamedAdam

SETTINGS = DensitySettings(
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


def control_with(gradients, gaussians, settings=SETTINGS):
    control = DensityControl(settings, radius=1.0, count=len(gaussians), num_steps=1000)
    statistics = control.statistics(torch.device("cpu"))
    statistics["grad_sum"] += torch.tensor(gradients)  # as one training step adds
    statistics["num_seen"] += 1
    return control


def generator():
    return torch.Generator().manual_seed(0)


def test_gradient_is_averaged_over_the_views_that_see_a_gaussian(gaussians, adam):
    # 3 views with a sum of 5e-4 stay below the threshold of 2e-4, 2 views do not
    control = control_with([5e-4, 5e-4, 0, 0], gaussians)
    control.statistics(torch.device("cpu"))["num_seen"][:2] = torch.tensor([3.0, 2.0])
    control.act(gaussians, adam, 9, generator())
    assert len(gaussians) == 5
    assert torch.equal(gaussians.means[4], gaussians.means[1])


def test_small_coarse_gaussian_is_cloned_in_place(gaussians, adam):
    control = control_with([1.0, 0, 0, 0], gaussians)
    control.act(gaussians, adam, 9, generator())
    assert len(gaussians) == 5
    for _, value in gaussians:
        assert torch.equal(value[0], value[4])
    assert bool((adam.moments["means"][0][4] == 0).all())
    assert bool((adam.moments["means"][0][:4] != 0).all())


def test_large_coarse_gaussian_is_split_into_two_smaller_ones_and_removed(gaussians, adam):
    parent = {name: value.detach()[2].clone() for name, value in gaussians}
    control = control_with([0, 0, 1.0, 0], gaussians)
    control.act(gaussians, adam, 9, generator())
    assert len(gaussians) == 5  # 4 - 1 + 2
    torch.testing.assert_close(gaussians.scales[3:].detach(), torch.full((2, 3), 0.05 / 1.6))
    assert bool((gaussians.features[3:] == parent["features"]).all())
    distance = (gaussians.means[3:].detach() - parent["means"]).norm(dim=1)
    assert bool((distance > 0).all())
    assert bool((distance < 5 * 0.05).all())


def test_faint_gaussians_are_removed(gaussians, adam):
    gaussians.set("logit_opacities", torch.tensor([0.5, 0.004, 0.5, 0.5]).logit())
    kept = gaussians.means.detach()[[0, 2, 3]]
    control_with([0.0, 0, 0, 0], gaussians).act(gaussians, adam, 9, generator())
    assert torch.equal(gaussians.means.detach(), kept)
    assert len(adam.moments["means"][0]) == 3


def test_huge_gaussians_are_removed_only_after_the_first_reset(gaussians, adam):
    gaussians.set("log_scales", torch.tensor([0.001, 0.001, 0.05, 0.2]).log()[:, None].expand(4, 3))
    control = control_with([0.0] * 4, gaussians)
    control.act(gaussians, adam, 19, generator())
    assert len(gaussians) == 4
    control.act(gaussians, adam, 39, generator())
    assert len(gaussians) == 3


def test_opacity_reset_lowers_to_one_percent_and_forgets_moments(gaussians, adam):
    gaussians.set("logit_opacities", torch.tensor([0.5, 0.008, 0.5, 0.9]).logit())
    reset_opacities(gaussians, adam)
    torch.testing.assert_close(gaussians.opacities.detach(), torch.tensor([0.01, 0.008, 0.01, 0.01]))
    assert bool((adam.moments["logit_opacities"][0] == 0).all())
    assert bool((adam.moments["means"][0] != 0).all())


def test_nothing_happens_before_after_and_between_rounds(gaussians, adam):
    settings = DensitySettings(densify_from_iter=20, densify_until_iter=41, densification_interval=10)
    control = control_with([1.0] * 4, gaussians, settings)
    for step in (9, 19, 24, 40, 49):  # 0-based; 29 and 39 would act
        control.act(gaussians, adam, step, generator())
        assert len(gaussians) == 4
    control.act(gaussians, adam, 29, generator())
    assert len(gaussians) > 4


def test_number_of_gaussians_is_bounded(gaussians, adam):
    settings = DensitySettings(densify_from_iter=0, densification_interval=10, max_gaussians=5)
    control_with([1.0, 2.0, 0, 0], gaussians, settings).act(gaussians, adam, 9, generator())
    assert len(gaussians) == 5
    assert torch.equal(gaussians.means[4], gaussians.means[1])  # the coarsest one was chosen


def test_densification_ends_half_way_unless_told():
    for until, last in ((0, 498), (800, 798)):
        control = DensityControl(DensitySettings(densify_until_iter=until), radius=1.0, count=1, num_steps=1000)
        assert control.is_watching(last)
        assert not control.is_watching(last + 1)
