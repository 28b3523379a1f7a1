"""The two class names of 3DGS scripts."""

import pytest
import torch
from diff_gaussian_rasterization import GaussianRasterizationSettings, GaussianRasterizer, rasterize

from .scenes import random_inputs

WIDTH, HEIGHT, TAN_X = 37, 29, 0.6


def settings(**changes):
    view = torch.eye(4)
    view[:3, 3] = torch.tensor([0.1, -0.05, 0.2])
    values = {
        "image_height": HEIGHT, "image_width": WIDTH, "tanfovx": TAN_X, "tanfovy": TAN_X * HEIGHT / WIDTH,
        "bg": torch.tensor([0.2, 0.3, 0.4]), "scale_modifier": 1.0, "viewmatrix": view.T, "projmatrix": torch.eye(4),
        "sh_degree": 2, "campos": torch.zeros(3), "prefiltered": False, "debug": False,
    }  # fmt: skip
    return GaussianRasterizationSettings(**{**values, **changes})


def direct(x, s, **options):
    focal = 0.5 * WIDTH / TAN_X
    K = torch.tensor([[[focal, 0, 0.5 * WIDTH], [0, focal, 0.5 * HEIGHT], [0, 0, 1]]])
    return rasterize(
        x.means, x.quats, x.scales, x.opacities, x.colors, x.features, s.viewmatrix.T[None], K, WIDTH, HEIGHT,
        backgrounds=s.bg[None], **options,
    )  # fmt: skip


def test_classes_return_what_rasterize_returns_channels_first():
    x, s = random_inputs(0, sh_degree=2), settings()
    color, radii, objects = GaussianRasterizer(raster_settings=s)(
        means3D=x.means, means2D=torch.zeros_like(x.means), opacities=x.opacities[:, None], shs=x.colors,
        scales=x.scales, rotations=x.quats, sh_objs=x.features[:, None],
    )  # fmt: skip
    expected = direct(x, s, sh_degree=2)
    assert color.shape == (3, HEIGHT, WIDTH)
    assert torch.allclose(color, expected.image[0].permute(2, 0, 1), atol=1e-6)
    assert torch.allclose(objects, expected.features[0].permute(2, 0, 1), atol=1e-6)
    assert torch.equal(radii, expected.meta.radii[0])
    filtered, _ = GaussianRasterizer(s._replace(antialiasing=True))(
        means3D=x.means, means2D=torch.zeros_like(x.means), opacities=x.opacities, shs=x.colors, scales=x.scales,
        rotations=x.quats,
    )  # fmt: skip
    expected = direct(x, s, sh_degree=2, antialiased=True)
    assert torch.allclose(filtered, expected.image[0].permute(2, 0, 1), atol=1e-6)
    assert not torch.allclose(filtered, color, atol=1e-2)


def test_screen_space_gradient_is_per_normalised_device_unit():
    x, s = random_inputs(2), settings()
    screen = torch.zeros_like(x.means, requires_grad=True)
    color, _ = GaussianRasterizer(s)(
        x.means, screen, x.opacities, colors_precomp=x.colors, scales=x.scales, rotations=x.quats
    )
    color.square().sum().backward()
    pixels = torch.zeros(1, 300, 2, requires_grad=True)
    direct(x, s, means2d=pixels).image.square().sum().backward()
    # one unit of normalised device coordinates is half the image
    assert float(pixels.grad.norm()) > 0
    assert torch.allclose(screen.grad[:, 0], pixels.grad[0, :, 0] * WIDTH / 2, rtol=1e-4, atol=1e-4)
    assert torch.allclose(screen.grad[:, 1], pixels.grad[0, :, 1] * HEIGHT / 2, rtol=1e-4, atol=1e-4)
    assert not bool((screen.grad[:, 2] != 0).any())


def test_scale_modifier_multiplies_the_scales():
    x = random_inputs(3)
    images = []
    for modifier, scales in ((0.5, 2 * x.scales), (1.0, x.scales)):
        image, _ = GaussianRasterizer(settings(scale_modifier=modifier))(
            x.means, torch.zeros_like(x.means), x.opacities, colors_precomp=x.colors, rotations=x.quats, scales=scales
        )
        images.append(image)
    assert torch.allclose(*images, atol=1e-5)


def test_visible_means_lie_beyond_the_near_plane():
    marked = GaussianRasterizer(settings()).markVisible(torch.tensor([[0.0, 0, 0.1], [0, 0, -0.1], [0, 0, -5]]))
    # the view shifts z by 0.2: depths 0.3, 0.1, -4.8 against 0.2
    assert marked.tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shs": None, "colors_precomp": None}, "exactly one of shs and colors_precomp"),
        ({"cov3D_precomp": torch.zeros(1, 6)}, "cov3D_precomp is not supported"),
        ({"scales": None}, "give scales and rotations"),
    ],
)
def test_unsupported_combinations_are_named(change, message):
    one = {
        "means3D": torch.tensor([[0.0, 0, 2]]), "means2D": torch.zeros(1, 3), "opacities": torch.ones(1, 1),
        "colors_precomp": torch.ones(1, 3), "scales": torch.ones(1, 3), "rotations": torch.tensor([[1.0, 0, 0, 0]]),
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        GaussianRasterizer(settings())(**{**one, **change})
