"""The colour loss: by hand, against its definition, and where pixels do not count."""

import pytest
import torch

from tests.rasterizer.tolerances import SSIM_GRADIENT_RELATIVE, SSIM_VALUE
from unified_lift.kernels.photometric import backward, photometric_loss, ssim


def pair(seed=0, height=12, width=14):
    g = torch.Generator().manual_seed(seed)
    image = torch.rand(height, width, 3, generator=g)
    return image, torch.randint(0, 256, (height, width, 3), generator=g, dtype=torch.uint8)


def loss_of(image, target, implementation, lambda_dssim=0.2, **options):
    return photometric_loss(image, target, lambda_dssim=lambda_dssim, implementation=implementation, **options)


def assert_agrees(function, image, implementation):
    """Compare function(image, implementation) with that of the definition, value and gradient."""
    values, gradients = [], []
    for name in ("reference", implementation):
        leaf = image.clone().requires_grad_()
        value = function(leaf, name)
        (3 * value).backward()
        values.append(value.item())
        gradients.append(leaf.grad)
    assert values[0] == pytest.approx(values[1], abs=SSIM_VALUE)
    size = float(gradients[0].norm())
    assert size > 0 or image.shape[:2] == (1, 1)
    assert float((gradients[0] - gradients[1]).norm()) <= SSIM_GRADIENT_RELATIVE * size


def test_loss_is_the_weighted_sum_of_l1_and_dssim(implementation):
    image, target = pair()
    l1, similarity = (image - target / 255).abs().mean(), ssim(image, target / 255)
    torch.testing.assert_close(loss_of(image, target, implementation), 0.8 * l1 + 0.2 * (1 - similarity))
    torch.testing.assert_close(loss_of(image, target, implementation, lambda_dssim=0), l1)
    torch.testing.assert_close(loss_of(image, target, implementation, lambda_dssim=1), 1 - similarity)


def test_bytes_and_floats_are_the_same_photo(implementation):
    image, target = pair(1)
    by_bytes, by_floats = (loss_of(image, t, implementation) for t in (target, target / 255))
    torch.testing.assert_close(by_bytes, by_floats)


def test_one_grey_pixel_by_hand(implementation):
    # 1x1 image: the window sees w = 0.26601172^2 = 0.07076224 of the pixel, the rest is padding.
    # x = 0.5, y = 51/255 = 0.2: mx = w x = 0.03538112, my = 0.01415245;
    # var_x = w x^2 - mx^2 = 0.01643874, var_y = w y^2 - my^2 = 0.00263020, cov = w x y - mx my = 0.00657550
    # (2 mx my + 1e-4)(2 cov + 9e-4) / ((mx^2 + my^2 + 1e-4)(var_x + var_y + 9e-4)) = 0.49934
    image = torch.full((1, 1, 3), 0.5)
    target = torch.full((1, 1, 3), 51, dtype=torch.uint8)
    assert float(loss_of(image, target, implementation)) == pytest.approx(0.8 * 0.3 + 0.2 * (1 - 0.49934), abs=1e-4)


def test_equal_images_cost_nothing(implementation):
    _, target = pair()
    assert abs(float(loss_of(target / 255, target, implementation))) < 1e-6


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 7), (16, 32), (17, 33), (40, 70)])
def test_kernels_agree_with_the_definition_for_every_size(cuda, height, width):
    image, target = pair(2, height, width)
    valid = torch.rand(height, width, generator=torch.Generator().manual_seed(3)) > 0.3
    for options in ({}, {"valid": valid}, {"lambda_dssim": 0.7}):
        assert_agrees(lambda leaf, name, o=options: loss_of(leaf, target, name, **o), image, "cuda")


def test_pixels_that_are_not_valid_cost_nothing_and_get_no_gradient(implementation):
    image, target = pair()
    image.requires_grad_(True)
    valid = torch.ones(12, 14, dtype=torch.bool)
    valid[:, :3] = False
    loss_of(image, target, implementation, valid=valid).backward()
    assert bool((image.grad[:, :3] == 0).all())
    assert bool((image.grad[:, 3:] != 0).any())
    nothing = torch.zeros(12, 14, dtype=torch.bool)
    assert abs(float(loss_of(image.detach(), target, implementation, valid=nothing))) < 1e-6


def image_pair(height, width, seed=0):
    g = torch.Generator().manual_seed(seed)
    target = torch.rand(height, width, 3, generator=g)
    return (target + 0.2 * torch.randn(height, width, 3, generator=g)).clamp(0, 1), target


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 7), (11, 11), (23, 38), (64, 48)])
def test_ssim_kernels_agree_with_their_twin(height, width, implementation, instruction_set):
    image, target = image_pair(height, width)
    assert_agrees(lambda leaf, name: 1 - ssim(leaf, target, implementation=name), image, implementation)


def test_ssim_of_constant_images_is_the_luminance_term(implementation):
    # far from the border variances vanish: (2 a b + C1) / (a^2 + b^2 + C1); with 0.4 and 0.6 that is 0.4801 / 0.5201
    wide = ssim(*(torch.full((401, 401, 3), grey) for grey in (0.4, 0.6)), implementation=implementation)
    assert wide.item() == pytest.approx(0.4801 / 0.5201, abs=5e-3)


def test_ssim_without_gradient_and_with_changing_threads():
    image, target = image_pair(40, 33)
    before = torch.get_num_threads()
    values = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        values.append(ssim(image, target).item())
    torch.set_num_threads(before)
    assert values[0] == values[1] == values[2]


def test_ssim_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"must both be \[H, W, 3\]"):
        ssim(torch.zeros(3, 8, 8), torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match="one dtype"):
        ssim(torch.zeros(8, 8, 3), torch.zeros(8, 8, 3).double())


@pytest.mark.parametrize("factor", [1, 3])
def test_backward_is_that_of_autograd_whether_the_loss_stands_alone_or_not(cuda, factor):
    image, target = pair(4)
    leaves = [image.clone().requires_grad_() for _ in range(2)]
    for leaf, differentiate in zip(leaves, (torch.Tensor.backward, backward)):
        loss = loss_of(leaf, target, "cuda")
        differentiate(loss if factor == 1 else factor * loss)
    assert float(leaves[0].grad.norm()) > 0
    assert torch.equal(leaves[0].grad, leaves[1].grad)
