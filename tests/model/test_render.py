"""Views of many Gaussians look only at those near them, and show the same to the last bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from unified_lift.model import gaussians as table
from unified_lift.model.gaussians import Gaussians
from unified_lift.model.near import rows_near
from unified_lift.model.render import blending_weights, render
from unified_lift.ops.cameras import look_at
from unified_lift.types import Camera


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(table, "_BLOCK", 16)


def scattered(count=4_000):
    generator = torch.Generator().manual_seed(0)
    values = {
        "means": 20 * torch.rand(count, 3, generator=generator) - 10,
        "quats": torch.randn(count, 4, generator=generator),
        "log_scales": torch.randn(count, 3, generator=generator) - 2.5,
        "logit_opacities": torch.randn(count, generator=generator) + 1,
        "sh0": torch.randn(count, 1, 3, generator=generator),
        "shN": torch.randn(count, 3, 3, generator=generator),
        "features": torch.randn(count, 5, generator=generator),
    }
    values["log_scales"][7] = 1.0  # reaches far
    values["means"][:2] = values["means"][2]
    found = Gaussians(values)
    found.freeze_geometry()
    return found


def camera(turn, *, width=40, height=30, cx=13.0):
    pose = look_at(np.array([1.0, -2.0, 0.5]), np.array([np.cos(turn), np.sin(turn), 0.1]) * 9, np.array([0.0, 0, 1]))
    return Camera(cam_from_world=pose, fx=30.0, fy=28.0, cx=cx, cy=16.0, width=width, height=height)


@pytest.mark.parametrize("turn", range(6))
def test_views_of_many_gaussians_look_at_those_near_them_and_show_the_same_bits(monkeypatch, turn):
    gaussians, view = scattered(), camera(turn)
    assert rows_near(gaussians, view) is None
    expected, weights = render(gaussians, view), blending_weights(gaussians, view, min_weight=1e-3)
    monkeypatch.setattr(table, "MANY", 1)
    rows = rows_near(gaussians, view)
    assert 50 < len(rows) < 2_500
    found, near = render(gaussians, view), blending_weights(gaussians, view, min_weight=1e-3)
    for name in ("image", "features", "alpha", "depth"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert torch.equal(found.radii * expected.radii, found.radii.square())
    assert near.num_gaussians == weights.num_gaussians == len(gaussians)
    for name in ("offsets", "gaussian_ids", "weights"):
        assert torch.equal(getattr(near, name), getattr(weights, name)), name


def test_where_most_may_show_all_are_looked_at(monkeypatch):
    monkeypatch.setattr(table, "MANY", 1)
    pose = look_at(np.array([30.0, 0, 0]), np.zeros(3), np.array([0.0, 0, 1]))
    assert rows_near(scattered(), replace(camera(0), cam_from_world=pose)) is None


def test_gradients_reach_the_features_of_all_gaussians(monkeypatch):
    gradients = []
    for many in (2**20, 1):
        monkeypatch.setattr(table, "MANY", many)
        gaussians = scattered()
        render(gaussians, camera(1)).features.square().sum().backward()
        gradients.append(gaussians.features.grad)
    assert bool(gradients[0].any())
    assert torch.equal(*gradients)


def test_nothing_is_left_out_of_gaussians_that_still_move_or_are_replaced(monkeypatch):
    monkeypatch.setattr(table, "MANY", 1)
    gaussians = scattered()
    assert len(rows_near(gaussians, camera(0))) < len(gaussians)
    gaussians.set("means", gaussians.means.detach() + 1)
    assert gaussians.blocks is None
    gaussians.freeze_geometry()
    assert torch.equal(gaussians.blocks.high, gaussians.blocks.high.clamp(max=11.0))
    assert float(gaussians.blocks.high.max()) > 10.5


def test_nothing_in_sight_is_an_empty_picture(monkeypatch):
    monkeypatch.setattr(table, "MANY", 1)
    gaussians, away = scattered(), camera(0)
    away = replace(away, cam_from_world=look_at(np.array([90.0, 0, 0]), np.array([99.0, 1, 0]), np.array([0.0, 0, 1])))
    assert len(rows_near(gaussians, away)) == 0
    assert not bool(render(gaussians, away).alpha.any())
    assert len(blending_weights(gaussians, away).weights) == 0
