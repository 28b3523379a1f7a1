import itertools

import pytest
import torch

from unified_lift.kernels.assignment import association_scores, hungarian, pseudo_labels

# Two segments: 0 has four pixels, 1 has one. Two codes. All prefer code 0.
PROBABILITIES = torch.tensor([[0.8, 0.2]] * 4 + [[0.9, 0.1]])
SLOT = torch.tensor([0, 0, 0, 0, 1])


def test_scores_are_the_sum_or_the_mean_over_pixels_and_the_sum_prefers_large_segments():
    # Sum: 3.2 + 0.1 = 3.3 beats 0.8 + 0.9 = 1.7, so the large segment gets code 0.
    # Mean: 0.8 + 0.1 = 0.9 loses to 0.2 + 0.9 = 1.1, so the single pixel takes it.
    total, mean = (association_scores(PROBABILITIES, SLOT, 2, area_aware=flag) for flag in (True, False))
    torch.testing.assert_close(total, torch.tensor([[3.2, 0.8], [0.9, 0.1]]))
    torch.testing.assert_close(mean, torch.tensor([[0.8, 0.2], [0.9, 0.1]]), atol=2e-4, rtol=0)
    assert (hungarian(total).tolist(), hungarian(mean).tolist()) == ([0, 1], [1, 0])


@pytest.mark.parametrize("seed", range(10))
def test_hungarian_equals_the_best_of_all_permutations(seed):
    scores = torch.rand(4, 6, generator=torch.Generator().manual_seed(seed))
    best = max(itertools.permutations(range(6), 4), key=lambda p: sum(scores[i, c] for i, c in enumerate(p)))
    assert hungarian(scores).tolist() == list(best)


def test_segments_beyond_the_codebook_stay_without_code():
    codes = hungarian(torch.tensor([[0.9], [0.5], [0.1]]))
    assert codes.tolist() == [0, -1, -1]


def test_pseudo_labels_follow_segments_and_skip_what_is_missing():
    slot = torch.tensor([1, 0, -1, 2])
    assert pseudo_labels(torch.tensor([5, 3, -1]), slot).tolist() == [3, 5, -1, -1]
    assert pseudo_labels(torch.zeros(0, dtype=torch.int64), torch.tensor([-1, -1])).tolist() == [-1, -1]
