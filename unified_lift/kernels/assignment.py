"""From the ids of one view to codes of the scene: scores (Eq. 3, Eq. 5) and the Hungarian step."""

from ctypes import c_int32, c_void_p

import numpy as np
import torch
from diff_gaussian_rasterization.native import CUDA, PLACE, address, place
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from unified_lift.kernels.fused import SIZE, runs_on, workspace
from unified_lift.ops.segments import segment_counts, segment_sum
from unified_lift.shapes import check_shapes

_MEAN_FLOOR = 1e-4  # added to |segment| in Eq. 3 [released, as in Panoptic Lifting]
CUDA.declare({"dgr_cuda_assign_bytes": [c_int32, c_int32, c_int32, SIZE]}, returns=None)
CUDA.declare({"dgr_cuda_assign": [c_void_p, c_void_p, c_int32, c_int32, c_void_p, c_void_p, *PLACE]})


def association_scores(probabilities: Tensor, slot: Tensor, num_segments: int, *, area_aware: bool) -> Tensor:
    """Return how well each segment of a view fits each code.

    Source: Eq. 5 (area-aware: sum over the segment's pixels) or Eq. 3 (mean over them).
    Args:
        probabilities: Association of each pixel with each code (Eq. 2), [P, L].
        slot: Segment of each pixel, int32 [P], -1 = none.
        area_aware: Sum (large segments choose first) or mean.
    Returns:
        Scores to maximise, [S, L] for S = `num_segments`.
    """
    check_shapes({"probabilities": (probabilities, "P L"), "slot": (slot, "P")})
    total = segment_sum(probabilities, slot, num_segments)
    return total if area_aware else mean_scores(total, slot)


def mean_scores(scores: Tensor, slot: Tensor) -> Tensor:
    """Return area-aware scores [S, L] divided by the pixels of each segment, `slot` int32 [P]: from Eq. 5 to Eq. 3."""
    return scores / (segment_counts(slot, len(scores))[:, None] + _MEAN_FLOOR)


def hungarian(scores: Tensor, *, no_match_cost: Tensor | None = None) -> Tensor:
    """Return the code of each segment in the one-to-one assignment with the largest total score.

    Args:
        scores: [S, L]; NaN counts as 0.
        no_match_cost: Segment s stays without code rather than taking one whose score is below no_match_cost[s], [S].
    Returns:
        Code of each segment, int64 [S]; -1 for segments left over (S > L, or no code worth more than that).
    Raises:
        ValueError: Shapes, dtypes or devices do not fit.
    Gradient: none.
    Differs: on a GPU scores are rounded to 2^-29 of their range first; for these numbers the assignment is exact.
    """
    check_shapes({"scores": (scores, "S L")})
    if no_match_cost is not None and no_match_cost.shape != scores.shape[:1]:
        raise ValueError(f"no_match_cost must be [S] with S = {len(scores)}, received {list(no_match_cost.shape)}")
    if no_match_cost is not None and (no_match_cost.dtype != scores.dtype or no_match_cost.device != scores.device):
        raise ValueError(f"no_match_cost must be {scores.dtype} on {scores.device} like the scores")
    if runs_on(scores, max_width=None):
        return _fused(scores.detach(), None if no_match_cost is None else no_match_cost.detach())
    num_segments, num_codes = scores.shape
    table = np.nan_to_num(scores.detach().cpu().double().numpy())
    if no_match_cost is not None:  # S further columns, one for each segment to stay out
        staying_out = no_match_cost.detach().cpu().double().numpy()[:, None].repeat(num_segments, axis=1)
        table = np.concatenate([table, staying_out], axis=1)
    rows, columns = linear_sum_assignment(table, maximize=True)
    codes = np.full(num_segments, -1)
    codes[rows] = np.where(columns < num_codes, columns, -1)
    return torch.from_numpy(codes).to(scores.device)


def _fused(scores: Tensor, no_match_cost: Tensor | None) -> Tensor:
    scores, cost = scores.contiguous(), None if no_match_cost is None else no_match_cost.contiguous()
    memory = workspace(scores, CUDA.dgr_cuda_assign_bytes, *scores.shape, cost is not None)
    codes = torch.empty(len(scores), dtype=torch.int64, device=scores.device)
    CUDA.dgr_cuda_assign(*map(address, (scores, cost)), *scores.shape, *map(address, (memory, codes)), *place(scores))
    return codes


def pseudo_labels(codes: Tensor, slot: Tensor) -> Tensor:
    """Return the code of every pixel given the code of every segment [S]; -1 where either is missing, int64 [P]."""
    if codes.numel() == 0:
        return torch.full_like(slot, -1, dtype=torch.int64)
    return torch.where(slot >= 0, codes[slot.clamp(min=0)], -1)
