import math

import pytest
import torch
from torch.nn.functional import normalize

from unified_lift.methods.unified_lift.codebook import (
    FoundObjects,
    PlacedCodes,
    codebook_from_prototypes,
    final_codes,
)
from unified_lift.methods.unified_lift.overlaps import (
    Overlaps,
    SharedPixels,
    cohesion,
    least_evidence,
    merged_codes,
    one_background,
    purity,
)


def found(prototypes, weights, **limits):
    """Codes of prototypes that all lie at one place."""
    here = PlacedCodes(prototypes, torch.zeros(len(prototypes), 3), torch.ones(len(prototypes)))
    return codebook_from_prototypes(here, weights, **limits).codes


def bundle(direction, count, noise, seed):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.tensor(direction) + noise * torch.randn(count, 3, generator=generator), dim=1)


def test_codes_appear_at_the_modes_largest_first():
    prototypes = torch.cat([bundle([1.0, 0, 0], 6, 0.05, 0), bundle([0, 1.0, 0], 9, 0.05, 1)])
    codes = found(prototypes, torch.ones(15), min_cosine=0.8, min_members=4)
    assert codes.shape == (2, 3)
    torch.testing.assert_close(codes, torch.tensor([[0.0, 1, 0], [1, 0, 0]]), atol=0.1, rtol=0)
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(2))


def test_rare_prototypes_open_no_code():
    prototypes = torch.cat([bundle([1.0, 0, 0], 6, 0.01, 0), bundle([0, 0, 1.0], 3, 0.01, 1)])
    assert len(found(prototypes, torch.ones(9), min_cosine=0.8, min_members=4)) == 1
    assert len(found(prototypes, torch.ones(9), min_cosine=0.8, min_members=3)) == 2


def test_number_of_codes_can_be_bounded_and_empty_input_gives_none():
    prototypes = torch.eye(3).repeat_interleave(4, dim=0)
    assert len(found(prototypes, torch.ones(12), min_cosine=0.9, min_members=2, max_codes=2)) == 2
    assert found(torch.zeros(0, 3), torch.zeros(0), min_cosine=0.9, min_members=1).shape == (0, 3)


@pytest.mark.parametrize("width", [0.0, 9.0])  # all at one place; spread, so that few blocks touch
def test_comparing_few_prototypes_at_a_time_changes_nothing(monkeypatch, width):
    generator = torch.Generator().manual_seed(0)
    codes = normalize(torch.randn(60, 3, generator=generator), dim=1)
    centres = width * torch.rand(60, 3, generator=generator)
    prototypes = PlacedCodes(codes, centres, 0.5 + torch.rand(60, generator=generator))

    def computed():
        return codebook_from_prototypes(prototypes, torch.ones(60), min_cosine=0.8, min_members=3)

    expected, touching = computed(), prototypes.touching()
    monkeypatch.setattr("unified_lift.methods.unified_lift.codebook._CHUNK", 16)
    assert len(expected.codes) > 3
    for actual, wanted in zip(computed(), expected, strict=True):
        torch.testing.assert_close(actual, wanted)
    assert prototypes.touching() == touching
    assert (sum(map(len, touching)) == 3600) == (width == 0)


def test_weights_pull_the_code():
    prototypes = normalize(torch.tensor([[1.0, 0.0], [1.0, 0.4]]), dim=1)
    code = found(prototypes, torch.tensor([1.0, 0.0]), min_cosine=0.5, min_members=2)
    torch.testing.assert_close(code, torch.tensor([[1.0, 0.0]]))


def test_alike_prototypes_of_two_places_are_two_codes():
    # nine of one object seen from around it, four of a twin beside it: spheres of reach 2 * 0.2 + 0.1 touch below 0.9
    around = torch.tensor([[0.4 * x, 0.4 * y, 0.0] for x in (-1, 0, 1) for y in (-1, 0, 1)])
    centres = torch.cat([around, torch.tensor([[1.6, 0.0, 0.0]]).repeat(4, 1)]) + 1e4
    prototypes = PlacedCodes(bundle([1.0, 0, 0], 13, 0.01, 0), centres, torch.full((13,), 0.2))
    codes = codebook_from_prototypes(prototypes, torch.ones(13), min_cosine=0.9, min_members=3)
    torch.testing.assert_close(codes.centres[:, 0], torch.tensor([1e4, 1e4 + 1.6]), atol=2e-3, rtol=0)
    # mean of squares: 6 of 9 centres are 0.4 away along x, as many along y
    torch.testing.assert_close(codes.spread, torch.tensor([math.sqrt(0.04 + 2 * 0.16 * 6 / 9), 0.2]), atol=2e-3, rtol=0)
    assert codes.places()[1, 3] < 1.0


