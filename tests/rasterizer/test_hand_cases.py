"""One or two Gaussians whose pixels and derivatives are worked out by hand."""

import math

import diff_gaussian_rasterization as dgr
import pytest
import torch

from .tolerances import HAND, PIXEL

# f = 10, principal point in the middle of a 5x5 image: the axis meets the centre of pixel (2, 2)
K5 = torch.tensor([[[10.0, 0, 2.5], [0, 10.0, 2.5], [0, 0, 1]]])
EYE = torch.eye(4)[None]


def blobs(
    depths, opacities, colors, *, scales=(0.2, 0.2, 0.2), quat=(1.0, 0, 0, 0), features=None, K=K5, size=5, **options
):
    """Gaussians on the axis z in a square image."""
    n = len(depths)
    means = torch.nn.functional.pad(torch.tensor(depths)[:, None], (2, 0))
    shape = (torch.tensor([quat]).repeat(n, 1), torch.tensor([scales]).repeat(n, 1), torch.as_tensor(opacities))
    return dgr.rasterize(means, *shape, torch.as_tensor(colors), features, EYE, K, size, size, **options)


def test_one_gaussian_falls_off_as_its_projected_covariance_says(implementation):
    # footprint variance (f / z * s)^2 + 0.3 = (10 / 2 * 0.2)^2 + 0.3 = 1.3 px^2
    out = blobs([2.0], [0.5], [[1.0, 0.5, 0.0]], backgrounds=torch.tensor([[0.0, 0, 1]]), implementation=implementation)
    centre, right = 0.5, 0.5 * math.exp(-0.5 / 1.3)
    diagonal = 0.5 * math.exp(-1.0 / 1.3)
    assert out.alpha[0, 2, 2].item() == pytest.approx(centre, abs=HAND)
    assert out.alpha[0, 2, 3].item() == pytest.approx(right, abs=HAND)
    assert out.alpha[0, 1, 1].item() == pytest.approx(diagonal, abs=HAND)
    # colour over a blue background: alpha * colour + (1 - alpha) * background
    assert out.image[0, 2, 3].tolist() == pytest.approx([right, 0.5 * right, 1 - right], abs=HAND)
    assert out.depth[0, 2, 3].item() == pytest.approx(2 * right, abs=HAND)
    # larger eigenvalue 1.3 + sqrt(max(0.1, 0)) = 1.616; 3 sqrt(1.616) = 3.81
    assert out.meta.radii.tolist() == [[4]]
    assert out.meta.means2d[0, 0].tolist() == pytest.approx([2.5, 2.5], abs=HAND)


def test_nearer_gaussian_hides_the_farther_one(implementation):
    # listed far first: weights 0.5 (near) and 0.8 * (1 - 0.5) = 0.4 (far), transmittance left 0.1
    features = torch.tensor([[3.0], [7.0]])
    out = blobs([4.0, 2.0], [0.8, 0.5], [[0.0, 1, 0], [1.0, 0, 0]], features=features, implementation=implementation)
    assert out.image[0, 2, 2].tolist() == pytest.approx([0.5, 0.4, 0.0], abs=HAND)
    assert out.alpha[0, 2, 2].item() == pytest.approx(0.9, abs=HAND)
    assert out.depth[0, 2, 2].item() == pytest.approx(0.5 * 2 + 0.4 * 4, abs=HAND)
    assert out.features[0, 2, 2].item() == pytest.approx(0.5 * 7 + 0.4 * 3, abs=4 * HAND)


def test_equal_depths_keep_the_order_of_the_list(implementation):
    out = blobs([2.0, 2.0], [0.5, 0.8], [[1.0, 0, 0], [0.0, 1, 0]], implementation=implementation)
    assert out.image[0, 2, 2].tolist() == pytest.approx([0.5, 0.4, 0.0], abs=HAND)


def test_alpha_is_capped_at_099(implementation):
    out = blobs([2.0], [1.0], [[1.0, 1, 1]], implementation=implementation)
    assert out.alpha[0, 2, 2].item() == pytest.approx(0.99, abs=HAND)


def test_gaussian_that_would_exhaust_the_light_is_dropped(implementation):
    # transmittance 0.02, 0.0004, then 8e-6 < 1e-4: the third and everything behind it do not count
    colors = [[1.0, 0, 0], [0.0, 1, 0], [0.0, 0, 1], [0.0, 0, 1]]
    out = blobs([2.0, 3.0, 4.0, 5.0], [0.98, 0.98, 0.98, 0.1], colors, implementation=implementation)
    assert out.image[0, 2, 2].tolist() == pytest.approx([0.98, 0.0196, 0.0], abs=HAND)


def test_contribution_below_one_255th_is_skipped(implementation):
    # 0.1 exp(-r^2 / 2.6) reaches 1/255 at r^2 = 2.6 ln 25.5 = 8.42: (2, 2) px away has r^2 = 8, no more than 8.42
    out = blobs([2.0], [0.1], [[1.0, 1, 1]], implementation=implementation)
    assert out.alpha[0, 0, 0].item() == pytest.approx(0.1 * math.exp(-8 / 2.6), abs=HAND)
    # with 0.08: r^2 = 2.6 ln 20.4 = 7.84 < 8, the corner stays empty
    out = blobs([2.0], [0.08], [[1.0, 1, 1]], implementation=implementation)
    assert out.alpha[0, 0, 0].item() == 0
    # 0.003 < 1/255 reaches no pixel at all
    assert blobs([2.0], [0.003], [[1.0, 1, 1]], implementation=implementation).meta.radii.tolist() == [[0]]


