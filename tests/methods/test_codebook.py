import math

import torch
from torch.nn.functional import normalize

from unified_lift.methods.codebook import Overlaps, codebook_from_prototypes, joined_codes, random_codebook, support


def bundle(direction, count, noise, seed):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.tensor(direction) + noise * torch.randn(count, 3, generator=generator), dim=1)


def test_codes_appear_at_the_modes_largest_first():
    prototypes = torch.cat([bundle([1.0, 0, 0], 6, 0.05, 0), bundle([0, 1.0, 0], 9, 0.05, 1)])
    codes = codebook_from_prototypes(prototypes, torch.ones(15), min_cosine=0.8, min_members=4)
    assert codes.shape == (2, 3)
    torch.testing.assert_close(codes, torch.tensor([[0.0, 1, 0], [1, 0, 0]]), atol=0.1, rtol=0)
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(2))


def test_rare_prototypes_open_no_code():
    prototypes = torch.cat([bundle([1.0, 0, 0], 6, 0.01, 0), bundle([0, 0, 1.0], 3, 0.01, 1)])
    assert len(codebook_from_prototypes(prototypes, torch.ones(9), min_cosine=0.8, min_members=4)) == 1
    assert len(codebook_from_prototypes(prototypes, torch.ones(9), min_cosine=0.8, min_members=3)) == 2


def test_number_of_codes_can_be_bounded_and_empty_input_gives_none():
    prototypes = torch.eye(3).repeat_interleave(4, dim=0)
    assert len(codebook_from_prototypes(prototypes, torch.ones(12), min_cosine=0.9, min_members=2, max_codes=2)) == 2
    assert codebook_from_prototypes(torch.zeros(0, 3), torch.zeros(0), min_cosine=0.9, min_members=1).shape == (0, 3)


def test_comparing_few_prototypes_at_a_time_changes_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    prototypes = normalize(torch.randn(60, 3, generator=generator), dim=1)
    expected = codebook_from_prototypes(prototypes, torch.ones(60), min_cosine=0.8, min_members=3)
    monkeypatch.setattr("unified_lift.methods.codebook._CHUNK", 4)
    actual = codebook_from_prototypes(prototypes, torch.ones(60), min_cosine=0.8, min_members=3)
    assert len(expected) > 3
    torch.testing.assert_close(actual, expected)


def test_weights_pull_the_code():
    prototypes = normalize(torch.tensor([[1.0, 0.0], [1.0, 0.4]]), dim=1)
    code = codebook_from_prototypes(prototypes, torch.tensor([1.0, 0.0]), min_cosine=0.5, min_members=2)
    torch.testing.assert_close(code, torch.tensor([[1.0, 0.0]]))


def test_random_rows_lie_in_the_released_range():
    rows = random_codebook(256, 16, generator=torch.Generator().manual_seed(0))
    assert rows.abs().max() <= 0.25
    assert 0.55 < rows.norm(dim=1).mean() < 0.6  # about 0.58


def overlaps_of(*views):
    """Each view: rows of pixels [S][L]."""
    return Overlaps.of_views(torch.tensor(view) for view in views)


def joined(codes, *views, min_together=0.4, min_evidence=1.1, min_pixels=1, **more):
    codes = normalize(torch.tensor(codes), dim=1)
    settings = dict(min_together=min_together, min_evidence=min_evidence, min_pixels=min_pixels) | more
    return joined_codes(codes, overlaps_of(*views), **settings).tolist()


def test_overlaps_are_the_entries_that_are_not_zero():
    found = overlaps_of([[0, 7], [2, 0]], [[0, 0]], [[0, 1]])
    assert found.view.tolist() == [0, 0, 2]
    assert found.segment.tolist() == [0, 1, 0]
    assert found.code.tolist() == [1, 0, 1]
    assert found.pixels.tolist() == [7, 2, 1]


WHOLE, APART = [[50, 30]], [[50, 0], [0, 30]]  # one mask holds both codes; each has a mask of its own
ALIKE = [[1.0, 0.0], [1.0, 0.5]]


def test_codes_that_share_their_segment_in_enough_views_are_one_object():
    assert joined(ALIKE, WHOLE, WHOLE, APART) == [0, 0]  # 2 of 3
    assert joined(ALIKE, WHOLE, APART, APART) == [0, 1]
    assert joined(ALIKE, WHOLE, WHOLE, APART, min_together=0.7) == [0, 1]


def test_the_more_alike_codes_are_the_fewer_views_must_show_them_together():
    def at(degrees):
        return [[1.0, 0.0], [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]]

    half, most = (WHOLE, APART) * 4, (WHOLE,) * 7 + (APART,)
    assert joined(at(50), *half) == [0, 0]  # 0.5 + 0.64 = 1.14
    assert joined(at(55), *half) == [0, 1]  # 0.5 + 0.57 = 1.07
    assert joined(at(75), *most) == [0, 0]  # 0.875 + 0.26 = 1.13
    assert joined(at(80), *most) == [0, 1]  # 0.875 + 0.17 = 1.05


def test_twins_side_by_side_stay_two_however_alike():
    assert joined([[1.0, 0.0], [1.0, 0.0]], APART, APART, APART, WHOLE) == [0, 1]


