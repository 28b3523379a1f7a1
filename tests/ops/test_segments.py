import pytest
import torch

from unified_lift.ops.segments import dense_slots, segment_counts, segment_mean, segment_sum


def test_slots_are_dense_and_sorted_and_give_the_ids_back():
    segments = torch.tensor([7, 0, 70000, 7, 0])
    slot, ids = dense_slots(segments, ignore_zero=False)
    assert slot.tolist() == [1, 0, 2, 1, 0]
    assert ids.tolist() == [0, 7, 70000]
    assert torch.equal(ids[slot], segments)


def test_zero_is_unlabelled_when_ignored():
    slot, ids = dense_slots(torch.tensor([7, 0, 9, 7]), ignore_zero=True)
    assert slot.tolist() == [0, -1, 1, 0]
    assert ids.tolist() == [7, 9]


def test_view_without_any_label_has_no_segment():
    slot, ids = dense_slots(torch.zeros(3, dtype=torch.int32), ignore_zero=True)
    assert slot.tolist() == [-1, -1, -1]
    assert len(ids) == 0


def test_negative_id_is_refused():
    with pytest.raises(ValueError, match="negative"):
        dense_slots(torch.tensor([0, -3]), ignore_zero=False)


def test_sums_counts_and_means_by_hand():
    values = torch.tensor([[1.0, 10], [3, 30], [100, 100], [5, 50]])
    slot = torch.tensor([0, 0, -1, 2])  # the third pixel has no label, segment 1 has no pixel
    assert segment_sum(values, slot, 3).tolist() == [[4, 40], [0, 0], [5, 50]]
    assert segment_counts(slot, 3).tolist() == [2, 0, 1]
    assert segment_mean(values, slot, 3).tolist() == [[2, 20], [0, 0], [5, 50]]


@pytest.mark.parametrize("seed", range(5))
def test_segment_sum_equals_a_loop_over_segments(seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(200, 3, generator=generator)
    slot = torch.randint(-1, 7, (200,), generator=generator)
    expected = torch.stack([values[slot == j].sum(dim=0) for j in range(7)])
    torch.testing.assert_close(segment_sum(values, slot, 7), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_ids_take_no_more_memory_than_there_are(device):
    segments = torch.randint(0, 5, (10_000,), device=device)
    _, ids = dense_slots(segments, ignore_zero=True)
    assert ids.untyped_storage().nbytes() <= 8 * 5  # views of a scene keep theirs