def test_near_plane_culls(implementation):
    assert blobs([0.2], [0.5], [[1.0, 1, 1]], implementation=implementation).alpha.sum() == 0
    assert blobs([0.25], [0.5], [[1.0, 1, 1]], implementation=implementation).alpha.sum() > 0
    assert blobs([0.25], [0.5], [[1.0, 1, 1]], near=0.3, implementation=implementation).alpha.sum() == 0


@pytest.mark.parametrize(
    ("sh_degree", "coefficients", "expected"),
    [
        # 0.5 * (0.5 + 0.28209479 * sh), and 0.5 - 0.846 < 0 becomes 0
        (0, [[1.0, 0.0, -3.0]], [0.5 * (0.5 + 0.28209479), 0.25, 0.0]),
        # direction (0, 0, 1): only the second of the three linear terms, +0.48860251 z, is non-zero
        (1, [[0.0] * 3, [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]], [0.25, 0.5 * (0.5 + 0.24430126), 0.25]),
    ],
)
def test_harmonics_are_shifted_by_one_half_and_clamped_at_zero(sh_degree, coefficients, expected, implementation):
    out = blobs([2.0], [0.5], [coefficients], sh_degree=sh_degree, implementation=implementation)
    assert out.image[0, 2, 2].tolist() == pytest.approx(expected, abs=HAND)


def test_derivatives_of_a_single_pixel(implementation):
    # 1x1 image, Gaussian centred 1 px left of the only pixel centre: variance 1.3, d = 1, g = exp(-0.5 / 1.3). Flat in
    # depth, because so small an image clamps the Jacobian, which would otherwise add a little of the depth variance.
    K = torch.tensor([[[10.0, 0, -0.5], [0, 10.0, 0.5], [0, 0, 1]]])
    leaves = {
        "opacities": torch.tensor([0.5]),
        "colors": torch.tensor([[0.9, 0.2, 0.4]]),
        "background": torch.tensor([[0.1, 0.0, 0.0]]),
        "means2d": torch.zeros(1, 1, 2),
    }
    leaves = {k: v.requires_grad_() for k, v in leaves.items()}
    shape = {"scales": (0.2, 0.2, 0.0), "K": K, "size": 1, "implementation": implementation}
    moved = {"backgrounds": leaves["background"], "means2d": leaves["means2d"]}
    out = blobs([2.0], leaves["opacities"], leaves["colors"], **moved, **shape)
    out.image[0, 0, 0, 0].backward()
    g = math.exp(-0.5 / 1.3)
    alpha = 0.5 * g
    # image = alpha c + (1 - alpha) b: by opacity (c - b) g, by colour alpha, by background 1 - alpha
    assert leaves["opacities"].grad.tolist() == pytest.approx([0.8 * g], abs=HAND)
    assert leaves["colors"].grad[0].tolist() == pytest.approx([alpha, 0, 0], abs=HAND)
    assert leaves["background"].grad[0].tolist() == pytest.approx([1 - alpha, 0, 0], abs=HAND)
    # alpha = 0.5 exp(-(p - u)^2 / 2.6): d alpha / du = alpha (p - u) / 1.3
    assert leaves["means2d"].grad[0, 0].tolist() == pytest.approx([0.8 * alpha / 1.3, 0], abs=HAND)


def test_capped_alpha_passes_no_gradient(implementation):
    opacity = torch.tensor([1.0], requires_grad=True)
    K = torch.tensor([[[10.0, 0, 0.5], [0, 10.0, 0.5], [0, 0, 1]]])
    out = blobs([2.0], opacity, torch.ones(1, 3), K=K, size=1, implementation=implementation)
    out.image.sum().backward()
    assert opacity.grad.item() == 0


def test_rotation_turns_the_long_axis(implementation):
    # long axis along x, then a quarter turn about z: long along y
    turn = {"quat": (math.sqrt(0.5), 0.0, 0.0, math.sqrt(0.5)), "scales": (0.4, 0.1, 0.1)}
    out = blobs([2.0], [0.5], torch.ones(1, 3), **turn, implementation=implementation)
    # variances (5 * 0.4)^2 + 0.3 = 4.3 along y and (5 * 0.1)^2 + 0.3 = 0.55 along x
    assert out.alpha[0, 3, 2].item() == pytest.approx(0.5 * math.exp(-0.5 / 4.3), abs=HAND)
    assert out.alpha[0, 2, 3].item() == pytest.approx(0.5 * math.exp(-0.5 / 0.55), abs=HAND)


# ---- where a point lands: COLMAP pose and intrinsics, pixel centres at +0.5, true principal point ----

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
    shape = {"scales": (0.1, 0.1, 0.1), "K": torch.tensor([[[20.0, 0, 3.5], [0, 20.0, 3.5], [0, 0, 1]]]), "size": 7}
    out = blobs([2.0], [0.9], torch.ones(1, 3), **shape, implementation=implementation)
    assert float(out.alpha.max()) > 0.8
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
