import numpy as np
import pytest
import torch

from unified_lift.ops.resample import nearest, nearest_indices


@pytest.mark.parametrize(
    ("num_in", "num_out", "expected"),
    [
        (5, 7, [0, 1, 1, 2, 3, 3, 4]),
        (6, 4, [0, 2, 3, 5]),
        (5, 3, [0, 2, 4]),
        (3, 8, [0, 0, 0, 1, 1, 2, 2, 2]),
        (7, 2, [1, 5]),
    ],
)
def test_centre_rule_oracles(num_in, num_out, expected):
    assert nearest_indices(num_in, num_out).tolist() == expected


def test_rows_and_columns_follow_the_rule_on_numpy_and_torch():
    ids = np.arange(30, dtype=np.int32).reshape(5, 6)
    expected = ids[np.ix_([0, 2, 4], [0, 2, 3, 5])]
    np.testing.assert_array_equal(nearest(ids, 3, 4), expected)
    assert nearest(ids, 3, 4).dtype == np.int32
    assert torch.equal(nearest(torch.from_numpy(ids), 3, 4), torch.from_numpy(expected))


def test_growing_by_a_whole_factor_and_back_is_the_identity():
    ids = np.random.default_rng(0).integers(0, 70000, (7, 9)).astype(np.int32)
    np.testing.assert_array_equal(nearest(nearest(ids, 35, 45), 7, 9), ids)


def test_no_new_ids_appear():
    ids = np.random.default_rng(1).choice([0, 3, 65536], (17, 23)).astype(np.int32)
    assert set(np.unique(nearest(ids, 40, 11))) <= {0, 3, 65536}


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="positive"):
        nearest_indices(3, 0)
    with pytest.raises(ValueError, match=r"\[H, W\]"):
        nearest(np.zeros((2, 2, 3)), 1, 1)
