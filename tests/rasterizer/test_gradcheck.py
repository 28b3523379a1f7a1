"""Analytic against numeric derivatives of the definition in float64, away from the alpha cut and the clamps."""

import diff_gaussian_rasterization as dgr
import pytest
import torch


def smooth_inputs(sh_degree):
    """Three wide Gaussians whose alpha stays inside (1/255, 0.99) on the whole 4x3 image."""
    g = torch.Generator().manual_seed(11)
    f64 = {"dtype": torch.float64}
    means = torch.tensor([[0.1, -0.05, 2.0], [-0.15, 0.1, 2.5], [0.05, 0.12, 3.0]], **f64)
    quats = torch.randn(3, 4, generator=g, **f64)
    scales = 1.0 + 0.3 * torch.rand(3, 3, generator=g, **f64)
    opacities = torch.tensor([0.5, 0.6, 0.7], **f64)
    colors = torch.rand(3, 3, generator=g, **f64)
    if sh_degree is not None:
        colors = 0.1 * torch.randn(3, 16, 3, generator=g, **f64)
    features = torch.randn(3, 2, generator=g, **f64)
    backgrounds, means2d = torch.rand(1, 3, generator=g, **f64), torch.zeros(1, 3, 2, **f64)
    viewmat = torch.eye(4, **f64)[None].clone()
    viewmat[0, :3, 3] = torch.tensor([0.02, -0.03, 0.1], **f64)
    K = torch.tensor([[[5.0, 0, 1.8], [0, 5.5, 1.6], [0, 0, 1]]], **f64)
    return [means, quats, scales, opacities, colors, features, viewmat, K, backgrounds, means2d]


@pytest.mark.parametrize(("sh_degree", "antialiased"), [(None, False), (3, False), (None, True)])
def test_definition_has_the_derivatives_of_its_values(sh_degree, antialiased):
    inputs = [t.requires_grad_() for t in smooth_inputs(sh_degree)]

    def function(means, quats, scales, opacities, colors, features, viewmat, K, backgrounds, means2d):
        out = dgr.rasterize(
            means, quats, scales, opacities, colors, features, viewmat, K, 4, 3, sh_degree=sh_degree,
            backgrounds=backgrounds, means2d=means2d, features_move_geometry=True, antialiased=antialiased,
        )  # fmt: skip
        return out.image, out.features, out.alpha, out.depth

    out = function(*inputs)
    assert float(out[2].detach().min()) > 0.1, "the scene must cover every pixel"
    assert torch.autograd.gradcheck(function, inputs, eps=1e-6, atol=1e-6, rtol=1e-4, fast_mode=False)
