"""Odd sizes, empty scenes, poisoned inputs, repeatability, and errors that say what is wrong."""

import math
import os
import subprocess
import sys
from dataclasses import replace

import diff_gaussian_rasterization as dgr
import pytest
import torch

from .scenes import INPUTS, assert_same_map, gradients, random_inputs, render

NO_VIEWS = {"backgrounds": None, "means2d": None}


def assert_background_only(x, implementation, seed):
    out, grads = gradients(x, implementation, seed)
    assert torch.allclose(out.image, x.backgrounds[:, None, None].expand_as(out.image))
    assert not bool((out.alpha != 0).any())
    assert out.meta.num_pairs == 0
    assert not bool((out.meta.radii > 0).any())
    # every pixel is background: its gradient is the sum of what came in
    assert bool((grads.pop("backgrounds") != 0).all())
    assert not any(bool((g != 0).any()) for g in grads.values() if g is not None)


def assert_unusable_disappear(x, name, poison, implementation, seed):
    """Give every seventh of 60 Gaussians a number that is not finite, and another no rotation."""
    bad = torch.arange(60) % 7 == 3
    x.quats[1] = 0
    value = getattr(x, name).clone()
    value.view(60, -1)[bad, -1] = poison
    bad[1] = True
    clean = {n: getattr(x, n)[~bad] for n in INPUTS[:6]}
    expected = render(replace(x, **clean, means2d=None), implementation)
    out, grads = gradients(replace(x, **{name: value}), implementation, seed)
    for before, after in zip(expected[:4], out[:4]):
        assert torch.allclose(before, after, atol=1e-6)
    assert all(bool(torch.isfinite(gradient).all()) for gradient in grads.values())
    assert not bool((grads["means"][bad] != 0).any())
    assert int(out.meta.radii[:, bad].abs().max()) == 0
    assert not bool((out.meta.means2d[:, bad] != 0).any())


def test_an_empty_scene_and_one_behind_the_camera_show_the_background(implementation):
    x = random_inputs(1)
    behind = replace(x, means=x.means * torch.tensor([1, 1, -1.0]) - torch.tensor([0, 0, 3.0]))
    for scene in (random_inputs(0, num=0), behind):
        assert_background_only(scene, implementation, 0)


@pytest.mark.parametrize("name", INPUTS[:6])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_gaussians_that_are_not_finite_or_have_no_rotation_disappear(name, poison, implementation):
    assert_unusable_disappear(random_inputs(2, num=60), name, poison, implementation, 2)


def test_quaternion_norm_does_not_matter(implementation):
    x = random_inputs(4)
    a, b = render(x, implementation), render(replace(x, quats=7 * x.quats), implementation)
    assert torch.allclose(a.image, b.image, atol=2e-5)


def test_enormous_and_point_like_gaussians_stay_finite(implementation):
    x = random_inputs(5, num=60)
    scales = x.scales.clone()
    scales[::3] = 1e6
    scales[1::3] = 0
    out, grads = gradients(replace(x, scales=scales), implementation, 5)
    assert bool(torch.isfinite(out.image).all())
    assert all(bool(torch.isfinite(g).all()) for g in grads.values())


@pytest.mark.parametrize(("width", "height"), [(1, 1), (17, 23), (16, 16), (33, 1), (1, 40)])
def test_any_image_size_agrees_with_the_definition(width, height, implementation, instruction_set):
    # tiles and vector blocks stick out on the right and below
    x = replace(random_inputs(6, width=40, height=40, num=1000), width=width, height=height)
    expected, actual = render(x, "reference"), render(x, implementation)
    assert actual.image.shape == (1, height, width, 3)
    assert float(expected.alpha.max()) > 0.1
    for name in ("image", "features", "alpha"):
        assert_same_map(name, getattr(expected, name), getattr(actual, name), scale=4.0, seed=6)


def test_batch_equals_cameras_one_by_one(implementation):
    x = random_inputs(7, cameras=2, sh_degree=2)
    both, grads = gradients(x, implementation, 7)
    for c in range(2):
        parts = {n: getattr(x, n)[c : c + 1] for n in ("viewmats", "Ks", "backgrounds", "means2d")}
        one = render(replace(x, **parts), implementation)
        for name in ("image", "features", "alpha", "depth"):
            assert torch.equal(getattr(one, name)[0], getattr(both, name)[c]), name
    assert grads["means2d"].shape == (2, 300, 2)
    assert bool((grads["means2d"][0] != grads["means2d"][1]).any())


def test_order_of_the_list_does_not_matter(implementation):
    x = random_inputs(8)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    shuffled = replace(x, **{n: getattr(x, n)[order] for n in INPUTS[:6]})
    a, grads_a = gradients(x, implementation, 8)
    b, grads_b = gradients(shuffled, implementation, 8)
    assert torch.allclose(a.image, b.image, atol=1e-6)
    assert torch.equal(a.meta.radii[:, order], b.meta.radii)
    for name in INPUTS[:6]:
        assert torch.allclose(grads_a[name][order], grads_b[name], atol=1e-4, rtol=1e-4), name


