"""The CUDA kernels against the definition, emulated on every machine and for real where there is a GPU."""

import math
from dataclasses import replace

import diff_gaussian_rasterization as dgr
import pytest
import torch
from diff_gaussian_rasterization import cuda as kernels
from diff_gaussian_rasterization import native, types

from .scenes import INPUTS, MAPS, assert_same_gradient, assert_same_map, gradients, random_inputs, render
from .test_pixel_weights import some_pixels, weights_of
from .test_twin import WIDTHS, compare


@pytest.mark.parametrize("seed", range(12))
def test_kernels_agree_with_the_definition_over_seeds(seed, cuda, sums):
    compare(
        seed, implementation=cuda, sh_degree=(None, 0, 1, 2, 3)[seed % 5], dim=WIDTHS[seed % 6], num=150 + 40 * seed
    )


@pytest.mark.parametrize("dim", [*WIDTHS, 4, 17, 50])
def test_kernels_agree_for_every_feature_width(dim, cuda, sums):
    compare(100 + dim, implementation=cuda, dim=dim, width=19, height=18, num=120)


@pytest.mark.parametrize("sh_degree", [None, 0, 1, 2, 3])
def test_kernels_agree_for_every_harmonics_degree(sh_degree, cuda):
    compare(200, implementation=cuda, sh_degree=sh_degree, dim=0, width=21, height=17, num=120)


def test_kernels_take_any_number_of_harmonics(cuda):
    # rows of 9 coefficients are not made of whole 16-byte groups
    x = random_inputs(201, sh_degree=2, dim=0)
    x = replace(x, colors=x.colors[:, :9].contiguous())
    expected, actual = gradients(x, "reference", 201), gradients(x, cuda, 201)
    assert_same_map("image", expected[0].image, actual[0].image, scale=1.5, seed=201)
    assert_same_gradient("colors", expected[1]["colors"], actual[1]["colors"], seed=201)


@pytest.mark.parametrize("dim", [1, 16, 19])
def test_kernels_agree_when_features_move_geometry(dim, cuda, sums):
    options = {"implementation": cuda, "features_move_geometry": True, "num": 150, "width": 23, "height": 17}
    compare(300 + dim, dim=dim, **options)
    compare(310 + dim, dim=dim, maps=("features",), **options)


def test_a_feature_loss_leaves_geometry_alone(cuda, sums):
    x = random_inputs(320, dim=19)
    _, actual = gradients(x, cuda, 320, maps=("features",))
    _, expected = gradients(x, "reference", 320, maps=("features",))
    assert_same_gradient("features", expected["features"], actual["features"], seed=320)
    for name in ("means", "quats", "scales", "opacities", "means2d", "colors", "backgrounds"):
        assert not bool((actual[name] != 0).any()), name


@pytest.mark.parametrize("maps", [("image",), ("alpha",), ("depth",), ("image", "depth")])
def test_kernels_agree_when_only_some_maps_carry_a_loss(maps, cuda, sums):
    x = random_inputs(7, num=150)
    expected, actual = gradients(x, "reference", 7, maps=maps)[1], gradients(x, cuda, 7, maps=maps)[1]
    for name in ("means", "quats", "scales", "opacities", "means2d"):
        assert_same_gradient(name, expected[name], actual[name], seed=7)


# with an opacity of 0.011 the transmittance of a pixel ends after 850 Gaussians, in the second chunk
@pytest.mark.parametrize(
    ("dim", "opacity", "moving"), [(0, 0.0055, False), (0, 0.011, False), (40, 0.0055, False), (16, 0.0055, True)]
)
def test_kernels_agree_on_lists_of_several_chunks(dim, opacity, moving, cuda, sums):
    # 2,600 faint and nearly flat Gaussians: backward starts in the middle of lists, at what forward left there
    x = random_inputs(6, num=2600, width=18, height=14, dim=dim)
    x = replace(x, scales=4 + x.scales, opacities=opacity * (1 + 0.2 * x.opacities))
    options = {"features_move_geometry": moving}
    expected, expected_gradients = gradients(x, "reference", 6, **options)
    actual, actual_gradients = gradients(x, cuda, 6, **options)
    tiles = 2
    assert actual.meta.num_pairs > 4 * 512 * tiles
    assert_same_map("image", expected.image, actual.image, scale=1.0, seed=6)
    for name in INPUTS[:-2]:  # little transmittance is left: nothing to compare for the background
        if expected_gradients.get(name) is not None:
            assert_same_gradient(name, expected_gradients[name], actual_gradients[name], seed=6)


