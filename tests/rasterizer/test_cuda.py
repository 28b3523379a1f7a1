"""What only the CUDA kernels do, emulated on every machine and for real where there is a GPU."""

import math
import sys
from dataclasses import replace

import diff_gaussian_rasterization as dgr
import pytest
import torch
from diff_gaussian_rasterization import cuda as kernels

from .scenes import assert_same_map, assert_same_result, gradients, random_inputs, render
from .test_pixel_weights import some_pixels, weights_of


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


def test_lists_have_room_for_as_many_pairs_as_32_bits_number_and_no_more(cuda, monkeypatch):
    # room for more would leave the sort without working memory
    frame, rasterize = (sys.modules[f"{kernels.__name__}.{name}"] for name in ("frame", "rasterize"))
    x, asked = random_inputs(16, num=400, width=70, height=50), []
    make_room = frame._make_room
    monkeypatch.setattr(rasterize._renderer, "expected_pairs", {})
    monkeypatch.setattr(frame, "_make_room", lambda *a, **k: asked.append(a[2].num_pairs) or make_room(*a, **k))
    pairs = render(x, cuda).meta.num_pairs
    rasterize._renderer.expected_pairs.clear()
    for module in (frame, rasterize):
        monkeypatch.setattr(module, "MOST_PAIRS", pairs)
    for _ in range(2):  # the second has room beforehand
        assert_same_map("image", render(x, "reference").image, render(x, cuda).image, scale=1.5, seed=16)
    assert set(asked) == {pairs}
    monkeypatch.setattr(frame, "MOST_PAIRS", pairs - 1)
    with pytest.raises(MemoryError, match=rf"^{pairs} \(tile, Gaussian\) pairs in one view"):
        render(x, cuda)


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
    expected, actual = gradients(x, "cpu", 21), gradients(to_gpu(x), "cuda", 21)
    assert_same_result(expected, actual, 21, other_radii=99)
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
