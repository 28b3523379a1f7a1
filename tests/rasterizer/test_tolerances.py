"""The tolerances themselves: tight enough to catch what they are meant to catch."""

from dataclasses import replace

import pytest
import torch

from . import tolerances
from .scenes import assert_same_gradient, assert_same_map, random_inputs, render


def test_every_tolerance_is_positive_and_below_a_hundredth():
    values = {n: v for n, v in vars(tolerances).items() if n.isupper()}
    assert values
    assert all(0 < v < 1e-2 for v in values.values()), values


def test_map_tolerance_notices_a_dropped_gaussian():
    x = random_inputs(0)
    full = render(x, "reference")
    half = render(replace(x, opacities=x.opacities * (torch.arange(300) != 150)), "reference")
    assert float((full.image - half.image).abs().max()) > 0
    with pytest.raises(AssertionError, match="seed 0: image differs"):
        assert_same_map("image", full.image, half.image, scale=1.0, seed=0)


def test_gradient_tolerance_notices_one_part_in_a_thousand():
    g = torch.randn(100, 3)
    with pytest.raises(AssertionError, match="differs by"):
        assert_same_gradient("means", g, 1.001 * g, seed=0)


def test_comparisons_refuse_zeros():
    zeros = torch.zeros(4, 3)
    with pytest.raises(AssertionError, match="all zeros"):
        assert_same_gradient("means", zeros, zeros, seed=3)
    with pytest.raises(AssertionError, match="all zeros"):
        assert_same_map("image", zeros, zeros, scale=1.0, seed=3)