def test_codes_that_are_not_alike_stay_two_and_so_do_those_seldom_seen_together():
    assert joined([[1.0, 0.0], [0.0, 1.0]], WHOLE, WHOLE, WHOLE) == [0, 1]
    assert joined([[1.0, 0.0], [0.0, 1.0]], WHOLE, WHOLE, WHOLE, min_evidence=1.0) == [0, 0]
    assert joined(ALIKE, WHOLE, WHOLE) == [0, 1]
    assert joined(ALIKE, WHOLE, WHOLE, min_views=2) == [0, 0]


def test_a_code_spread_over_segments_or_too_small_has_no_home():
    scattered = [[50, 10], [0, 11], [0, 12]]  # no segment holds half of the second code
    assert joined(ALIKE, *[scattered] * 5) == [0, 1]
    assert joined(ALIKE, *[[[50, 4]]] * 5) == [0, 0]
    assert joined(ALIKE, *[[[50, 4]]] * 5, min_pixels=4) == [0, 1]


def test_an_object_in_three_parts_becomes_one_step_by_step():
    # Codes 0 and 1 are together always; 2 is with them wherever all are seen, but is seen with each alone only twice.
    codes = [[1.0, 0.0], [1.0, 0.3], [1.0, -0.3]]
    views = [[[9, 9, 0]], [[9, 9, 0]], [[9, 9, 0]], [[9, 0, 9]], [[9, 0, 9]], [[0, 9, 9]], [[0, 9, 9]]]
    assert joined(codes, *views) == [0, 0, 0]
    assert joined(codes, *views[:5]) == [0, 0, 2 - 1]


def test_objects_are_numbered_in_the_order_of_their_largest_codes():
    codes = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]]
    views = [[[3, 0, 90], [0, 8, 0]]] * 3  # codes 0 and 2 are one, and code 2 is its larger part
    assert joined(codes, *views) == [1, 0, 1]


def test_no_code_or_one_stays_as_it_is():
    empty = Overlaps(*(torch.zeros(0, dtype=torch.int64) for _ in range(3)), torch.zeros(0))
    settings = dict(min_together=0.6, min_evidence=1.1, min_pixels=1)
    assert joined_codes(torch.zeros(0, 3), empty, **settings).shape == (0,)
    assert joined([[0.0, 1.0]], [[4]]) == [0]
    assert [len(part) for part in support(empty, torch.zeros(0, dtype=torch.int64))] == [0, 0]


def test_joining_agrees_with_a_slow_reference():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        codes = normalize(torch.randn(7, 3, generator=generator), dim=1)
        views = [torch.randint(0, 9, (4, 7), generator=generator).float() for _ in range(6)]
        settings = dict(min_together=0.3, min_evidence=0.6, min_pixels=3, min_views=2)
        got = joined_codes(codes, Overlaps.of_views(views), **settings)
        assert got.tolist() == slow_joined(codes, views, **settings)


def slow_joined(codes, views, *, min_together, min_evidence, min_pixels, min_views):
    groups = {index: [index] for index in range(len(codes))}
    codes = {index: code for index, code in enumerate(codes)}

    def home(view, members):
        held = view[:, members].sum(dim=1)
        return int(held.argmax()) if held.sum() > min_pixels and 2 * held.max() >= held.sum() else None

    def score(a, b):
        homes = [(home(view, groups[a]), home(view, groups[b])) for view in views]
        both = [pair for pair in homes if None not in pair]
        share = sum(x == y for x, y in both) / max(len(both), 1)
        if len(both) < min_views or share < min_together or share + codes[a] @ codes[b] < min_evidence:
            return -1.0
        return share * (1 - 1 / (1 + len(both)))

    def size(members):
        return sum(float(view[:, members].sum()) for view in views)

    while True:
        best, a, b = max(((score(a, b), -a, -b) for a in groups for b in groups if a < b), default=(-1.0, 0, 0))
        if best < 0:
            break
        a, b = -a, -b
        if size(groups[a]) < size(groups[b]):
            a, b = b, a
        codes[a] = normalize(codes[a] * size(groups[a]) + codes[b] * size(groups[b]), dim=0)
        groups[a] = groups[a] + groups.pop(b)
    order = sorted(groups)
    return [next(order.index(key) for key in order if code in groups[key]) for code in range(len(views[0][0]))]


def test_support_is_the_share_of_pixels_in_segments_of_ones_own():
    overlaps = overlaps_of([[90, 10, 0], [0, 5, 20]], [[100, 0, 0], [0, 30, 0]])
    share, pixels = support(overlaps, torch.tensor([0, 1, 2]))
    assert pixels.tolist() == [190, 45, 20]
    torch.testing.assert_close(share, torch.tensor([1.0, 30 / 45, 1.0]))
    share, pixels = support(overlaps, torch.tensor([0, 1, 1]))  # the last two are one object
    assert pixels.tolist() == [190, 65]
    torch.testing.assert_close(share, torch.tensor([1.0, 55 / 65]))


def test_pixels_hidden_in_the_background_count_less_against_an_object():
    overlaps = overlaps_of([[90, 10, 0], [0, 8, 20]], [[100, 0, 0], [0, 30, 0]])
    share, _ = support(overlaps, torch.arange(3), background_weight=0.25)
    torch.testing.assert_close(share, torch.tensor([1.0, 30 / (30 + 8 + 2.5), 1.0]))
    share, _ = support(overlaps, torch.arange(3), background_weight=0.0)
    torch.testing.assert_close(share, torch.tensor([1.0, 30 / 38, 1.0]))
