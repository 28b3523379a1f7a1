"""Assignment on the device against scipy: the same total, one to one, whatever the scores."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from tests.rasterizer.tolerances import ASSIGNMENT_RELATIVE
from unified_lift.kernels.assignment import hungarian


def areas(rng, count):
    """A few large segments and many small ones."""
    return rng.pareto(0.7, count) + 0.05


def softmax_scores(rng, segments, codes, *, spread):
    """Features around one direction (small spread: all want the same codes), as in an untrained model."""
    features = rng.normal(size=16) + spread * rng.normal(size=(segments, 16))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    p = np.exp(4 * features @ rng.uniform(-0.25, 0.25, (codes, 16)).T)
    return areas(rng, segments)[:, None] * p / p.sum(axis=1, keepdims=True)


SCORES = {
    "random": lambda rng, s, c: rng.random((s, c)),
    "both signs": lambda rng, s, c: rng.normal(size=(s, c)),
    "all negative": lambda rng, s, c: -5 - rng.random((s, c)),
    "integer ties": lambda rng, s, c: rng.integers(0, 4, (s, c)),
    "all equal": lambda rng, s, c: np.full((s, c), 2.5),
    "zero": lambda rng, s, c: np.zeros((s, c)),
    "rank one": lambda rng, s, c: np.outer(areas(rng, s), rng.random(c)),
    "equal rows": lambda rng, s, c: rng.random((max(1, s // 3), c))[rng.integers(0, max(1, s // 3), s)],
    "untrained": lambda rng, s, c: softmax_scores(rng, s, c, spread=0.3),
    "huge and tiny": lambda rng, s, c: 10.0 ** rng.uniform(-30, 30, (s, c)),
    "offset": lambda rng, s, c: 1e6 + rng.integers(0, 64, (s, c)),
}
SIZES = [(1, 1), (1, 7), (7, 1), (3, 3), (12, 12), (9, 40), (40, 9), (33, 70)]


def assert_best(scores, codes, no_match_cost=None):
    """Check that codes are one to one, as many as can be, and of the largest total."""
    table = np.nan_to_num(scores.double().numpy())
    codes = codes.numpy()
    given = codes >= 0
    assert len(set(codes[given])) == given.sum()
    assert codes.max(initial=-1) < table.shape[1]
    total = table[given.nonzero()[0], codes[given]].sum()
    if no_match_cost is not None:
        out = no_match_cost.double().numpy()
        total += out[~given].sum()
        table = np.concatenate([table, np.repeat(out[:, None], len(out), axis=1)], axis=1)
    else:
        assert given.sum() == min(table.shape)
    rows, columns = linear_sum_assignment(table, maximize=True)
    best = table[rows, columns]
    assert abs(total - best.sum()) <= ASSIGNMENT_RELATIVE * max(np.abs(best).sum(), np.ptp(table)), (total, best.sum())


@pytest.mark.parametrize("may_stay_out", [False, True])
@pytest.mark.parametrize("kind", SCORES)
def test_assignment_has_the_largest_total(kind, may_stay_out, kernels):
    kernels(True)
    for seed in range(4):
        for size in SIZES:
            rng = np.random.default_rng(seed)
            scores = torch.tensor(SCORES[kind](rng, *size), dtype=torch.float32)
            cost = torch.tensor(rng.choice(scores.flatten().numpy(), size[0])) if may_stay_out else None
            assert_best(scores, hungarian(scores, no_match_cost=cost), cost)


LARGE = [(300, 1024), (256, 256), (150, 100), (60, 2300), (2300, 60)]


@pytest.mark.parametrize(
    ("kind", "segments", "codes"),
    # the last is the worst case: all want the same, and about segments^2 / 2 rows are searched
    [*((kind, *size) for kind in ("random", "untrained") for size in LARGE), ("rank one", 100, 256)],
)
def test_large_assignments_have_the_largest_total(kind, segments, codes, kernels):
    kernels(True)
    scores = torch.tensor(SCORES[kind](np.random.default_rng(1), segments, codes), dtype=torch.float32)
    assert_best(scores, hungarian(scores))


def test_no_segment_or_no_code(kernels):
    kernels(True)
    assert hungarian(torch.zeros(0, 5)).shape == (0,)
    assert hungarian(torch.zeros(3, 0)).tolist() == [-1, -1, -1]
    assert hungarian(torch.zeros(3, 0), no_match_cost=torch.ones(3)).tolist() == [-1, -1, -1]


def test_nan_counts_as_zero_and_infinity_as_the_most(kernels):
    nan, inf = float("nan"), float("inf")
    kernels(True)
    assert hungarian(torch.tensor([[nan, -1.0], [-2.0, -4.0]])).tolist() == [1, 0]  # -1 - 2 beats 0 - 4
    assert hungarian(torch.tensor([[nan, 3.0], [2.0, 4.0]])).tolist() == [1, 0]
    assert hungarian(torch.tensor([[inf, 3.0], [inf, -inf]])).tolist() == [1, 0]
    assert sorted(hungarian(torch.full((3, 4), nan)).tolist())[0] >= 0


@pytest.mark.parametrize("on", [False, True])
def test_no_match_by_hand(on, kernels):
    kernels(on)
    scores = torch.tensor([[0.9, 0.1], [0.3, 0.05]])  # segment 1 would get 0.05
    assert hungarian(scores).tolist() == [0, 1]
    assert hungarian(scores, no_match_cost=torch.tensor([0.2, 0.2])).tolist() == [0, -1]
    assert hungarian(scores, no_match_cost=torch.tensor([0.2, 0.01])).tolist() == [0, 1]
    # segment 1 leaves its code to segment 0, which has no other
    scores = torch.tensor([[0.9, 0.0], [1.0, 0.0]])
    assert hungarian(scores, no_match_cost=torch.tensor([0.0, 0.8])).tolist() == [0, -1]


def test_segments_without_pixel_leave_the_codes_to_others(kernels):
    kernels(True)
    scores = torch.tensor([[0.0, 0.0], [0.3, 0.1], [0.0, 0.0], [0.9, 0.2]])
    assert hungarian(scores).tolist() == [-1, 1, -1, 0]


def test_wrong_scores_are_named():
    with pytest.raises(ValueError, match=r"scores must be \[S L\], received \[3\]"):
        hungarian(torch.zeros(3))
    with pytest.raises(ValueError, match=r"no_match_cost must be \[S\] with S = 3, received \[2\]"):
        hungarian(torch.zeros(3, 2), no_match_cost=torch.zeros(2))
    with pytest.raises(ValueError, match="no_match_cost must be torch.float32"):
        hungarian(torch.zeros(3, 2), no_match_cost=torch.zeros(3).double())


@pytest.mark.gpu
@pytest.mark.parametrize("kind", SCORES)
def test_the_largest_assignments_have_the_largest_total(kind):
    for size in ((300, 1024), (2000, 4096), (1500, 300)):
        if kind != "rank one" or size[0] == 300:  # two million searched rows take a second
            scores = torch.tensor(SCORES[kind](np.random.default_rng(3), *size), dtype=torch.float32)
            assert_best(scores, hungarian(scores.cuda()).cpu())
