"""How far rendered ids and the masks of a held-out view cover each other, where there is no ground truth."""

import numpy as np

from unified_lift.metrics.base import Metric

METRICS = (
    Metric(name="coverage", label="pixels in a mask of the view that show an object (no ground truth)"),
    Metric(name="coverage_by_masks", label="pixels with an object that are in a mask of the view (no ground truth)"),
)


def coverage(ids: np.ndarray, masks: np.ndarray, *, no_object: int = -1) -> dict[str, float]:
    """Return `coverage`, the share of pixels in a mask that show an object, and `coverage_by_masks`, the converse.

    Args:
        ids: Rendered, integers [...].
        masks: Segment ids of the view, integers of that shape; pixels with 0 are in no mask.
        no_object: The rendered id that is no object; -1: every id is one.
    Returns:
        Each in [0, 1]; without that which would be a share of no pixels.
    """
    claimed, shown = masks != 0, ids != no_object
    both, wholes = np.count_nonzero(claimed & shown), (np.count_nonzero(claimed), np.count_nonzero(shown))
    return {metric.name: both / whole for metric, whole in zip(METRICS, wholes, strict=True) if whole}
