"""The low-pass with its compensation of opacity: by hand, every kernel against the definition, and what it is for."""

import math
from dataclasses import replace

import diff_gaussian_rasterization as dgr
import pytest
import torch

from .scenes import assert_agrees, random_inputs, render
from .test_hand_cases import blobs
from .test_pixel_weights import weights_of
from .tolerances import BLEND, HAND


def thin_inputs(seed, **options):
    """Gaussians whose middle axis is a fifth of a pixel and whose smallest is nearly nothing."""
    x = random_inputs(seed, **options)
    return replace(x, scales=x.scales * torch.tensor([1.0, 0.15, 0.01]), opacities=0.3 + 0.6 * x.opacities)


def test_opacity_shrinks_by_the_root_of_the_areas(implementation):
    # f / z = 5: S = diag(1, 0.25) px^2, det S = 0.25; with the low-pass 1.3 * 0.55 = 0.715; 0.8 sqrt(0.25 / 0.715)
    scales, opacity = (0.2, 0.1, 0.2), 0.8 * math.sqrt(0.25 / 0.715)
    options = {"scales": scales, "antialiased": True, "implementation": implementation}
    out = blobs([2.0], [0.8], [[1.0, 0.5, 0.0]], **options)
    assert out.alpha[0, 2, 2].item() == pytest.approx(opacity, abs=HAND)
    assert out.alpha[0, 3, 3].item() == pytest.approx(opacity * math.exp(-0.5 / 1.3 - 0.5 / 0.55), abs=HAND)
    assert out.alpha[0, 2, 0].item() == pytest.approx(opacity * math.exp(-2 / 1.3), abs=HAND)
    # a disc seen from its edge covers nothing
    edge = blobs([2.0], [0.8], [[1.0, 0.5, 0.0]], **options | {"scales": (0.2, 0.0, 0.2)})
    assert float(edge.alpha.max()) == 0
    assert edge.meta.radii.tolist() == [[0]]


@pytest.mark.parametrize("options", [{"dim": 0}, {"dim": 19, "sh_degree": 2}, {"dim": 3, "cameras": 2}], ids=str)
def test_kernels_agree_with_the_definition(options, kernel):
    for x in (thin_inputs(400, **options), random_inputs(401, **options)):
        out, _ = assert_agrees(x, kernel, 400, antialiased=True)
        assert float((out.image.detach() - render(x, "reference").image).abs().max()) > 0.1


def test_features_that_move_geometry_and_culling_agree(kernel):
    # most of these are fainter than 1/255 only because of the compensation
    x = thin_inputs(402, num=600, dim=3)
    x = replace(x, scales=0.3 * x.scales)
    expected, _ = assert_agrees(x, kernel, 402, antialiased=True, features_move_geometry=True)
    plain = render(x, "reference").meta.radii > 0
    assert 50 < int((expected.meta.radii > 0).sum()) < 0.9 * int(plain.sum())


def test_weights_of_pixels_are_those_of_the_render(implementation, instruction_set):
    x = thin_inputs(403, dim=16)
    weights = weights_of(x, implementation=implementation, antialiased=True)
    expected = render(x, implementation, antialiased=True).features.reshape(-1, 16)
    assert float(expected.abs().max()) > 0.5
    blended = dgr.blend(weights, x.features, implementation=implementation)
    assert float((blended - expected).abs().max()) < BLEND


def test_a_smaller_picture_of_thin_gaussians_is_as_bright(implementation):
    # at a quarter of the resolution the plain low-pass makes needles wider, and so the picture brighter
    large = thin_inputs(404, num=60, width=128, height=96, dim=0)
    small = replace(large, width=32, height=24, Ks=large.Ks * torch.tensor([0.25, 0.25, 1])[:, None])
    change = {}
    for antialiased in (False, True):
        full, quarter = (render(x, implementation, antialiased=antialiased).alpha.mean() for x in (large, small))
        change[antialiased] = abs(float(quarter / full) - 1)
    assert change[True] < 0.25 * change[False]
    assert change[False] > 0.3
