"""Losses of lifting methods on the rendered features of one view, and assignment, for tensors on an NVIDIA GPU.

They are fused kernels without a torch twin here: whoever uses them holds the definition, asks `runs_on`, and runs the
definition elsewhere. Equation numbers are those of Unified-Lift (CVPR 2025). Nothing here makes the host wait.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _backend, _library
from .types import Association, PixelWeights, Sample

MAX_DIM = 64  # kMaxDim of csrc/cuda/vector.cuh


def runs_on(tensor: Tensor, *, max_width: int | None = MAX_DIM) -> bool:
    """Return whether the kernels take a tensor: float32 on a GPU for which they were built, not empty, not too wide.

    Args:
        tensor: Features [P, D]; or scores [S, L], which may have any width.
        max_width: Largest last dimension; None = any.
    DGR_IMPLEMENTATION=reference makes this False everywhere, for debugging.
    """
    if not tensor.is_cuda or tensor.dtype != torch.float32 or tensor.numel() == 0:
        return False
    if max_width is not None and tensor.shape[-1] > max_width:
        return False
    return _backend.requested("auto") in ("auto", "cuda") and _library.problem("cuda") is None


def contrastive_loss(
    features: Tensor, slot: Tensor, num_segments: int,
    *, temperature: float | None, min_pixels: int, detach_norm: bool, unit_centres: bool, mean_over_pixels: bool,
) -> Tensor:  # fmt: skip
    """Return Eq. 1: the cross-entropy of each pixel between the segment centres of its view, a scalar.

    With x = F / (|F| + 1e-6) and m_j the mean of x over segment j, a pixel u of segment i costs
    -log( exp(x_u . m_i / t_i) / sum_j exp(x_u . m_j / t_j) ).

    Args:
        features: Rendered features, [P, D], D at most 64.
        slot: Segment of each pixel, int32 [P]; a number outside [0, num_segments) takes no part.
        num_segments: S; some may have no pixel.
        temperature: t; None: t_j = clip(10 phi_j, 0.5, 1), phi_j = mean |x - m_j| / ln(n_j + 10) [released code].
        min_pixels: Segments with no more than this many pixels are left out together with their pixels.
        detach_norm: Treat |F| as a constant.
        unit_centres: Normalise the m_j.
        mean_over_pixels: Divide the sum by the number of pixels; otherwise by the number of segments.
    Returns:
        Scalar; 0 where fewer than two segments remain.
    Raises:
        ValueError: Shapes, dtypes, devices or settings do not fit.
    Gradient: to the features, also through the centres; t_j is constant.
    """
    _require_pixels(features, slot, num_segments)
    _require_positive(temperature)
    if min_pixels < 0:
        raise ValueError(f"min_pixels must not be negative, got {min_pixels}")
    return _backend.select("cuda", features).contrastive_loss(
        features, slot, int(num_segments), temperature=temperature, min_pixels=min_pixels,
        detach_norm=detach_norm, unit_centres=unit_centres, mean_over_pixels=mean_over_pixels,
    )  # fmt: skip


def uncertainty(features: Tensor, slot: Tensor, num_segments: int, *, temperature: float) -> Tensor:
    """Return Eq. 7: 1 - softmax_j(x_u . m_j / temperature) at the pixel's own segment, with x and m_j as in Eq. 1, [P].

    Args:
        features, slot, num_segments: As in `contrastive_loss`; segments without pixel do not count.
        temperature: Positive.
    Returns:
        Values in [0, 1], 0 = certain; 1 for a pixel without segment.
    Raises:
        ValueError: Shapes, dtypes, devices or settings do not fit.
    Gradient: none.
    """
    _require_pixels(features, slot, num_segments)
    _require_positive(temperature)
    return _backend.select("cuda", features).uncertainty(features, slot, int(num_segments), temperature=temperature)


def associate(
    features: Tensor, codebook: Tensor, slot: Tensor, num_segments: int, *, temperature: float | None, area_aware: bool
) -> Association:
    """Return how the pixels and segments of a view fit the codes (Eq. 2 with Eq. 3 or 5).

    Args:
        features, slot, num_segments: As in `contrastive_loss`.
        codebook: [L, D], L at least 1.
        temperature: P_u = softmax of cosine / temperature; None: of the plain dot product.
        area_aware: Scores are sums of P_u over a segment's pixels (Eq. 5); otherwise means (Eq. 3).
    Raises:
        ValueError: Shapes, dtypes, devices or settings do not fit.
    Gradient: none.
    """
    _require_pixels(features, slot, num_segments)
    _require_codebook(codebook, features)
    _require_positive(temperature)
    return _backend.select("cuda", features).associate(
        features, codebook, slot, int(num_segments), temperature=temperature, area_aware=area_aware
    )


def assign(scores: Tensor, *, floors: Tensor | None = None) -> Tensor:
    """Return the code of each segment in the one-to-one assignment with the largest total score, int64 [S].

    Scores are rounded to 2^-29 of their range first; for these numbers the assignment is exact.

    Args:
        scores: float32 [S, L]; NaN counts as 0.
        floors: Segment s rather stays without code than takes part below `floors[s]`, float32 [S].
    Returns:
        Codes; -1 for segments left over (S > L, or no code worth its floor).
    Raises:
        ValueError: Shapes, dtypes or devices do not fit.
    Gradient: none.
    """
    if scores.ndim != 2 or (floors is not None and floors.shape != scores.shape[:1]):
        shapes = [list(t.shape) for t in (scores, *(() if floors is None else (floors,)))]
        raise ValueError(f"scores must be [S, L] and floors [S], got {', '.join(map(str, shapes))}")
    if floors is not None and (floors.dtype != scores.dtype or floors.device != scores.device):
        raise ValueError(f"floors must be {scores.dtype} on {scores.device} like the scores")
    return _backend.select("cuda", scores).assign(scores.detach(), None if floors is None else floors.detach())


def codebook_terms(
    features: Tensor, codebook: Tensor, association: Association, codes: Tensor, slot: Tensor,
    *, temperature: float | None, unit_codes: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the two terms that train the codebook (Eq. 4 and Eq. 6), scalars.

    Eq. 4: mean cross-entropy of P_u with the pixel's code, divided by ln L; 0 where all pixels agree already [released
    code]. Eq. 6: mean of |x_u - c|, c the pixel's code. Both are means over the pixels whose segment has a code.

    Args:
        features, codebook, association: What `associate` took and returned.
        codes: Code of each segment, int64 [S]; -1 = none.
        slot: Segment of each pixel, int32 [P]; -1 = does not take part.
        temperature: As in `associate`.
        unit_codes: Normalise c in Eq. 6.
    Raises:
        ValueError: Shapes, dtypes, devices or settings do not fit.
    Gradient: to the codebook only.
    """
    _require_pixels(features, slot, codes.shape[0])
    _require_codebook(codebook, features)
    _require_positive(temperature)
    if codes.ndim != 1 or codes.dtype != torch.int64 or codes.device != features.device:
        raise ValueError(f"codes must be int64 [S] on {features.device}, got {codes.dtype} {list(codes.shape)}")
    if association.log_normaliser.shape != slot.shape or association.best.shape != slot.shape:
        raise ValueError("association must be of the same pixels")
    return _backend.select("cuda", features).codebook_terms(
        features, codebook, association, codes, slot, temperature=temperature, unit_codes=unit_codes
    )


