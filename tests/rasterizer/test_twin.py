"""The compiled kernels, CPU and CUDA, against the definition: every map, every gradient, many seeds."""

from dataclasses import replace

import diff_gaussian_rasterization as dgr
import pytest
import torch
from diff_gaussian_rasterization import native, types

from .scenes import assert_agrees, assert_same_map, random_inputs, render

DEGREES = [None, 0, 1, 2, 3]


@pytest.mark.parametrize("seed", range(12))
def test_random_scenes(seed, kernel):
    options = {"sh_degree": DEGREES[seed % 5], "dim": (0, 1, 3, 16, 19, 33)[seed % 6], "num": 150 + 40 * seed}
    assert_agrees(random_inputs(seed, **options), kernel, seed)


SHAPES = [
    *({"dim": dim, "width": 19, "height": 18, "num": 120} for dim in (0, 1, 3, 4, 16, 17, 19, 33, 50)),
    *({"sh_degree": degree, "dim": 0, "width": 21, "height": 17, "num": 120} for degree in DEGREES),
    {"cameras": 2, "sh_degree": 3, "dim": 16, "num": 200},
]


@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_every_feature_width_every_degree_and_a_batch(options, kernel):
    assert_agrees(random_inputs(200, **options), kernel, 200)


def test_any_number_of_harmonics(kernel):
    # rows of 9 coefficients are not made of whole 16-byte groups
    x = random_inputs(201, sh_degree=2, dim=0)
    assert_agrees(replace(x, colors=x.colors[:, :9].contiguous()), kernel, 201)


@pytest.mark.parametrize("dim", [1, 16, 19])
def test_features_that_move_geometry(dim, kernel):
    x = random_inputs(300 + dim, dim=dim, num=150, width=23, height=17)
    assert_agrees(x, kernel, 300 + dim, features_move_geometry=True)
    assert_agrees(x, kernel, 310 + dim, features_move_geometry=True, maps=("features",))


@pytest.mark.parametrize("maps", [("image",), ("alpha",), ("depth",), ("image", "depth"), ("features",)])
def test_a_loss_on_some_maps_only(maps, kernel):
    assert_agrees(random_inputs(7, num=150, dim=19), kernel, 7, maps=maps)


# with an opacity of 0.011 the transmittance of a pixel ends after 850 Gaussians, in the second chunk
@pytest.mark.parametrize(
    ("dim", "opacity", "moving"), [(0, 0.0055, False), (0, 0.011, False), (40, 0.0055, False), (16, 0.0055, True)]
)
def test_lists_of_several_chunks(dim, opacity, moving, kernel):
    # 2,600 faint and nearly flat Gaussians: backward on CUDA starts in the middle of lists, at what forward left there
    x = random_inputs(6, num=2600, width=18, height=14, dim=dim)
    x = replace(x, scales=4 + x.scales, opacities=opacity * (1 + 0.2 * x.opacities))
    _, actual = assert_agrees(x, kernel, 6, features_move_geometry=moving, saturated=True)
    tiles = 2
    assert actual.meta.num_pairs > 4 * 512 * tiles


# Dense inputs leave little transmittance: other draws of them can miss the tolerance of the background's gradient.
@pytest.mark.parametrize(("dense", "seed", "num", "width"), [(True, 5, 900, 20), (False, 9, 1100, 18)])
def test_several_batches_of_a_tile_that_exhaust_the_transmittance_or_do_not(dense, seed, num, width, kernel):
    # a batch is 64 on a CPU, 256 on CUDA; where they are dense, most lies behind the transmittance cut
    x = random_inputs(seed, num=num, width=width, height=20, dim=16)
    opacities = 0.5 + 0.5 * x.opacities if dense else 0.005 + 0.01 * x.opacities
    expected, _ = assert_agrees(replace(x, scales=(6 if dense else 4) * x.scales, opacities=opacities), kernel, seed)
    assert expected.alpha.min() > 0.999 if dense else expected.alpha.max() < 0.999


def test_splats_taller_than_a_thousand_pixels(kernel):
    # more tile rows than the binning kernel of a CPU holds at a time; on CUDA a warp shares the work of listing them
    x = random_inputs(6, num=70, width=9, height=1100, dim=1)
    scales = torch.exp(2 * torch.randn(70, 3, generator=torch.Generator().manual_seed(6)))
    intrinsics = torch.tensor([[[300.0, 0, 4], [0, 300.0, 550], [0, 0, 1]]])
    x = replace(x, scales=scales, Ks=intrinsics, viewmats=torch.eye(4)[None], opacities=0.3 * x.opacities)
    expected, actual = render(x, "reference"), render(x, kernel)
    assert int((expected.meta.radii > 1024).sum()) > 5
    for name in ("image", "alpha"):
        assert_same_map(name, getattr(expected, name), getattr(actual, name), scale=1.5, seed=6)


def test_constants_of_kernels_and_definition_are_the_same(kernel):
    expected = [types.ALPHA_MIN, types.ALPHA_MAX, types.TRANSMITTANCE_MIN, types.LOW_PASS, types.FRUSTUM_MARGIN]
    library = native.CPU if kernel == "cpu" else native.CUDA
    assert native.constants(library) == pytest.approx(expected, rel=1e-7)


def test_the_fast_kernels_are_what_runs_by_default():
    assert dgr.backend_info()["implementation"] == "cpu"
