"""How well rendered ids agree with the masks of a held-out view, where there is no ground truth. Not mIoU."""

import numpy as np
from scipy.optimize import linear_sum_assignment

from unified_lift.metrics.base import Metric, ViewBundle
from unified_lift.metrics.matched import iou_from_counts
from unified_lift.ops.overlaps import overlap_table


def mask_agreement(ids: np.ndarray, masks: np.ndarray) -> float | None:
    """Return the mean IoU of the masks of a view with the rendered ids, under their best one-to-one matching.

    Masks are a 2D model's and err, so this is no measure against the truth; identity over views does not count.

    Args:
        ids: Rendered, integers [P].
        masks: Segment ids of the view, integers [P]; pixels with 0 do not count.
    Returns:
        A mask without partner counts 0. None: no mask has a pixel.
    """
    ids, masks = ids[masks != 0], masks[masks != 0]
    if not len(masks):
        return None
    overlaps = iou_from_counts(overlap_table(ids, masks)[2])
    rows, columns = linear_sum_assignment(overlaps, maximize=True)
    return float(overlaps[rows, columns].sum() / overlaps.shape[1])


def _of_view(bundle: ViewBundle) -> float | None:
    segments = bundle.view.segments
    if bundle.annotation is not None or bundle.object_ids is None or segments is None:
        return None
    valid = bundle.valid.cpu().numpy()
    return mask_agreement(bundle.object_ids[valid], segments.cpu().numpy()[valid])


METRIC = Metric(
    name="mask_agreement", label="agreement with the masks of the view (no ground truth)", function=_of_view
)