@pytest.mark.parametrize(("count", "dim"), [(3, 16), (128, 16), (129, 32), (400, 32)])
def test_many_codes_are_drawn_anew_so_that_no_third_lies_between_two(count, dim):
    learnt = normalize(torch.randn(count, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    codes = final_codes(3 * learnt)
    assert codes.shape == (count, dim)
    if dim == 16:
        return torch.testing.assert_close(codes, learnt)
    halfway = normalize(codes[:50] + codes[50:100], dim=1) @ codes.T
    assert torch.equal(
        halfway.topk(2, dim=1).indices.sort(dim=1).values, torch.arange(50)[:, None] + torch.tensor([0, 50])
    )


def overlaps_of(*views, has_zero=False):
    """Each view: rows of pixels [S][L]; the first may be id 0."""
    tables = [torch.as_tensor(view) for view in views]
    shared = [SharedPixels(*(t > 0).nonzero(as_tuple=True), t[t > 0], len(t), has_zero) for t in tables]
    return Overlaps.of_views(shared)


def test_overlaps_are_the_entries_that_are_not_zero():
    found = overlaps_of([[0, 7], [2, 0]], [[0, 0]], [[0, 1]])
    assert found.segment.tolist() == [0, 1, 4]  # two segments a view
    assert found.shape == (3, 2)
    assert found.code.tolist() == [1, 0, 1]
    assert found.pixels.tolist() == [7, 2, 1]


def at(*degrees):
    return [[math.cos(math.radians(each)), math.sin(math.radians(each))] for each in degrees]


WHOLE, APART = [[50, 30]], [[50, 0], [0, 30]]  # one mask holds both codes; each has a mask of its own
ALIKE, CROSSED = [[1.0, 0.0], [1.0, 0.5]], [[1.0, 0.0], [0.0, 1.0]]
HALF, MOST = (WHOLE, APART) * 4, (WHOLE,) * 7 + (APART,)
SCATTERED = [[50, 10], [0, 11], [0, 12]]  # no segment holds half of the second code
# Codes 0 and 1 are together always; 2 is with them wherever all are seen, but is seen with each alone only twice.
THREE, PARTS = [[1.0, 0.0], [1.0, 0.3], [1.0, -0.3]], [[[9, 9, 0]]] * 3 + [[[9, 0, 9]]] * 2 + [[[0, 9, 9]]] * 2


@pytest.mark.parametrize(
    ("codes", "views", "options", "expected"),
    [
        # codes that share their segment in enough views are one object: 2 of 3
        (ALIKE, (WHOLE, WHOLE, APART), {}, [0, 0]),
        (ALIKE, (WHOLE, APART, APART), {}, [0, 1]),
        (ALIKE, (WHOLE, WHOLE, APART), {"min_cooccurrence": 0.7}, [0, 1]),
        # the more alike codes are the fewer views must show them together
        (at(0, 50), HALF, {}, [0, 0]),  # 0.5 + 0.64 = 1.14
        (at(0, 55), HALF, {}, [0, 1]),  # 0.5 + 0.57 = 1.07
        (at(0, 75), MOST, {}, [0, 0]),  # 0.875 + 0.26 = 1.13
        (at(0, 80), MOST, {}, [0, 1]),  # 0.875 + 0.17 = 1.05
        # twins side by side stay two however alike, and so do codes that are not alike or seldom seen together
        (at(0, 0), (APART, APART, APART, WHOLE), {}, [0, 1]),
        (CROSSED, (WHOLE, WHOLE, WHOLE), {}, [0, 1]),
        (CROSSED, (WHOLE, WHOLE, WHOLE), {"min_score": 1.0}, [0, 0]),
        (ALIKE, (WHOLE, WHOLE), {}, [0, 1]),
        (ALIKE, (WHOLE, WHOLE), {"min_views": 2}, [0, 0]),
        # a code spread over segments or too small has no home
        (ALIKE, [SCATTERED] * 5, {}, [0, 1]),
        (ALIKE, [[[50, 4]]] * 5, {}, [0, 0]),
        (ALIKE, [[[50, 4]]] * 5, {"min_pixels": 4}, [0, 1]),
        # an object in three parts becomes one step by step
        (THREE, PARTS, {}, [0, 0, 0]),
        (THREE, PARTS[:5], {}, [0, 0, 1]),
        # Of equal ratios the pair seen in more views is merged first. Code 1 lies between 0 and 2, which are not alike;
        # in every view all that is seen lies in one segment. Code 0 is seen in three views, 1 and 2 in ten. Once 1 is
        # one with 2, it is too far from 0: 1 + cos 40 = 1.77, 1 + cos 60 = 1.5.
        (at(0, 40, 80), [[[9, 9, 9]]] * 3 + [[[0, 9, 9]]] * 7, {"min_score": 1.7}, [0, 1, 1]),
        # numbered in the order of their largest codes: 0 and 2 are one, and code 2 is its larger part
        ([*CROSSED, [1.0, 0.1]], [[[3, 0, 90], [0, 8, 0]]] * 3, {}, [1, 0, 1]),
        ([[0.0, 1.0]], [[[4]]], {}, [0]),
    ],
)
def test_codes_of_one_object_are_merged(codes, views, options, expected):
    settings = dict(min_cooccurrence=0.4, min_score=1.1, min_pixels=1) | options
    assert merged_codes(normalize(torch.tensor(codes), dim=1), overlaps_of(*views), **settings).tolist() == expected


@pytest.mark.parametrize(
    ("degrees", "views", "touching", "expected"),
    [
        # two sides of an object, seen together twice or never
        ((0, 30), (WHOLE, WHOLE), True, [0, 0]),
        ((0, 30), ([[50, 0]], [[0, 30]]), True, [0, 0]),
        ((0, 30), (WHOLE, APART), True, [0, 1]),  # a view tells them apart
        ((0, 40), (WHOLE, WHOLE), True, [0, 1]),  # cos 40 = 0.77
        ((0, 30), (WHOLE, WHOLE), False, [0, 1]),  # at two places
        ((0, 30, 65), ([[50, 0, 0]], [[0, 30, 0]], [[0, 0, 9]]), True, [0, 0, 1]),  # 65 is too far from the mean of two
    ],
)
def test_sides_of_an_object_that_are_seldom_seen_together_are_one(degrees, views, touching, expected):
    codes, count = torch.tensor(at(*degrees)), len(degrees)
    settings = dict(min_cooccurrence=0.35, min_score=1.1, min_pixels=1)
    touch = [set(range(count))] * count if touching else None
    assert merged_codes(codes, overlaps_of(*views), touching=touch, **settings).tolist() == expected


def test_parts_that_touch_are_joined_with_a_larger_one_that_they_do_not_touch():
    views = [[[9, 9, 0]]] * 3 + [[[9, 0, 90]]] * 2 + [[[0, 9, 90]]] * 2
    codes, settings = normalize(torch.tensor(THREE), dim=1), dict(min_cooccurrence=0.4, min_score=1.1, min_pixels=1)
    assert merged_codes(codes, overlaps_of(*views), touching=[{1}, {0}, set()], **settings).tolist() == [0, 0, 0]


def test_no_code_stays_none():
    empty = overlaps_of([[]])
    settings = dict(min_cooccurrence=0.6, min_score=1.1, min_pixels=1)
    assert merged_codes(torch.zeros(0, 3), empty, **settings).shape == (0,)
    assert len(purity(empty, torch.zeros(0, dtype=torch.int64))) == 0


def test_joining_agrees_with_a_slow_reference():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        codes = normalize(torch.randn(7, 3, generator=generator), dim=1)
        views = [torch.randint(0, 9, (4, 7), generator=generator).float() for _ in range(6)]
        settings = dict(min_cooccurrence=0.3, min_score=0.6, min_pixels=3, min_views=2)
        got = merged_codes(codes, overlaps_of(*views), **settings)
        assert got.tolist() == slow_merged(codes, views, **settings)


def slow_merged(codes, views, *, min_cooccurrence, min_score, min_pixels, min_views):
    groups = {index: [index] for index in range(len(codes))}
    codes = {index: code for index, code in enumerate(codes)}

    def home(view, members):
        held = view[:, members].sum(dim=1)
        return int(held.argmax()) if held.sum() > min_pixels and 2 * held.max() >= held.sum() else None

    def score(a, b):
        homes = [(home(view, groups[a]), home(view, groups[b])) for view in views]
        both = [pair for pair in homes if None not in pair]
        share = sum(x == y for x, y in both) / max(len(both), 1)
        if len(both) < min_views or share < min_cooccurrence or share + codes[a] @ codes[b] < min_score:
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


def test_purity_is_the_share_of_pixels_in_segments_of_ones_own():
    overlaps = overlaps_of([[90, 10, 0], [0, 5, 20]], [[100, 0, 0], [0, 30, 0]])
    torch.testing.assert_close(purity(overlaps, torch.tensor([0, 1, 2])), torch.tensor([1.0, 30 / 45, 1.0]))
    # the last two are one object
    torch.testing.assert_close(purity(overlaps, torch.tensor([0, 1, 1])), torch.tensor([1.0, 55 / 65]))


@pytest.mark.parametrize(("weight", "against"), [(0.25, 8 + 2.5), (0.0, 8)])
def test_pixels_hidden_in_the_background_count_less_against_an_object(weight, against):
    overlaps = overlaps_of([[90, 10, 0], [0, 8, 20]], [[100, 0, 0], [0, 30, 0]])
    share = purity(overlaps, torch.arange(3), background_weight=weight)
    torch.testing.assert_close(share, torch.tensor([1.0, 30 / (30 + against), 1.0]))


@pytest.mark.parametrize(
    ("missed", "count", "has_zero", "expected"),
    [
        # Of 90 pixels, so many lie in no mask; the others lie in a mask of the object's own. The usual: 0.
        ([0, 0, 0, 29, 31], 1, True, [0, 1, 2, 3, 4, 0]),  # 31/90 > 0.5 x 59/90, 29/90 < 0.5 x 61/90
        ([0, 0, 0, 29, 31], 1, False, [0, 1, 2, 3, 4, 5]),
        # half of every object is missed: that is usual, and only 75 of 90 are more by half of 15
        ([45, 45, 45, 45, 75], 30, True, [0, 1, 2, 3, 4, 0]),
        ([45, 45, 45, 45, 58], 300, True, [0, 1, 2, 3, 4, 5]),
        # 70 of 90 are more by half of 20, but may be chance: twice sqrt(0.25 / 30) = 0.18, of 300 views 0.06
        ([45, 45, 45, 45, 70], 30, True, [0, 1, 2, 3, 4, 5]),
        ([45, 45, 45, 45, 70], 300, True, [0, 1, 2, 3, 4, 0]),
    ],
)
def test_what_lies_in_no_mask_more_than_the_usual_object_does_is_background(missed, count, has_zero, expected):
    claimed = torch.diag(torch.tensor([0, *(90 - each for each in missed)]))[1:]
    views = [torch.cat([torch.tensor([[900, *missed]]), claimed]).tolist()] * count
    assert one_background(overlaps_of(*views, has_zero=has_zero), torch.arange(6)).tolist() == expected


def test_masks_that_another_object_holds_are_not_ones_own():
    views = [[[900, 30, 0, 0], [0, 60, 0, 0], [0, 0, 50, 0], [0, 0, 0, 50]]]
    assert one_background(overlaps_of(*views, has_zero=True), torch.arange(4)).tolist() == [0, 1, 2, 3]
    views[0][2] = [0, 0, 50, 0]
    views[0][1] = [0, 40, 0, 70]  # code 3 holds most of the mask that 1 lies in
    views[0][0] = [900, 10, 0, 0]
    assert one_background(overlaps_of(*views, has_zero=True), torch.arange(4)).tolist() == [0, 0, 1, 2]
    assert len(one_background(overlaps_of([[]], has_zero=True), torch.zeros(0, dtype=torch.int64))) == 0


def test_cohesion_is_the_chance_that_two_pixels_of_an_object_share_a_segment():
    # object 0 is the background; object 1 whole, whole, cut 30 : 10; object 2 always cut in halves; object 3 seen once
    views = [[[900, 0, 0, 0], [0, 40, 0, 0], [0, 0, 20, 40], [0, 0, 20, 0]]] * 2
    views += [[[900, 0, 0, 0], [0, 30, 0, 0], [0, 10, 20, 0], [0, 0, 20, 0]]]
    overlaps = overlaps_of(*views)
    assert cohesion(overlaps, torch.arange(4)) == pytest.approx(0.5)  # the lower of the two in the middle
    assert cohesion(overlaps, torch.tensor([0, 1, 0, 0])) == pytest.approx((1 + 1 + 0.75**2 + 0.25**2) / 3)
    assert cohesion(overlaps, torch.tensor([0, 0, 0, 0])) == 1.0
    assert [least_evidence(1.4, whole) for whole in (1, 0.83, 0.78, 0.2)] == pytest.approx([1.4, 1.4, 1.25, 1.1])


def test_the_code_of_an_object_is_that_of_its_largest_piece():
    pieces = PlacedCodes(torch.eye(5), torch.zeros(5, 3), torch.ones(5))
    found = FoundObjects(pieces, torch.tensor([1, 0, 1, 0, 2]), torch.tensor([3.0, 5, 9, 4, 1]))
    assert torch.equal(found.codebook(), torch.eye(5)[[1, 2, 4]])
