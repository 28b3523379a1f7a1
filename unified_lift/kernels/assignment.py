"""From the ids of one view to codes of the scene: scores (Eq. 3, Eq. 5) and the Hungarian step."""

from __future__ import annotations

import numpy as np
import torch
from diff_gaussian_rasterization import lifting
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from unified_lift.ops.segments import segment_counts, segment_sum
from unified_lift.shapes import check_shapes

_MEAN_FLOOR = 1e-4  # added to |segment| in Eq. 3 [released, as in Panoptic Lifting]


def association_scores(probabilities: Tensor, slot: Tensor, num_segments: int, *, area_aware: bool) -> Tensor:
    """Return how well each segment of a view fits each code.

    Source: Eq. 5 (area-aware: sum over the segment's pixels) or Eq. 3 (mean over them).
    Args:
        probabilities: Association of each pixel with each code (Eq. 2), [P, L].
        slot: Segment of each pixel, int32 [P], -1 = none.
        num_segments: S.
        area_aware: Sum (large segments choose first) or mean.
    Returns:
        Scores to maximise, [S, L].
    """
    check_shapes({"probabilities": (probabilities, "P L"), "slot": (slot, "P")})
    total = segment_sum(probabilities, slot, num_segments)
    if area_aware:
        return total
    return total / (segment_counts(slot, num_segments)[:, None] + _MEAN_FLOOR)


def hungarian(scores: Tensor, *, floors: Tensor | None = None) -> Tensor:
    """Return the code of each segment in the one-to-one assignment with the largest total score.

    Args:
        scores: [S, L]; NaN counts as 0.
        floors: Way out: segment s stays without code rather than taking part below `floors[s]`, [S].
    Returns:
        Code of each segment, int64 [S]; -1 for segments left over (S > L, or no code worth its floor).
    Gradient: none.
    """
    if lifting.runs_on(scores, max_width=None):
        return lifting.assign(scores, floors=floors)
    num_segments, num_codes = scores.shape
    table = np.nan_to_num(scores.detach().cpu().double().numpy())
    if floors is not None:  # S way-out columns: never contended
        way_out = floors.detach().cpu().double().numpy()[:, None].repeat(num_segments, axis=1)
        table = np.concatenate([table, way_out], axis=1)
    rows, columns = linear_sum_assignment(table, maximize=True)
    codes = torch.full((num_segments,), -1, dtype=torch.int64)  # on the CPU, as the solver is
    real = columns < num_codes
    codes[torch.from_numpy(rows[real])] = torch.from_numpy(columns[real])
    return codes.to(scores.device)


def pseudo_labels(codes: Tensor, slot: Tensor) -> Tensor:
    """Return the code of every pixel given the code of every segment [S]; -1 where either is missing, int64 [P]."""
    if codes.numel() == 0:
        return torch.full_like(slot, -1, dtype=torch.int64)
    return torch.where(slot >= 0, codes[slot.clamp(min=0)], -1)