def test_results_are_bitwise_equal_for_any_number_of_threads():
    x = random_inputs(9, num=3000, width=70, height=60, dim=16)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            out, grads = gradients(x, "cpu", 9)
            results.append([*out[:4], *grads.values()])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_kernels_survive_a_fork(two_threads):
    # a data-loader worker is a forked child: it has none of the parent's threads
    x = random_inputs(10)
    expected = float(render(x, "cpu").image.sum())
    child = os.fork()
    if child == 0:
        same = abs(float(render(x, "cpu").image.sum()) - expected) < 1e-3
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_double_precision_goes_to_the_definition():
    x = random_inputs(11, dtype=torch.float64, num=50)
    out = render(x, "auto")
    assert out.image.dtype == torch.float64
    with pytest.raises(ValueError, match="needs float32 tensors on the CPU"):
        render(x, "cpu")


def test_noncontiguous_inputs_are_accepted():
    x = random_inputs(12, num=50)
    wide = torch.cat([x.means, x.means], 1)
    out = render(replace(x, means=wide[:, :3], features=x.features.T.contiguous().T), "cpu")
    assert torch.equal(out.image, render(x, "cpu").image)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quats": torch.zeros(300, 3)}, r"quats must have shape \[N, 4\] with N = 300.*got \[300, 3\]"),
        ({"opacities": torch.zeros(300, 1)}, r"opacities must have shape \[N\]"),
        ({"features": torch.zeros(299, 5)}, r"features must have shape \[N, D\]"),
        ({"viewmats": torch.eye(4)}, r"viewmats must have shape \[C, 4, 4\]"),
        ({"scales": torch.zeros(300, 3, dtype=torch.float64)}, "scales must be float32 or float64 like the means"),
        ({"means": torch.zeros(300, 3, dtype=torch.int64)}, "means must be float32 or float64"),
        ({"means": [[0.0, 0, 1]]}, "means must be a tensor"),
        ({"colors": torch.zeros(300, 4)}, r"colors_or_sh must have shape \[N, 3\]"),
        ({"sh_degree": 4}, "sh_degree must be 0, 1, 2, 3 or None"),
        ({"sh_degree": 3, "colors": torch.zeros(300, 9, 3)}, "sh_degree 3 needs 16 coefficients"),
        ({"width": 0}, "at least 1 pixel"),
        ({"viewmats": torch.zeros(0, 4, 4), "Ks": torch.zeros(0, 3, 3), **NO_VIEWS}, "at least one camera"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    x = replace(random_inputs(13), **change)
    with pytest.raises(ValueError, match=message):
        render(x, "auto")


def test_near_must_be_positive():
    x = random_inputs(13)
    with pytest.raises(ValueError, match="near must be positive"):
        dgr.rasterize(
            x.means, x.quats, x.scales, x.opacities, x.colors, None, x.viewmats, x.Ks, x.width, x.height, near=0.0
        )


def test_missing_kernels_fall_back_with_one_warning():
    # a fresh interpreter that cannot find the library
    code = """
import pathlib, warnings, torch
from diff_gaussian_rasterization import native
native.CPU.use(pathlib.Path("/nonexistent/_dgr_cpu.so"), "cpu")
import diff_gaussian_rasterization as dgr
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    state = dgr.AdamState(torch.zeros(3), torch.zeros(3), 0.1, 1)
    for _ in range(3):
        dgr.adam_steps([(torch.ones(3), torch.ones(3), state)], beta1=0.9, beta2=0.999, eps=1e-8)
assert len(caught) == 1 and "install g++" in str(caught[0].message), caught
assert float(state.exp_avg[0]) > 0
assert dgr.backend_info()["implementation"] == "reference"
try:
    dgr.adam_steps([(torch.ones(3), torch.ones(3), state)], beta1=0.9, beta2=0.999, eps=1e-8, implementation="cpu")
except RuntimeError as error:
    assert "install g++" in str(error)
else:
    raise AssertionError("asked for by name, the kernels must not be replaced")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_environment_variable_chooses_for_auto_only(monkeypatch):
    monkeypatch.setenv("DGR_IMPLEMENTATION", "reference")
    assert dgr.backend_info()["implementation"] == "reference"
    monkeypatch.setenv("DGR_IMPLEMENTATION", "fastest")
    with pytest.raises(ValueError, match="must be one of auto, reference, cpu, cuda, gsplat, got 'fastest'"):
        render(random_inputs(14), "auto")
    render(random_inputs(14), "cpu")


def test_more_gaussians_than_31_bits_number_are_refused():
    means, quats, opacities = (torch.zeros(1, *size).expand(2**31, *size) for size in ((3,), (4,), ()))  # no memory
    with pytest.raises(ValueError, match=r"^2147483648 Gaussians, 31 bits number them: at most 2147483647"):
        dgr.pixel_weights(means, quats, means, opacities, torch.eye(4), torch.eye(3), 8, 8)
