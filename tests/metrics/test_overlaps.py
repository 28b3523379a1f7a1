import numpy as np
import pytest

from unified_lift.ops.overlaps import Overlaps, compress, overlap_table, overlaps_of


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
    halves = [overlaps_of(pred[rows], true[rows]) for rows in (slice(5), slice(5, None))]
    for whole in (overlaps_of(pred, true), Overlaps.merged(halves)):
        assert whole.shared.tolist() == counts[counts > 0].tolist()
        assert (whole.pred.tolist(), whole.true.tolist()) == tuple(index.tolist() for index in counts.nonzero())
        assert [area.tolist() for area in whole.areas()] == [counts.sum(axis=1).tolist(), counts.sum(axis=0).tolist()]


def test_many_ids_make_no_table_of_all_pairs(monkeypatch):
    monkeypatch.setattr("unified_lift.ops.overlaps.MAX_DIRECT_CELLS", 10)
    pred, true = np.random.default_rng(0).integers(0, 9, (2, 40))
    found, (_, _, counts) = overlaps_of(pred, true), overlap_table(pred, true)
    assert found.shared.sum() == 40
    np.testing.assert_array_equal(counts[found.pred, found.true], found.shared)
    assert np.count_nonzero(counts) == len(found.shared)


def test_compress_gives_the_pixels_back():
    ids = np.array([[300, -1], [12, 300]], dtype=np.int32)
    values, index = compress(ids)
    assert (values[index] == ids.ravel()).all()
    assert values.tolist() == [-1, 12, 300]


def test_no_pixels_give_an_empty_table_and_bad_inputs_are_refused():
    empty = np.zeros((0, 4), dtype=np.int32)
    assert overlap_table(empty, empty)[2].shape == (0, 0)
    assert len(Overlaps.merged([overlaps_of(empty, empty)]).shared) == 0
    with pytest.raises(ValueError, match="one shape"):
        overlap_table(np.zeros((2, 2), int), np.zeros((2, 3), int))
    with pytest.raises(ValueError, match="integers"):
        overlap_table(np.zeros((2, 2)), np.zeros((2, 2), int))
