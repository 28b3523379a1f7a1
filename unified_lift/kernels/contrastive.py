"""What features and the centres of the segments of one view say: contrastive loss (Eq. 1) and uncertainty (Eq. 7)."""

from ctypes import POINTER, byref, c_void_p
from typing import Any

import torch
from diff_gaussian_rasterization.native import CUDA, address, place
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import normalize

from unified_lift.kernels.fused import PIXELS, SIZE, Contrast, pixels_of, runs_on, workspace
from unified_lift.ops.segments import segment_counts, segment_mean, segment_sum
from unified_lift.shapes import check_shapes

_EPS = 1e-6
CUDA.declare({"dgr_cuda_segment_bytes": [PIXELS, SIZE]}, returns=None)
for _name, _count in (("contrast", 3), ("contrast_backward", 4), ("uncertainty", 2)):
    CUDA.declare({f"dgr_cuda_{_name}": [PIXELS, POINTER(Contrast)] + [c_void_p] * _count})


def contrastive_loss(
    features: Tensor,
    slot: Tensor,
    num_segments: int,
    *,
    temperature: float | None,
    min_pixels: int,
    detach_norm: bool,
    unit_centres: bool,
    mean_over_pixels: bool,
) -> Tensor:
    """Return the loss that pulls a pixel's feature to the centre of its segment and away from the others.

    Source: Eq. 1: -sum_u log( exp(x_u . m_i / t_i) / sum_j exp(x_u . m_j / t_j) ), x = F / |F|, i the segment of u.
    Args:
        features: Rendered features, [P, D].
        slot: Segment of each pixel, int32 [P]; -1 takes no part.
        num_segments: S; some may have no pixel.
        temperature: t, the same for all segments; None: t_j of the released code, from the spread of each segment.
        min_pixels: Segments with no more than this many pixels are dropped together with their pixels.
        detach_norm: Treat |F| as a constant, which leaves a radial gradient [released].
        unit_centres: Normalise the centres, so that the similarity is a cosine.
        mean_over_pixels: Divide the sum by the number of pixels; otherwise by the number of segments [released].
    Returns:
        Scalar; 0 where fewer than two segments remain.
    Raises:
        ValueError: Shapes, dtypes or settings do not fit.
    Gradient: reaches pixels and centres; t_j is detached.
    Differs: the paper has no temperature and leaves the normaliser open; the released code sums over pixels and divides
        by the number of segments, with t_j = clip(10 phi_j, 0.5, 1), phi_j = mean |x - m_j| / ln(n_j + 10).
    """
    check_shapes({"features": (features, "P D"), "slot": (slot, "P")})
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if min_pixels < 0 or num_segments < 0:
        raise ValueError(f"min_pixels and num_segments must not be negative, got {min_pixels} and {num_segments}")
    if runs_on(features):
        how = Contrast(temperature or 0.0, min_pixels, detach_norm, unit_centres, mean_over_pixels)
        return _ContrastiveLoss.apply(features, slot, num_segments, how)
    counts = segment_counts(slot, num_segments)
    kept = counts > min_pixels
    if int(kept.sum()) < 2:
        return features.sum() * 0
    renumber = torch.cumsum(kept, 0) - 1
    renumber[~kept] = -1
    member = (slot >= 0) & kept[slot.clamp(min=0)]
    slot, features, counts = renumber[slot[member]], features[member], counts[kept]
    norm = features.norm(dim=1, keepdim=True)
    x = features / ((norm.detach() if detach_norm else norm) + _EPS)
    centres = segment_mean(x, slot, len(counts))  # [S, D]
    if unit_centres:
        centres = normalize(centres, dim=1, eps=_EPS)
    logits = x @ centres.T / (temperature or released_temperature(x, centres, slot, counts))
    per_pixel = torch.logsumexp(logits, dim=1) - logits.gather(1, slot[:, None])[:, 0]
    return per_pixel.mean() if mean_over_pixels else per_pixel.sum() / len(counts)


def released_temperature(x: Tensor, centres: Tensor, slot: Tensor, counts: Tensor) -> Tensor:
    """Return the released code's temperature per segment, clip(10 phi, 0.5, 1), detached, [S].

    Source: phi_j = mean_u |x_u - m_j| / ln(n_j + 10), released code.
    """
    with torch.no_grad():
        distance = (x - centres[slot]).norm(dim=1, keepdim=True)
        spread = segment_sum(distance, slot, len(counts))[:, 0] / counts
        return (10 * spread / torch.log(counts + 10.0)).clamp(0.5, 1.0)


class _ContrastiveLoss(Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, slot: Tensor, num_segments: int, how: Contrast) -> Tensor:
        features, slot = features.detach().contiguous(), slot.contiguous()
        px, loss = pixels_of(features, slot, num_segments), features.new_empty(())
        memory = workspace(features, CUDA.dgr_cuda_segment_bytes, byref(px))
        gradient = torch.empty_like(features) if ctx.needs_input_grad[0] else None
        CUDA.dgr_cuda_contrast(byref(px), byref(how), *map(address, (memory, loss, gradient)))
        ctx.save_for_backward(features, slot)
        ctx.structs, ctx.memory = (px, how), (memory, gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        features, _ = ctx.saved_tensors  # raises if one was changed in place since forward
        px, how = ctx.structs
        px.stream = place(features)[1]
        upstream, out = upstream.contiguous(), torch.empty_like(features)
        CUDA.dgr_cuda_contrast_backward(byref(px), byref(how), *map(address, (*ctx.memory, upstream, out)))
        return out, None, None, None


@torch.no_grad()
def uncertainty(features: Tensor, slot: Tensor, num_segments: int, *, temperature: float) -> Tensor:
    """Return how unsure the features are about each pixel's own segment.

    Source: Eq. 7: W_u = 1 - softmax_j(x_u . m_j / temperature) at the pixel's own segment, x = F / |F|, m_j = mean x.
    Args:
        features: Rendered features, [P, D].
        slot: Segment of each pixel, int32 [P]; -1 (no label) gives 1.
        num_segments: S; those without pixel do not count.
    Returns:
        Values in [0, 1], 0 = certain, [P], without gradient.
    """
    check_shapes({"features": (features, "P D"), "slot": (slot, "P")})
    if runs_on(features):
        return _fused_uncertainty(features.contiguous(), slot.contiguous(), num_segments, temperature)
    if num_segments == 0:
        return features.new_ones(len(slot))
    x = features / (features.norm(dim=1, keepdim=True) + _EPS)
    similarity = x @ segment_mean(x, slot, num_segments).T / temperature  # [P, S]
    similarity = similarity.masked_fill(segment_counts(slot, num_segments) == 0, -torch.inf)
    own = torch.softmax(similarity, dim=1).gather(1, slot.clamp(min=0).long()[:, None])[:, 0]
    return torch.where(slot >= 0, 1 - own, 1.0)


def _fused_uncertainty(features: Tensor, slot: Tensor, num_segments: int, temperature: float) -> Tensor:
    px, out = pixels_of(features, slot, num_segments), features.new_empty(features.shape[0])
    memory = workspace(features, CUDA.dgr_cuda_segment_bytes, byref(px))
    CUDA.dgr_cuda_uncertainty(byref(px), byref(Contrast(temperature)), address(memory), address(out))
    return out
