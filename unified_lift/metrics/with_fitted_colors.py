"""PSNR and SSIM after the colours of the rendering are fitted to those of the photo: what is wrong beside exposure."""

import numpy as np
import torch
from torch import Tensor

from unified_lift.metrics.base import Metric, ViewBundle, require_same_shape
from unified_lift.metrics.psnr import psnr
from unified_lift.metrics.ssim import ssim_map

_ROUNDS = 5  # of the quadratic fit, in which other pixels may be found to be clipped
_CLIPPED = 0.5 / 255  # nearer than this to 0 or 1 a colour may have been beyond it; both as in multinerf


def color_corrected(image: Tensor, target: Tensor, valid: Tensor, *, quadratic: bool = False) -> Tensor:
    """Return a picture with the colours of another by least squares, clamped to [0, 1], float64 [H, W, 3].

    A channel of the target is explained by the three of the picture and a constant; if `quadratic` by their products as
    well, and without colours that are clipped.

    Source: gsplat's `color_correct_affine` and, of multinerf (Barron et al.), `color_correct_quadratic`.
    Args:
        image, target: Values in [0, 1], [H, W, 3].
        valid: Pixels that are fitted, bool [H, W]; without any the picture is returned.
    Raises:
        ValueError: The shapes differ.
    """
    require_same_shape(image, target)
    colours, wanted = (picture.double().cpu().numpy().reshape(-1, 3) for picture in (image, target))
    counted = valid.cpu().numpy().reshape(-1)
    usable = np.repeat(counted[:, None], 3, axis=1)
    if quadratic:
        usable &= _unclipped(colours) & _unclipped(wanted)
    for _ in range(_ROUNDS if quadratic else 1):
        terms, fits = (_products(colours), usable & _unclipped(colours)) if quadratic else (colours, usable)
        colours = np.stack([_fitted(terms, wanted[:, c], fits[:, c], colours[:, c]) for c in range(3)], axis=1)
    return torch.from_numpy(colours).view(image.shape)


def _unclipped(colours: np.ndarray) -> np.ndarray:
    return (colours >= _CLIPPED) & (colours <= 1 - _CLIPPED)


def _products(colours: np.ndarray) -> np.ndarray:
    """Return the six products of two channels, and the channels, [P, 9]."""
    rows, columns = np.triu_indices(3)
    return np.concatenate([colours[:, rows] * colours[:, columns], colours], axis=1)


def _fitted(terms: np.ndarray, wanted: np.ndarray, usable: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Return the sum of terms [P, K] and a constant that fits `wanted` best where it is usable; `before` if nowhere."""
    if not usable.any():
        return before
    terms = np.concatenate([terms, np.ones((len(terms), 1))], axis=1)
    return (terms @ np.linalg.lstsq(terms[usable], wanted[usable], rcond=None)[0]).clip(0, 1)


def _corrected(bundle: ViewBundle) -> Tensor | None:
    if bundle.color_correct == "none":
        return None
    quadratic = bundle.color_correct == "quadratic"
    return color_corrected(bundle.image, bundle.photo, bundle.valid, quadratic=quadratic)


def _psnr_of_view(bundle: ViewBundle) -> float | None:
    image = _corrected(bundle)
    return None if image is None else psnr(image[bundle.valid][None], bundle.photo[bundle.valid][None])


def _ssim_of_view(bundle: ViewBundle) -> float | None:
    image, valid = _corrected(bundle), bundle.valid[..., None]
    return None if image is None else float(ssim_map(image * valid, bundle.photo * valid)[bundle.valid].mean())


METRICS = (
    Metric(name="cc_PSNR", label="PSNR with fitted colours", unit="dB", limit=None, function=_psnr_of_view),
    Metric(name="cc_SSIM", label="SSIM with fitted colours", unit="", function=_ssim_of_view),
)
