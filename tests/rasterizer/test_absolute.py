"""Sums over pixels of absolute derivatives by position: by hand, by the Jacobian of every pixel, in every kernel."""

import math
from dataclasses import replace

import pytest
import torch

from .scenes import MAPS, assert_same_gradient, gradients, loss_of, random_inputs, render
from .test_hand_cases import blobs
from .tolerances import HAND


def sums(x, implementation, seed, *, maps=("image", "alpha", "depth"), **options):
    """Return the gradients of a random loss, that of `absolute2d` included."""
    x = replace(x, absolute2d=torch.zeros_like(x.means2d, requires_grad=True))
    out, found = gradients(x, implementation, seed, maps=maps, **options)
    return out, found | {"absolute2d": x.absolute2d.grad}


def test_pixels_on_both_sides_do_not_cancel(implementation):
    # d alpha / du = alpha dx / 1.3 at pixel offsets dx: their sum is 0, that of their absolute values is not
    moved, absolute = torch.zeros(1, 1, 2, requires_grad=True), torch.zeros(1, 1, 2, requires_grad=True)
    options = {"means2d": moved, "absolute2d": absolute, "implementation": implementation}
    blobs([2.0], [0.5], [[1.0, 0.5, 0.0]], **options).alpha.sum().backward()
    places = [(x, y, 0.5 * math.exp(-(x * x + y * y) / 2.6)) for x in range(-2, 3) for y in range(-2, 3)]
    expected = sum(alpha * abs(x) / 1.3 for x, _, alpha in places if alpha >= 1 / 255)
    assert moved.grad.abs().max().item() < HAND
    assert absolute.grad.flatten().tolist() == pytest.approx([expected] * 2, rel=1e-5)


def test_the_definition_is_the_jacobian_of_every_pixel():
    x = random_inputs(500, num=12, width=9, height=8, dim=2, dtype=torch.float64)
    x = replace(x, scales=3 * x.scales)
    moving = {"features_move_geometry": True}
    _, found = sums(x, "reference", 500, maps=MAPS, **moving)

    def pixels(means2d):
        out = render(replace(x, means2d=means2d), "reference", **moving)
        return torch.cat([out.image[0], out.features[0], out.alpha[0, ..., None], out.depth[0, ..., None]], -1)

    out = render(x, "reference", **moving)
    out = out._replace(**{name: getattr(out, name).requires_grad_() for name in MAPS})
    loss_of(out, 500).backward()
    incoming = [out.image.grad[0], out.features.grad[0], out.alpha.grad[0, ..., None], out.depth.grad[0, ..., None]]
    jacobian = torch.autograd.functional.jacobian(pixels, x.means2d)  # [H, W, channels, 1, N, 2]
    by_pixel = (torch.cat(incoming, -1)[..., None, None, None] * jacobian).sum(2)  # [H, W, 1, N, 2]
    torch.testing.assert_close(found["means2d"], by_pixel.sum((0, 1)))
    torch.testing.assert_close(found["absolute2d"], by_pixel.abs().sum((0, 1)))
    assert float(found["absolute2d"].sum()) > 1.5 * float(found["means2d"].abs().sum())


CASES = [
    {"dim": 0},
    {"dim": 0, "maps": ("image",)},
    {"dim": 3, "maps": ("image", "features")},
    {"dim": 19, "cameras": 2},
    {"dim": 3, "antialiased": True},
    {"dim": 5, "features_move_geometry": True, "maps": ("image", "features")},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_agree_and_change_nothing_else(case, kernel):
    shape = {name: case[name] for name in ("dim", "cameras") if name in case}
    options = {name: value for name, value in case.items() if name not in shape}
    x = random_inputs(501, num=400, width=40, height=35, **shape)
    expected, actual = sums(x, "reference", 501, **options), sums(x, kernel, 501, **options)
    assert_same_gradient("absolute2d", expected[1]["absolute2d"], actual[1]["absolute2d"].cpu(), seed=501)
    assert not bool(actual[1]["absolute2d"].cpu()[expected[0].meta.radii == 0].any())
    plain = gradients(x, kernel, 501, **{"maps": ("image", "alpha", "depth")} | options)
    for name, value in plain[1].items():
        assert value is None or torch.allclose(value, actual[1][name], rtol=1e-4, atol=1e-5 * float(value.abs().max()))


def test_lists_of_several_chunks(kernel):
    x = random_inputs(6, num=2600, width=18, height=14, dim=0)
    x = replace(x, scales=4 + x.scales, opacities=0.0055 * (1 + 0.2 * x.opacities))
    expected, actual = sums(x, "reference", 6), sums(x, kernel, 6)
    assert_same_gradient("absolute2d", expected[1]["absolute2d"], actual[1]["absolute2d"].cpu(), seed=6)
