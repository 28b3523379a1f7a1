"""The compiled kernels against the definition: every map, every gradient, many seeds, every instruction set."""

from dataclasses import replace

import diff_gaussian_rasterization as dgr
import pytest
import torch

from .scenes import assert_same_gradient, assert_same_map, gradients, random_inputs, render

WIDTHS = [0, 1, 3, 16, 19, 33]


def compare(
    seed, *, implementation="cpu", features_move_geometry=False, maps=("image", "features", "alpha", "depth"), **options
):
    x = random_inputs(seed, **options)
    arguments = {"seed": seed, "maps": maps, "features_move_geometry": features_move_geometry}
    expected, expected_gradients = gradients(x, "reference", **arguments)
    actual, actual_gradients = gradients(x, implementation, **arguments)
    for name in ("image", "features", "alpha", "depth"):
        if getattr(expected, name).numel():
            scale = {"depth": 6.0, "features": 4.0}.get(name, 1.5)
            assert_same_map(name, getattr(expected, name), getattr(actual, name), scale=scale, seed=seed)
    unreached = {"colors", "backgrounds"} if maps == ("features",) else set()
    for name, gradient in expected_gradients.items():
        if name in unreached:
            assert not bool((actual_gradients[name] != 0).any()), f"seed {seed}: {name}"
        elif gradient is not None:
            assert_same_gradient(name, gradient, actual_gradients[name], seed=seed)
    different = (expected.meta.radii != actual.meta.radii).sum()
    assert int(different) <= 1, f"seed {seed}: {int(different)} radii differ"
    assert torch.allclose(expected.meta.means2d, actual.meta.means2d, atol=1e-3, rtol=1e-5), f"seed {seed}: means2d"


@pytest.mark.parametrize("seed", range(12))
def test_kernels_agree_with_the_definition_over_seeds(seed):
    compare(seed, sh_degree=(None, 0, 1, 2, 3)[seed % 5], dim=WIDTHS[seed % 6], num=150 + 40 * seed)


@pytest.mark.parametrize("dim", WIDTHS)
def test_kernels_agree_for_every_feature_width_on_every_instruction_set(dim, instruction_set):
    compare(100 + dim, dim=dim, width=19, height=18, num=120)


@pytest.mark.parametrize("sh_degree", [None, 0, 1, 2, 3])
def test_kernels_agree_for_every_harmonics_degree_on_every_instruction_set(sh_degree, instruction_set):
    compare(200, sh_degree=sh_degree, dim=0, width=21, height=17, num=120)


@pytest.mark.parametrize("dim", [1, 16, 19])
def test_kernels_agree_when_features_move_geometry(dim, instruction_set):
    compare(300 + dim, dim=dim, num=150, width=23, height=17, features_move_geometry=True)
    only_features = ("features",)
    compare(310 + dim, dim=dim, num=150, width=23, height=17, features_move_geometry=True, maps=only_features)


@pytest.mark.parametrize("maps", [("image",), ("alpha",), ("depth",), ("image", "depth")])
def test_kernels_agree_when_only_some_maps_carry_a_loss(maps):
    x = random_inputs(7, num=150)
    expected = gradients(x, "reference", 7, maps=maps)[1]
    actual = gradients(x, "cpu", 7, maps=maps)[1]
    for name in ("means", "quats", "scales", "opacities", "means2d"):
        assert_same_gradient(name, expected[name], actual[name], seed=7)
    for name in ("features", "colors", "backgrounds"):
        if actual[name] is not None and expected[name] is not None and bool((expected[name] != 0).any()):
            assert_same_gradient(name, expected[name], actual[name], seed=7)


def test_kernels_agree_on_dense_overlap_that_exhausts_the_light():
    # large opaque Gaussians: most of the list lies behind the transmittance cut, over several batches of 64
    x = random_inputs(5, num=900, width=20, height=20)
    x = replace(x, scales=6 * x.scales, opacities=0.5 + 0.5 * x.opacities)
    expected, expected_gradients = gradients(x, "reference", 5)
    actual, actual_gradients = gradients(x, "cpu", 5)
    assert expected.alpha.min().item() > 0.999
    assert_same_map("image", expected.image, actual.image, scale=1.0, seed=5)
    for name, gradient in expected_gradients.items():
        assert_same_gradient(name, gradient, actual_gradients[name], seed=5)


def test_kernels_agree_on_splats_taller_than_a_thousand_pixels(instruction_set):
    # such splats span more tile rows than the binning kernel holds at a time
    x = random_inputs(6, num=40, width=9, height=1100, dim=1)
    x = replace(x, scales=torch.exp(2 * torch.randn(40, 3, generator=torch.Generator().manual_seed(6))))
    intrinsics = torch.tensor([[[300.0, 0, 4], [0, 300.0, 550], [0, 0, 1]]])
    x = replace(x, Ks=intrinsics, viewmats=torch.eye(4)[None], opacities=0.3 * x.opacities)
    expected, actual = render(x, "reference"), render(x, "cpu")
    tall = (expected.meta.radii > 1024).sum().item()
    assert tall > 5
    for name in ("image", "alpha"):
        assert_same_map(name, getattr(expected, name), getattr(actual, name), scale=1.5, seed=6)


def test_kernels_agree_on_a_batch_of_cameras():
    compare(400, cameras=2, sh_degree=3, dim=16, num=200)


def test_constants_of_kernels_and_definition_are_the_same():
    from diff_gaussian_rasterization import native, types

    expected = [types.ALPHA_MIN, types.ALPHA_MAX, types.TRANSMITTANCE_MIN, types.LOW_PASS, types.FRUSTUM_MARGIN]
    assert native.constants(native.CPU) == pytest.approx(expected, rel=1e-7)


def test_the_fast_kernels_are_what_runs_by_default():
    assert dgr.backend_info()["implementation"] == "cpu"
