import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from unified_lift.evaluation.pictures import quantize_uint8
from unified_lift.metrics import VIEW_METRICS, ViewBundle
from unified_lift.metrics.psnr import psnr
from unified_lift.metrics.ssim import ssim, ssim_map
from unified_lift.metrics.with_fitted_colors import color_corrected

ORACLE = json.loads((Path(__file__).parent / "oracles.json").read_text())["image"]
CASES = ORACLE["cases"]


def pattern() -> torch.Tensor:
    """R = (16 y + x) / 255, G = (16 x + y) / 255, B = 0.5, float64 [16, 16, 3]."""
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    return torch.stack([(16 * y + x) / 255, (16 * x + y) / 255, torch.full_like(x, 0.5)], dim=-1).double()


def distorted(name: str) -> torch.Tensor:
    image = pattern()
    if name == "red_plus_0.10_clipped":
        image[..., 0] += 0.10
    elif name == "all_plus_0.05_clipped":
        image += 0.05
    else:
        y, x = np.indices((16, 16))
        image[..., 0] += torch.from_numpy(np.where((x + y) % 2 == 1, 0.1, -0.1))
    return image.clamp(0, 1)


@pytest.mark.parametrize("name", [name for name in CASES if name != "constant_images"])
def test_psnr_and_ssim_and_their_parts_equal_the_oracles(name):
    case, image = CASES[name], distorted(name)
    assert psnr(image, pattern()) == pytest.approx(case["psnr"], abs=1e-6)
    assert ssim(image, pattern()) == pytest.approx(case["ssim"], abs=1e-6)
    inner = ssim_map(image, pattern())[5:-5, 5:-5]  # where the whole window lies in the image
    assert float(inner.mean()) == pytest.approx(case["ssim_valid_window"], abs=1e-6)
    channels = [psnr(image[..., c : c + 1], pattern()[..., c : c + 1]) for c in range(3)]
    expected = case["psnr_mean_of_channels"]
    assert np.mean(channels) == (np.inf if expected is None else pytest.approx(expected, abs=1e-6))


def test_psnr_takes_all_channels_at_once():
    case = CASES["constant_images"]
    a = torch.full((8, 8, 3), case["a"], dtype=torch.float64)
    b = torch.tensor(case["b"], dtype=torch.float64).expand(8, 8, 3)
    assert psnr(a, b) == pytest.approx(case["psnr"], abs=1e-5)
    assert psnr(a, b) != pytest.approx(case["psnr_mean_of_channels"], abs=0.5)


def test_quantisation_equals_the_oracle():
    values = torch.tensor(ORACLE["quantise"]["x"], dtype=torch.float64)
    assert quantize_uint8(values).tolist() == ORACLE["quantise"]["u8"]


def test_identical_images_are_perfect():
    assert (psnr(pattern(), pattern()), ssim(pattern(), pattern())) == (float("inf"), pytest.approx(1.0))


@pytest.mark.parametrize("score", [psnr, ssim])
def test_single_precision_agrees_to_five_decimals_and_unequal_shapes_are_refused(score):
    a, b = distorted("all_plus_0.05_clipped"), pattern()
    assert score(a.float(), b.float()) == pytest.approx(score(a, b), abs=1e-5)
    with pytest.raises(ValueError, match="received"):
        score(torch.zeros(4, 4, 3), torch.zeros(4, 5, 3))


def test_pixels_that_do_not_count_change_nothing_and_a_view_without_others_has_no_score(scene):
    view, valid = scene.train[0], torch.ones(20, 24, dtype=torch.bool)
    valid[:, 12:] = False
    image = (view.image / 255).roll(1, 0)
    other = torch.where(valid[..., None], image, 0.5)
    half = image * valid[..., None], view.image / 255 * valid[..., None]
    for name, expected in (("PSNR", psnr(half[0], half[1]) - 10 * np.log10(2)), ("SSIM", None)):
        metric = VIEW_METRICS[name]
        one, two = (metric(bundle_of(view, valid, picture)) for picture in (image, other))
        assert one == two == pytest.approx(expected or float(ssim_map(*half)[:, :12].mean()), abs=1e-4)
        assert not np.isfinite(metric(bundle_of(view, valid & False, image)))
        corrected = VIEW_METRICS[f"cc_{name}"]
        assert corrected(bundle_of(view, valid, image)) is None
        for how in ("affine", "quadratic"):
            one, two = (corrected(bundle_of(view, valid, picture, color_correct=how)) for picture in (image, other))
            assert one == two > (metric(bundle_of(view, valid, image)) if name == "PSNR" else 0.7)
            assert not np.isfinite(corrected(bundle_of(view, valid & False, image, color_correct=how)))


def bundle_of(view, valid, image, **more):
    view = dataclasses.replace(view, valid=valid)
    return ViewBundle(view=view, image=image, object_ids=None, annotation=None, depth=lambda: None, **more)


def row_of(*reds):
    """A picture of one row without green and blue."""
    return torch.tensor([[[red, 0.0, 0.0] for red in reds]], dtype=torch.float64)


def test_colours_are_fitted_by_least_squares_and_clamped():
    everywhere = torch.ones(1, 3, dtype=torch.bool)
    # Of (.2, .3), (.4, .3), (.6, .6) the line has slope .06 / .08 and runs through (.4, .4).
    fitted = color_corrected(row_of(0.2, 0.4, 0.6), row_of(0.3, 0.3, 0.6), everywhere)
    torch.testing.assert_close(fitted, row_of(0.25, 0.4, 0.55))
    fitted = color_corrected(row_of(0.0, 0.5, 0.5), row_of(0.0, 0.7, 1.0), everywhere)
    torch.testing.assert_close(fitted, row_of(0.0, 0.85, 0.85))
    two = torch.tensor([[True, True, False]])
    torch.testing.assert_close(color_corrected(row_of(0.1, 0.2, 0.9), row_of(0.2, 0.4, 0), two), row_of(0.2, 0.4, 1.0))


def test_a_quadratic_fit_undoes_a_curve_but_for_clipped_colours():
    image = torch.rand(20, 20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    curved = 0.1 + 0.5 * image**2 + 0.3 * image.roll(1, dims=2)
    everywhere = torch.ones(20, 20, dtype=torch.bool)
    torch.testing.assert_close(color_corrected(image, curved, everywhere, quadratic=True), curved)
    assert (color_corrected(image, curved, everywhere) - curved).abs().max() > 0.01
    brighter = (1.5 * image).clamp(max=1)  # a third is clipped and says nothing of the factor
    torch.testing.assert_close(color_corrected(image, brighter, everywhere, quadratic=True), brighter)
    white = torch.ones_like(image)  # nothing can be fitted to
    torch.testing.assert_close(color_corrected(image, white, everywhere, quadratic=True), image)