def draw(weights: PixelWeights, slot: Tensor, sample: Sample, *, stream: int) -> None:
    """Overwrite a sample by one random row of each of P equal parts of the rows of `weights`, in order.

    Every row is as likely as in independent draws; the numbers depend on `stream` alone.

    Args:
        weights: Whatever is to be blended; it must outlive the use of the sample.
        slot: Segment of each row, int32 [num_rows].
        sample: Of P pixels, P at most num_rows.
        stream: Number of the random stream, 0 to 2^64 - 1.
    Raises:
        ValueError: Shapes, dtypes or sizes do not fit.
    """
    if slot.dtype != torch.int32 or slot.shape != (weights.num_rows,) or not slot.is_contiguous():
        raise ValueError(f"slot must be int32 [{weights.num_rows}], got {slot.dtype} {list(slot.shape)}")
    if not 0 < sample.rows.numel() <= weights.num_rows:
        raise ValueError(f"cannot draw {sample.rows.numel()} of {weights.num_rows} rows")
    if not all(t.is_contiguous() for t in weights):
        raise ValueError("the parts of the weights must be contiguous")
    _backend.select("cuda", weights.weights).draw(weights, slot, sample, stream=stream)


def blend_sample(sample: Sample, features: Tensor) -> Tensor:
    """Return features composited over zero at the pixels that `draw` chose last, [P, D].

    Differs from `blend` in that the weights are looked up when the kernel runs, so that a captured graph serves all.

    Args:
        sample: Drawn from weights that mention no Gaussian beyond `features`.
        features: Per-Gaussian values, float32 [N, D].
    Raises:
        ValueError: The features are not [N, D].
    Gradient: to features.
    """
    if features.ndim != 2:
        raise ValueError(f"features must be [N, D], got {list(features.shape)}")
    return _backend.select("cuda", features).blend_sample(sample, features)


def _require_positive(temperature: float | None) -> None:
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")


def _require_pixels(features: Tensor, slot: Tensor, num_segments: int) -> None:
    if features.ndim != 2 or features.shape[0] < 1 or not 1 <= features.shape[1] <= MAX_DIM:
        raise ValueError(f"features must be [P, D] with P >= 1 and 1 <= D <= {MAX_DIM}, got {list(features.shape)}")
    if slot.dtype != torch.int32 or slot.shape != features.shape[:1] or slot.device != features.device:
        expected = f"int32 [{features.shape[0]}] on {features.device}"
        raise ValueError(f"slot must be {expected}, got {slot.dtype} {list(slot.shape)} on {slot.device}")
    if num_segments < 0:
        raise ValueError(f"num_segments must not be negative, got {num_segments}")


def _require_codebook(codebook: Tensor, features: Tensor) -> None:
    if codebook.ndim != 2 or codebook.shape[0] < 1 or codebook.shape[1] != features.shape[1]:
        raise ValueError(f"codebook must be [L, {features.shape[1]}] with L >= 1, got {list(codebook.shape)}")
    if codebook.dtype != features.dtype or codebook.device != features.device:
        raise ValueError(f"codebook must be {features.dtype} on {features.device} like the features")