def test_kernels_agree_on_dense_overlap_that_exhausts_the_light(cuda, sums):
    # more than one batch of 256 per tile, most of it behind the transmittance cut
    x = random_inputs(5, num=900, width=20, height=20, dim=16)
    x = replace(x, scales=6 * x.scales, opacities=0.5 + 0.5 * x.opacities)
    expected, expected_gradients = gradients(x, "reference", 5)
    actual, actual_gradients = gradients(x, cuda, 5)
    assert expected.alpha.min().item() > 0.999
    assert_same_map("image", expected.image, actual.image, scale=1.0, seed=5)
    for name, gradient in expected_gradients.items():
        assert_same_gradient(name, gradient, actual_gradients[name], seed=5)


def test_kernels_agree_on_long_lists_of_faint_gaussians(cuda, sums):
    # nothing saturates: backward walks several batches
    x = random_inputs(9, num=1100, width=18, height=20, dim=16)
    x = replace(x, scales=4 * x.scales, opacities=0.005 + 0.01 * x.opacities)
    expected, expected_gradients = gradients(x, "reference", 9)
    actual, actual_gradients = gradients(x, cuda, 9)
    assert expected.alpha.max().item() < 0.999
    assert_same_map("image", expected.image, actual.image, scale=1.0, seed=9)
    for name, gradient in expected_gradients.items():
        assert_same_gradient(name, gradient, actual_gradients[name], seed=9)


def test_kernels_agree_on_splats_over_many_tile_rows(cuda):
    # a warp shares the work of listing such splats
    x = random_inputs(6, num=70, width=90, height=400, dim=1)
    x = replace(x, scales=torch.exp(1.5 * torch.randn(70, 3, generator=torch.Generator().manual_seed(6)) - 1))
    x = replace(x, viewmats=torch.eye(4)[None], opacities=0.3 * x.opacities)
    expected, actual = render(x, "reference"), render(x, cuda)
    assert int((expected.meta.radii > 200).sum()) > 5
    for name in ("image", "alpha"):
        assert_same_map(name, getattr(expected, name), getattr(actual, name), scale=1.5, seed=6)


def test_kernels_agree_on_a_batch_of_cameras(cuda):
    compare(400, implementation=cuda, cameras=2, sh_degree=3, dim=16, num=200)


def test_only_the_requested_gradients_are_made(cuda):
    x = random_inputs(12, dim=16)
    x = replace(x, features=x.features.clone().requires_grad_(), opacities=x.opacities.clone().requires_grad_())
    out = render(x, cuda)
    (out.image.sum() + out.features.sum()).backward()
    assert bool((x.features.grad != 0).any())
    assert bool((x.opacities.grad != 0).any())
    assert x.means.grad is None


def test_a_tile_list_is_what_the_ellipse_meets(cuda):
    # every Gaussian of every pixel is found through the lists, and the lists are no longer than bounding boxes
    x = random_inputs(13, num=400, width=70, height=50)
    assert render(x, cuda).meta.num_pairs < render(x, "reference").meta.num_pairs


