"""How unsure the features are about each pixel's own label (Eq. 7)."""

from ctypes import POINTER, byref, c_int64, c_void_p

import torch
from diff_gaussian_rasterization.native import CUDA, address
from torch import Tensor

from unified_lift.kernels import fused
from unified_lift.kernels.fused import Contrast, Pixels, pixels_of, workspace
from unified_lift.ops.segments import segment_counts, segment_mean
from unified_lift.shapes import check_shapes

_EPS = 1e-6
CUDA.declare({"dgr_cuda_segment_bytes": [POINTER(Pixels), POINTER(c_int64)]}, returns=None)
CUDA.declare({"dgr_cuda_uncertainty": [POINTER(Pixels), POINTER(Contrast), c_void_p, c_void_p]})


@torch.no_grad()
def uncertainty(features: Tensor, slot: Tensor, num_segments: int, *, temperature: float) -> Tensor:
    """Return how unsure the features are about each pixel's own segment.

    Source: Eq. 7: W_u = 1 - softmax_j(x_u . m_j / temperature) at the pixel's own segment, x = F / |F|, m_j = mean x.
    Args:
        features: Rendered features, [P, D].
        slot: Segment of each pixel, int32 [P]; -1 (no label) gives 1.
        num_segments: S; those without pixel do not count.
        temperature: Positive.
    Returns:
        Values in [0, 1], 0 = certain, [P].
    Gradient: none.
    """
    check_shapes({"features": (features, "P D"), "slot": (slot, "P")})
    if fused.runs_on(features):
        return _fused(features, slot, num_segments, temperature)
    if num_segments == 0:
        return features.new_ones(len(slot))
    x = features / (features.norm(dim=1, keepdim=True) + _EPS)
    similarity = x @ segment_mean(x, slot, num_segments).T / temperature  # [P, S]
    similarity = similarity.masked_fill(segment_counts(slot, num_segments) == 0, -torch.inf)
    own = torch.softmax(similarity, dim=1).gather(1, slot.clamp(min=0).long()[:, None])[:, 0]
    return torch.where(slot >= 0, 1 - own, 1.0)


def _fused(features: Tensor, slot: Tensor, num_segments: int, temperature: float) -> Tensor:
    features, slot = features.detach().contiguous(), slot.contiguous()
    px, size = pixels_of(features, slot, num_segments), c_int64()
    CUDA.dgr_cuda_segment_bytes(byref(px), byref(size))
    memory, out = workspace(features, size), features.new_empty(features.shape[0])
    CUDA.dgr_cuda_uncertainty(byref(px), byref(Contrast(temperature)), address(memory), address(out))
    return out
