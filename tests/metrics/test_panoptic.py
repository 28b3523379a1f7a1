import json
import time
from pathlib import Path

import numpy as np
import pytest

from unified_lift.metrics.panoptic import PanopticScores, largest_area_background, pq_scene

ORACLES = json.loads((Path(__file__).parent / "oracles.json").read_text())["panoptic"]
MORE = ORACLES["more"]
TRUE = np.array(ORACLES["scene"]["target_inst"])


def binary(pred: np.ndarray, true: np.ndarray, *, background: int) -> PanopticScores:
    return pq_scene(pred != background, pred, true != 0, true, things=[1], stuff=[0])


def check(scores: PanopticScores, case: dict) -> None:
    assert list(scores.per_class) == case["classes_used"]
    assert list(scores.dropped) == case["dropped"]
    for label, expected in case["per_class"].items():
        actual = vars(scores.per_class[int(label)])
        assert actual == pytest.approx(expected, abs=1e-6), f"class {label}"
    assert [scores.pq, scores.sq, scores.rq] == pytest.approx([case["pq"], case["sq"], case["rq"]], abs=1e-6)


@pytest.mark.parametrize("name", ["scene", "swapped"])
def test_two_views_equal_the_oracles(name):
    pred = np.array(ORACLES[name]["pred_inst"])
    check(binary(pred, TRUE, background=8), ORACLES[name])


def test_all_background_scores_half_of_its_share_and_a_perfect_prediction_one():
    check(binary(np.full_like(TRUE, 8), TRUE, background=8), MORE["all_background"])
    check(binary(TRUE, TRUE, background=0), MORE["perfect"])


@pytest.mark.parametrize("name", ["fg_below_half_percent", "fg_exactly_half_percent"])
def test_small_classes_are_dropped_below_half_a_percent_only(name):
    case = MORE[name]
    true, pred = np.zeros((2, *case["hw"]), dtype=np.int32)
    for ids, boxes in ((true, case["target_boxes"]), (pred, case["pred_boxes"])):
        for row0, row1, col0, col1 in boxes:
            ids[row0:row1, col0:col1] = 1
    check(binary(pred, true, background=0), case)


def test_background_is_the_largest_area_over_all_views():
    case = MORE["largest_area_scene_vs_view"]
    views = [np.array(view) for view in case["pred_inst"]]
    assert largest_area_background(views) == case["scene"]
    assert [largest_area_background([view]) for view in views] == case["per_view"]
    assert largest_area_background([np.array([[5, 3], [3, 5]])]) == 3
    assert largest_area_background([np.array(ORACLES["scene"]["pred_inst"])]) == ORACLES["scene"]["background"]
    with pytest.raises(ValueError, match="no predicted pixels"):
        largest_area_background([])


def brute_force(pred_sem, pred_ids, true_sem, true_ids, things, stuff, min_share):
    """PQ per class by sets of pixel indices, step by step as the definition reads."""
    n = len(pred_sem)
    used = []
    for c in [*things, *stuff]:
        p, t = sum(s == c for s in pred_sem), sum(s == c for s in true_sem)
        if (p or t) and not 0 < p / n < min_share and not 0 < t / n < min_share:
            used.append(c)
    segments = []
    for sem, ids in ((pred_sem, pred_ids), (true_sem, true_ids)):
        side: dict = {}
        for pixel in range(n):
            c = sem[pixel]
            key = (c, 0 if c in stuff else ids[pixel]) if c in used else "void"
            side.setdefault(key, set()).add(pixel)
        segments.append((side, side.pop("void", set())))
    (preds, pred_void), (trues, true_void) = segments
    result = {}
    for c in used:
        total, found_p, found_t = 0.0, set(), set()
        for pk, p in preds.items():
            for tk, t in trues.items():
                if pk[0] == tk[0] == c:
                    inter = len(p & t)
                    iou = inter / (len(p) - len(p & true_void) + len(t) - len(t & pred_void) - inter)
                    if iou > 0.5:
                        total += iou
                        found_p.add(pk)
                        found_t.add(tk)
        tp = len(found_p)
        fp = sum(k[0] == c and k not in found_p and len(p & true_void) <= 0.5 * len(p) for k, p in preds.items())
        fn = sum(k[0] == c and k not in found_t and len(t & pred_void) <= 0.5 * len(t) for k, t in trues.items())
        result[c] = (total, tp, fp, fn)
    return result


@pytest.mark.parametrize("seed", range(12))
def test_scores_equal_loops_over_pixels(seed):
    rng = np.random.default_rng(seed)
    n = 60
    true_sem, true_ids = rng.integers(0, 4, n // 6).repeat(6), rng.integers(-1, 3, n // 6).repeat(6)
    flip = rng.random(n) < 0.25
    pred_sem = np.where(flip, rng.integers(0, 6, n), true_sem)  # 4 and 5 are unknown classes
    pred_ids = np.where(rng.random(n) < 0.2, 7, true_ids + 10)
    expected = brute_force(pred_sem, pred_ids, true_sem, true_ids, [1, 2], [0, 3], 0.15)
    scores = pq_scene(pred_sem, pred_ids, true_sem, true_ids, things=[1, 2], stuff=[0, 3], min_share=0.15)
    assert expected.keys() == scores.per_class.keys()
    for label, (total, tp, fp, fn) in expected.items():
        actual = scores.per_class[label]
        assert (actual.tp, actual.fp, actual.fn) == (tp, fp, fn)
        assert actual.iou == pytest.approx(total)


@pytest.mark.parametrize(("num_void", "missed"), [(5, 1), (6, 0)])
def test_a_segment_more_than_half_on_void_is_forgiven(num_void, missed):
    segment, other, ids = np.repeat([1, 0], 10), np.zeros(20, int), np.ones(20, int)
    other[:num_void] = 9  # a class that is not scored
    made_up = pq_scene(segment, ids, other, ids, things=[1], stuff=[0]).per_class[1]
    lost = pq_scene(other, ids, segment, ids, things=[1], stuff=[0]).per_class[1]
    assert (made_up.fp, lost.fn) == (missed, missed)


def test_large_scenes_take_little_time():
    rng = np.random.default_rng(0)
    true = np.kron(rng.integers(0, 400, (24, 48, 48)), np.ones((8, 8), int)).astype(np.int32)
    pred = np.kron(rng.integers(0, 400, (24, 96, 96)), np.ones((4, 4), int)).astype(np.int32)
    start = time.process_time()
    binary(pred, true, background=largest_area_background(pred))
    assert time.process_time() - start < 2


def test_bad_inputs_are_refused():
    ids = np.ones((2, 2), dtype=np.int32)
    with pytest.raises(ValueError, match="one shape"):
        pq_scene(ids, ids, ids, ids[:1], things=[1], stuff=[0])
    with pytest.raises(ValueError, match="no class"):
        pq_scene(ids, ids, ids, ids, things=[5], stuff=[6])
