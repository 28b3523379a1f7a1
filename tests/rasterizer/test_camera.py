"""Where a point lands: COLMAP pose and intrinsics, pixel centres at +0.5, true principal point."""

import diff_gaussian_rasterization as dgr
import pytest
import torch

from .tolerances import PIXEL

VIEW = torch.tensor([[0.64, -0.6, -0.48, 0.5], [0.48, 0.8, -0.36, -0.25], [0.6, 0.0, 0.8, 2.0], [0, 0, 0, 1.0]])


def render_point(cx, cy, implementation):
    K = torch.tensor([[778.0, 0, cx], [0, 780.0, cy], [0, 0, 1]])
    return dgr.rasterize(
        torch.tensor([[0.3, 0.2, 1.5]]), torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), 0.004), torch.tensor([0.9]),
        torch.ones(1, 3), None, VIEW[None], K[None], 986, 728, implementation=implementation,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("cx", "cy", "u", "v"),
    # world (0.3, 0.2, 1.5) -> camera (-0.148, -0.486, 3.38); u = 778 * x / z + cx
    [(493.0, 364.0, 458.933728, 251.846154), (500.0, 360.0, 465.933728, 247.846154)],
)
def test_projected_centre_matches_the_pinhole_model(cx, cy, u, v, implementation):
    out = render_point(cx, cy, implementation)
    assert out.meta.means2d[0, 0].tolist() == pytest.approx([u, v], abs=PIXEL)
    # the brightest pixel is the one whose square holds (u, v)
    brightest = int(out.alpha[0].argmax())
    assert (brightest % 986, brightest // 986) == (int(u), int(v))
    assert out.depth[0].max().item() == pytest.approx(3.38 * out.alpha.max().item(), rel=1e-5)


def test_footprint_is_symmetric_about_a_pixel_centre(implementation):
    K = torch.tensor([[[20.0, 0, 3.5], [0, 20.0, 2.5], [0, 0, 1]]])
    out = dgr.rasterize(
        torch.tensor([[0.0, 0, 2]]), torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), 0.1), torch.tensor([0.9]),
        torch.ones(1, 3), None, torch.eye(4)[None], K, 7, 5, implementation=implementation,
    )  # fmt: skip
    assert torch.allclose(out.alpha, out.alpha.flip(1), atol=1e-6)
    assert torch.allclose(out.alpha, out.alpha.flip(2), atol=1e-6)


def test_jacobian_clamp_is_measured_from_the_true_image_border():
    # The same rays through two crops: a wide image, and its right half with the principal point outside on the left.
    # The Gaussian lies inside both images, so neither may clamp, and the pixels must agree.
    x = torch.tensor([[1.8, 0.0, 2.0]])
    rest = (torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), 0.2), torch.tensor([0.8]), torch.ones(1, 3), None)
    for implementation in ("reference", "cpu"):
        wide = torch.tensor([[[20.0, 0, 24.0], [0, 20.0, 8.0], [0, 0, 1]]])
        crop = torch.tensor([[[20.0, 0, -8.0], [0, 20.0, 8.0], [0, 0, 1]]])
        a = dgr.rasterize(x, *rest, torch.eye(4)[None], wide, 48, 16, implementation=implementation)
        b = dgr.rasterize(x, *rest, torch.eye(4)[None], crop, 16, 16, implementation=implementation)
        assert float(b.alpha.max()) > 0.5
        assert torch.allclose(a.alpha[:, :, 32:], b.alpha, atol=1e-5)
