"""Agreement with masks, by hand."""

import numpy as np
import pytest

from unified_lift.metrics.mask_agreement import mask_agreement


@pytest.mark.parametrize(
    ("ids", "masks", "expected"),
    [
        ([7, 7, 8, 8], [1, 1, 2, 2], 1.0),  # ids are names
        ([7, 7, 7, 8], [1, 1, 2, 2], (2 / 3 + 1 / 2) / 2),
        ([7, 7, 7, 7], [1, 1, 1, 2], (3 / 4 + 0) / 2),  # one id cannot be two masks
        ([7, 9, 8, 8], [1, 0, 2, 2], 1.0),  # the pixel without mask does not count
        ([7, 9], [0, 0], None),
    ],
)
def test_masks_are_matched_one_to_one(ids, masks, expected):
    found = mask_agreement(np.array(ids), np.array(masks))
    assert found == (expected if expected is None else pytest.approx(expected))
