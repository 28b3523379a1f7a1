"""gsplat behind our arguments: against the definition with a stand-in everywhere, with the package on a GPU."""

import importlib
import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import diff_gaussian_rasterization as dgr
import pytest
import torch
from diff_gaussian_rasterization import native

from . import fake_gsplat
from .scenes import INPUTS, MAPS, SCALES, assert_agrees, gradients, random_inputs, render
from .test_cuda import to_gpu
from .test_pixel_weights import weights_of
from .test_robustness import assert_background_only, assert_unusable_disappear
from .test_step import assert_same_step
from .test_step import run as step_of
from .tolerances import BASELINE_ANGLE, BASELINE_IMAGE, CUT_FRACTION


@pytest.fixture
def gsplat(monkeypatch):
    """The implementation on CPU tensors, with a stand-in for the package."""
    name = "diff_gaussian_rasterization.gsplat_backend"
    monkeypatch.setitem(sys.modules, "gsplat", fake_gsplat.module())
    monkeypatch.delitem(sys.modules, name, raising=False)
    baseline = importlib.import_module(name)
    monkeypatch.delitem(sys.modules, name)
    select = native.select
    monkeypatch.setattr(native, "select", lambda name, tensor: baseline if name == "gsplat" else select(name, tensor))
    return "gsplat"


def inputs(seed, **options):
    """Without opacities near 1, where the caps of the two programs differ."""
    x = random_inputs(seed, **{"num": 120, "width": 37, "height": 29, **options})
    return replace(x, opacities=0.95 * x.opacities)


def compare(seed, x, implementation, **options):
    expected, actual = assert_agrees(x, implementation, seed, other_radii=math.inf, **options)
    seen = expected.meta.radii > 0
    assert torch.equal(expected.meta.radii[seen], actual.meta.radii[seen])
    assert torch.allclose(expected.meta.means2d[seen], actual.meta.means2d[seen], atol=1e-3)
    # gsplat rounds its boxes up and fills them with tiles
    assert int((actual.meta.radii > 0).sum()) >= int(seen.sum())
    assert actual.meta.num_pairs > 0


CASES = [
    *({"dim": dim} for dim in (0, 3, 16, 19, 40)),
    *({"sh_degree": degree, "dim": 2} for degree in (0, 1, 2, 3)),
    {"cameras": 2, "sh_degree": 1},
]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_every_map_and_gradient_agrees(options, gsplat):
    x = inputs(50, **options)
    compare(50, replace(x, backgrounds=None, means2d=None) if "cameras" in options else x, gsplat)


def test_features_move_geometry_only_when_asked(gsplat):
    compare(61, inputs(61), gsplat, features_move_geometry=True)
    for moves in (False, True):
        compare(61, inputs(61), gsplat, features_move_geometry=moves, maps=("features",))


def test_opacities_are_compensated_when_asked_for(gsplat):
    x = inputs(68, dim=3)
    compare(68, replace(x, scales=0.4 * x.scales), gsplat, antialiased=True)


def test_the_empty_scene_and_one_behind_the_camera_show_the_background(gsplat):
    for x in (inputs(62, num=0), replace(inputs(62), means=inputs(62).means - torch.tensor([0, 0, 50.0]))):
        assert_background_only(x, gsplat, 62)


@pytest.mark.parametrize("name", INPUTS[:6])
def test_gaussians_that_are_not_finite_or_have_no_rotation_disappear(name, gsplat):
    assert_unusable_disappear(inputs(63, num=60), name, math.nan, gsplat, 63)


def test_a_training_step_with_it_is_the_step_of_the_definition(gsplat):
    options = {"num": 80, "dim": 3, "background": torch.tensor([0.2, 0.5, 0.7])}
    expected, actual = step_of("reference", 67, **options), step_of(gsplat, 67, **options)
    assert bool((expected.pop("num_seen") <= actual["num_seen"]).all())  # its boxes are rounded up
    assert_same_step(expected, actual, 67)


def test_sums_of_absolute_gradients_are_refused(gsplat):
    x = inputs(69)
    with pytest.raises(ValueError, match="'gsplat' gives no sums of absolute gradients"):
        render(replace(x, absolute2d=torch.zeros_like(x.means2d)), gsplat)


def test_a_camera_gradient_is_refused(gsplat):
    x = inputs(64)
    with pytest.raises(ValueError, match="'gsplat' gives no gradient to viewmats and Ks"):
        render(replace(x, viewmats=x.viewmats.clone().requires_grad_()), gsplat)


def test_anything_but_a_whole_view_is_refused(gsplat):
    with pytest.raises(ValueError, match="renders whole views and nothing else"):
        weights_of(inputs(65), implementation=gsplat)


def test_tensors_on_a_cpu_are_refused_by_name():
    with pytest.raises(ValueError, match="implementation='gsplat' needs float32 tensors on an NVIDIA GPU"):
        render(inputs(66), "gsplat")


def test_a_missing_package_is_named_with_its_cure(monkeypatch):
    monkeypatch.setattr(native.importlib.util, "find_spec", lambda name: None)
    fix = r"the package gsplat is missing: pip install gsplat==1\.5\.3"
    with pytest.raises(RuntimeError, match=fix):
        native.select("gsplat", SimpleNamespace(dtype=torch.float32, device=torch.device("cuda")))
    assert "pip install gsplat==1.5.3" in dgr.backend_info()["gsplat"]


# ---- with the package, on a GPU -----------------------------------------------------------------------------------


@pytest.mark.gsplat
@pytest.mark.parametrize("sh_degree", [None, 3])
@pytest.mark.parametrize(("moves", "antialiased"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("dim", [0, 16])
def test_the_package_agrees_with_our_kernels(dim, moves, antialiased, sh_degree):
    seed = 70 + dim
    x = inputs(seed, num=20_000, width=320, height=200, dim=dim, sh_degree=sh_degree)
    x = to_gpu(replace(x, scales=0.3 * x.scales))
    options = {"features_move_geometry": moves, "antialiased": antialiased}
    expected, expected_gradients = gradients(x, "cuda", seed, **options)
    actual, actual_gradients = gradients(x, "gsplat", seed, **options)
    for name in MAPS:
        if getattr(expected, name).numel():
            error = (getattr(expected, name) - getattr(actual, name)).abs() / SCALES[name]
            cut = float((error > BASELINE_IMAGE).double().mean())
            assert bool((getattr(expected, name) != 0).any())
            assert cut <= CUT_FRACTION, f"{name} differs in a share of {cut}"
    for name, gradient in expected_gradients.items():
        cosine = torch.nn.functional.cosine_similarity(gradient.flatten(), actual_gradients[name].flatten(), dim=0)
        assert float(cosine) >= 1 - BASELINE_ANGLE, f"gradient of {name}: cosine {float(cosine)}"
        assert float(gradient.norm() / actual_gradients[name].norm()) == pytest.approx(1, abs=5 * BASELINE_ANGLE), name
