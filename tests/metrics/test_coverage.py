"""Coverage of masks by ids and of ids by masks, by hand."""

import numpy as np
import pytest

from unified_lift.metrics.coverage import coverage


@pytest.mark.parametrize(
    ("ids", "masks", "no_object", "expected"),
    [
        ([7, 7, 8, 9], [1, 1, 2, 0], 9, (1, 1)),
        ([7, 9, 8, 9], [1, 1, 2, 0], 9, (2 / 3, 1)),  # a claimed pixel shows no object
        ([7, 7, 8, 8], [1, 0, 0, 0], 9, (1, 1 / 4)),  # objects where no mask is
        ([0, 9, 0, 9], [0, 3, 0, 0], 9, (0, 0)),  # id 0 is an object, mask 0 is none
        ([7, 9], [1, 0], -1, (1, 1 / 2)),  # every id is an object
        ([7, 7], [0, 0], -1, (None, 0)),
        ([9, 9], [1, 0], 9, (0, None)),
    ],
)
def test_shares_of_claimed_pixels_and_of_those_with_an_object(ids, masks, no_object, expected):
    names = ("coverage", "coverage_by_masks")
    wanted = {name: value for name, value in zip(names, expected, strict=True) if value is not None}
    assert coverage(np.array([ids]), np.array([masks]), no_object=no_object) == pytest.approx(wanted)
