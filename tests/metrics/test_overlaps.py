import numpy as np
import pytest

from unified_lift.ops.overlaps import compress, overlap_table


@pytest.mark.parametrize("values", [[0, 1, 2, 900], [-5, 3, 70_000], [-(2**31), 0, 2**31 - 1], [7]])
def test_table_equals_a_loop_over_pixels(values):
    rng = np.random.default_rng(len(values))
    pred, true = rng.choice(np.array(values, dtype=np.int32), (2, 13, 17))
    pred_ids, true_ids, counts = overlap_table(pred, true)
    expected = np.zeros_like(counts)
    for p, t in zip(pred.ravel(), true.ravel(), strict=True):
        expected[list(pred_ids).index(p), list(true_ids).index(t)] += 1
    assert (counts == expected).all()
    assert pred_ids.tolist() == sorted(set(pred.ravel().tolist()))


def test_compress_gives_the_pixels_back():
    ids = np.array([[300, -1], [12, 300]], dtype=np.int32)
    values, index = compress(ids)
    assert (values[index] == ids.ravel()).all()
    assert values.tolist() == [-1, 12, 300]


def test_no_pixels_give_an_empty_table_and_bad_inputs_are_refused():
    empty = np.zeros((0, 4), dtype=np.int32)
    assert overlap_table(empty, empty)[2].shape == (0, 0)
    with pytest.raises(ValueError, match="one shape"):
        overlap_table(np.zeros((2, 2), int), np.zeros((2, 3), int))
    with pytest.raises(ValueError, match="integers"):
        overlap_table(np.zeros((2, 2)), np.zeros((2, 2), int))
