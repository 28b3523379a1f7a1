import torch
from diff_gaussian_rasterization import fused_ssim

from unified_lift.losses.photometric import photometric_loss


def pair(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(12, 14, 3, generator=generator), torch.rand(12, 14, 3, generator=generator)


def test_loss_is_the_weighted_sum_of_l1_and_dssim():
    image, target = pair()
    expected = 0.8 * (image - target).abs().mean() + 0.2 * (1 - fused_ssim(image, target))
    torch.testing.assert_close(photometric_loss(image, target, lambda_dssim=0.2), expected)
    torch.testing.assert_close(photometric_loss(image, target, lambda_dssim=0), (image - target).abs().mean())


def test_equal_images_cost_nothing():
    image, _ = pair()
    assert abs(float(photometric_loss(image, image, lambda_dssim=0.2))) < 1e-6


def test_pixels_that_are_not_valid_cost_nothing_and_get_no_gradient():
    image, target = pair()
    image.requires_grad_(True)
    valid = torch.ones(12, 14, dtype=torch.bool)
    valid[:, :3] = False
    photometric_loss(image, target, lambda_dssim=0.2, valid=valid).backward()
    assert bool((image.grad[:, :3] == 0).all())
    assert bool((image.grad[:, 3:] != 0).any())
    nothing = torch.zeros(12, 14, dtype=torch.bool)
    assert abs(float(photometric_loss(image.detach(), target, lambda_dssim=0.2, valid=nothing))) < 1e-6