def test_pixels_outside_the_image_have_empty_rows(cuda, monkeypatch):
    # on a GPU their range is not checked: the host would have to wait
    monkeypatch.setattr(dgr.api, "_require_pixels", lambda *_: None)
    x = random_inputs(15)
    inside = some_pixels(x, 20)
    far = 2**40
    outside = torch.tensor([[-1, 3], [3, -1], [x.width, 3], [3, x.height], [far, far], [-far, 0]])
    weights = weights_of(x, torch.cat([inside[:10], outside, inside[10:]]), implementation=cuda)
    expected = weights_of(x, inside, implementation=cuda)
    counts = weights.offsets.diff()
    assert counts[10:16].tolist() == [0] * 6
    assert torch.equal(torch.cat([counts[:10], counts[16:]]), expected.offsets.diff())
    assert torch.equal(weights.gaussian_ids, expected.gaussian_ids)


def test_constants_of_kernels_and_definition_are_the_same(cuda):
    expected = [types.ALPHA_MIN, types.ALPHA_MAX, types.TRANSMITTANCE_MIN, types.LOW_PASS, types.FRUSTUM_MARGIN]
    assert native.constants(native.CUDA) == pytest.approx(expected, rel=1e-7)


def test_a_tensor_elsewhere_is_refused_by_name():
    with pytest.raises(ValueError, match="needs float32 tensors on an NVIDIA GPU, got torch.float32 on cpu"):
        render(random_inputs(14), "cuda")


# ---- on a real GPU only: tensors that live there ------------------------------------------------------------------


def to_gpu(x):
    moved = {n: v.cuda() for n, v in vars(x).items() if isinstance(v, torch.Tensor)}
    return replace(x, **moved)


@pytest.mark.gpu
def test_tensors_on_a_gpu_take_the_kernels_by_default():
    x = random_inputs(20)
    out = render(to_gpu(x), "auto")
    assert out.image.is_cuda
    assert dgr.backend_info()["cuda"] == "cuda"
    assert_same_map("image", render(x, "reference").image, out.image.cpu(), scale=1.5, seed=20)


@pytest.mark.gpu
@pytest.mark.parametrize("matrix_units", [True, False])
@pytest.mark.parametrize("dim", [0, 16])
def test_a_large_scene_agrees_with_the_cpu_kernels(dim, matrix_units):
    kernels.allow_matrix_units(matrix_units)
    x = random_inputs(21, num=100_000, width=640, height=479, dim=dim, sh_degree=3)
    x = replace(x, scales=0.12 * x.scales)
    expected, expected_gradients = gradients(x, "cpu", 21)
    actual, actual_gradients = gradients(to_gpu(x), "cuda", 21)
    for name in MAPS:
        if getattr(expected, name).numel():
            scale = {"depth": 6.0, "features": 4.0}.get(name, 1.5)
            assert_same_map(name, getattr(expected, name), getattr(actual, name).cpu(), scale=scale, seed=21)
    for name, gradient in expected_gradients.items():
        assert_same_gradient(name, gradient, actual_gradients[name].cpu(), seed=21)
    assert int((expected.meta.radii != actual.meta.radii.cpu()).sum()) < 100
    kernels.allow_matrix_units(True)


@pytest.mark.gpu
def test_rendering_is_repeatable_bit_by_bit():
    x = to_gpu(random_inputs(22, num=20_000, width=300, height=200, dim=16))
    first, second = render(x, "cuda"), render(x, "cuda")
    assert all(torch.equal(a, b) for a, b in zip(first[:4], second[:4]))


@pytest.mark.gpu
def test_work_goes_to_the_current_stream():
    x = to_gpu(random_inputs(23, num=5000, width=200, height=150, dim=16))
    expected = render(x, "cuda").image
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        images = [render(x, "cuda").image for _ in range(5)]
    torch.cuda.current_stream().wait_stream(stream)
    assert all(torch.equal(expected, image) for image in images)


@pytest.mark.gpu
def test_enormous_images_and_gaussians_fit():
    # more than 65536 tiles need wider sort keys
    x = random_inputs(24, num=500, width=4200, height=4100, dim=0)
    x = to_gpu(replace(x, scales=torch.where(torch.arange(500)[:, None] < 3, 1e5, x.scales)))
    out = render(x, "cuda")
    assert math.isfinite(float(out.image.sum()))
    assert out.meta.num_pairs > 65536
