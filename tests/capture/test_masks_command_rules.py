"""From proposals to one map of ids: hand cases of the filter, and the overlap rules as other programs apply them."""

import numpy as np
import pytest

from unified_lift.capture.mask_generators.hf import HfSettings
from unified_lift.capture.mask_generators.regions import RegionSettings
from unified_lift.capture.mask_generators.sam import SamSettings
from unified_lift.capture.masks import FilterSettings, Proposal, keep_best, paint
from unified_lift.errors import UserError
from unified_lift.settings.limits import check_ranges

SIZE = (6, 8)
# Half-open boxes row0, row1, col0, col1 and predicted IoU; the maps were computed with the other programs' own rules.
BOXES = [((0, 6, 0, 5), 0.8), ((1, 4, 1, 4), 0.95), ((2, 5, 3, 8), 0.85), ((0, 2, 6, 8), 0.9)]
ORACLE = {
    "score_on_top": [
        [1, 1, 1, 1, 1, 0, 4, 4],
        [1, 2, 2, 2, 1, 0, 4, 4],
        [1, 2, 2, 2, 3, 3, 3, 3],
        [1, 2, 2, 2, 3, 3, 3, 3],
        [1, 1, 1, 3, 3, 3, 3, 3],
        [1, 1, 1, 1, 1, 0, 0, 0],
    ],
    "large_eats_small": [
        [1, 1, 1, 1, 1, 0, 2, 2],
        [1, 1, 1, 1, 1, 0, 2, 2],
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0],
    ],
    "small_on_top": [
        [1, 1, 1, 1, 1, 0, 4, 4],
        [1, 3, 3, 3, 1, 0, 4, 4],
        [1, 3, 3, 3, 2, 2, 2, 2],
        [1, 3, 3, 3, 2, 2, 2, 2],
        [1, 1, 1, 2, 2, 2, 2, 2],
        [1, 1, 1, 1, 1, 0, 0, 0],
    ],
}


def box(rows_columns, score=0.9, *, size=SIZE, stability=1.0):
    row0, row1, column0, column1 = rows_columns
    mask = np.zeros(size, dtype=bool)
    mask[row0:row1, column0:column1] = True
    return Proposal(mask=mask, score=score, stability=stability)


def strip(start, stop, score=0.9, **more):
    """A mask on a line of 100 pixels: overlaps can be counted in the head."""
    return box((0, 1, start, stop), score, size=(1, 100), **more)


@pytest.mark.parametrize("rule", ORACLE)
def test_overlap_rules_agree_with_the_other_programs(rule):
    proposals = [box(rows_columns, score) for rows_columns, score in BOXES]
    ids = paint(proposals, SIZE, rule=rule, min_area=0)
    assert ids.dtype == np.int32
    expected = np.array(ORACLE[rule])
    np.testing.assert_array_equal(ids, expected)
    expected[:2, 6:] = 0  # only the last proposal has four pixels: too few
    np.testing.assert_array_equal(paint(proposals, SIZE, rule=rule, min_area=5), expected)
    assert not paint([], SIZE, rule=rule, min_area=0).any()


def test_score_on_top_discards_what_shows_a_tenth_of_itself_and_leaves_its_pixels_unlabelled():
    below, better = strip(0, 100, 0.7), strip(10, 100, 0.8)
    ids = paint([below, better], (1, 100), rule="score_on_top", min_area=0)
    np.testing.assert_array_equal(ids[0], [0] * 10 + [1] * 90)  # 10 of 100 is not more than 10 %
    ids = paint([below, strip(11, 100, 0.8)], (1, 100), rule="score_on_top", min_area=0)
    np.testing.assert_array_equal(ids[0], [1] * 11 + [2] * 89)


def test_large_eats_small_keeps_what_won_four_fifths_of_itself():
    large = strip(0, 60)
    ids = paint([large, strip(52, 92)], (1, 100), rule="large_eats_small", min_area=0)  # 32 of 40: exactly 80 %
    np.testing.assert_array_equal(ids[0], [1] * 60 + [2] * 32 + [0] * 8)
    ids = paint([large, strip(51, 91)], (1, 100), rule="large_eats_small", min_area=0)
    np.testing.assert_array_equal(ids[0], [1] * 60 + [0] * 40)


LARGE = strip(0, 60, 0.75)
A, B = strip(0, 90, 0.8), strip(0, 100, 0.9)  # IoU 0.9


@pytest.mark.parametrize(
    ("proposals", "settings", "expected"),
    [
        ([A, B], {}, [1]),  # of much overlap the better stays
        ([A, B], {"max_mask_iou": 0.9}, [0, 1]),
        ([strip(0, 90, 0.9), strip(0, 100, 0.8)], {}, [0]),
        ([strip(0, 90, 0.99, stability=0.8), strip(0, 100, 0.9, stability=0.95)], {}, [1]),  # stability times score
        ([strip(0, 50), strip(0, 50), strip(0, 50)], {}, [0]),  # of equals the first
        # A mask that goes itself still judges others: IoU 0.92, then 0.84 between neighbours, 0.84 across.
        ([strip(0, 100, 0.95), strip(8, 108, 0.9), strip(16, 100, 0.85)], {}, [0]),
        # 85/95 = 0.89 between neighbours, 0.80 across
        ([strip(0, 90, 0.95), strip(5, 95, 0.9), strip(10, 100, 0.85)], {"max_mask_iou": 0.85}, [0]),
        ([strip(0, 10, 0.7), strip(20, 30, 0.71), strip(40, 50, 0.9, stability=0.75)], {}, [1]),  # low scores go
        (
            [LARGE, strip(40, 60, 0.95)],
            {},
            [0],
        ),  # all of it inside, covering a third of the other: its score is no help
        ([LARGE, strip(43, 63, 0.95)], {}, [0]),  # 17 of 20: exactly 85 %
        ([LARGE, strip(44, 64, 0.95)], {}, [0, 1]),  # 16 of 20
        ([LARGE, strip(30, 60, 0.95)], {}, [0, 1]),  # it covers half
        ([strip(5, 5), strip(0, 50)], {}, [1]),  # empty
        ([], {}, []),
    ],
)
def test_which_masks_stay_by_hand(proposals, settings, expected):
    found = keep_best(proposals, FilterSettings(**settings))
    assert [index for index, proposal in enumerate(proposals) if any(proposal is one for one in found)] == expected


def test_overlaps_are_counted_over_all_of_a_large_photo():
    size = (600, 400)  # more pixels than are counted at once
    a, b = box((0, 600, 0, 400), 0.95, size=size), box((0, 599, 0, 400), 0.9, size=size)
    c = box((590, 600, 0, 400), 0.99, size=size)
    assert keep_best([a, b, c], FilterSettings()) == [a]


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        *((FilterSettings, {name: 1.1}) for name in ("max_mask_iou", "covered_share")),
        (FilterSettings, {"min_score": -0.1}),
        (FilterSettings, {"contained_share": float("nan")}),
        (FilterSettings, {"min_area": -1}),
        *((each, {"pred_iou_thresh": 2.0}) for each in (HfSettings, SamSettings)),
        *((each, {"points_per_side": 0}) for each in (HfSettings, SamSettings)),
        *((RegionSettings, wrong) for wrong in ({"scale": 0.0}, {"scale": float("inf")}, {"min_share": 0.5})),
    ],
)
def test_settings_out_of_range_are_named(settings, wrong):
    with pytest.raises(UserError, match=f"--{next(iter(wrong))}"):
        check_ranges(settings(**wrong))
