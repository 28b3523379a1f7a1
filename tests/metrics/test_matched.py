import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from unified_lift.metrics import matched
from unified_lift.metrics.matched import MatchedScores, iou_from_counts, match_pairs, matched_scores
from unified_lift.ops.overlaps import overlap_table

ORACLES = json.loads((Path(__file__).parent / "oracles.json").read_text())["matched"]
VIEWS = ORACLES["views"]


def check(scores: MatchedScores, case: dict, true_ids: list[int], pred_ids: list[int]) -> None:
    assert scores.pairs == tuple((true_ids[t], pred_ids[p]) for t, p in case["pairs"])
    assert scores.pair_iou == pytest.approx(case["pair_iou"], abs=1e-6)
    numbers = (scores.miou, scores.precision, scores.recall, scores.f1, scores.tp)
    expected = (case[name] for name in ("miou_over_gt", "precision", "recall", "fscore", "tp"))
    assert numbers == pytest.approx(tuple(expected), abs=1e-6)


def match_matrix(matrix: np.ndarray, true_ids: np.ndarray, pred_ids: np.ndarray) -> MatchedScores:
    true, pred = np.nonzero(matrix)
    return match_pairs(true, pred, matrix[true, pred], true_ids, pred_ids)


def views(case: dict) -> tuple[np.ndarray, np.ndarray]:
    return np.array(case["pred"], dtype=np.int32), np.array(case["gt"], dtype=np.int32)


@pytest.mark.parametrize(
    ("profile", "kept", "case", "ids"),
    [
        ("scene", "scene", ORACLES["without_zero"], VIEWS),
        ("scene_masked", "scene_masked", ORACLES["without_zero"], VIEWS),
        ("viewmean", "view_mean", ORACLES["with_zero"], VIEWS),
        ("viewmean", "view_mean", ORACLES["disagree"], ORACLES["disagree"]),  # blind to an id used twice
    ],
)
def test_every_profile_equals_the_oracle(profile, kept, case, ids):
    pred_ids = case[kept].get("pred_ids", case["pred_ids"])
    check(matched_scores(*views(ids), profile=profile), case[kept], case["gt_ids"], pred_ids)


def test_iou_of_every_pair_equals_the_oracle():
    case, (pred, true) = ORACLES["without_zero"], views(VIEWS)
    _, true_ids, counts = overlap_table(pred, true)
    kept = np.isin(true_ids, case["gt_ids"])
    np.testing.assert_allclose(iou_from_counts(counts).T[kept], case["scene"]["M"], atol=1e-6)


def test_scene_profile_punishes_an_id_used_twice():
    # The oracle keeps true id 0; numbering it 99 keeps it here too, as the last row.
    case = ORACLES["disagree"]
    pred, true = views(case)
    scores = matched_scores(pred, np.where(true == 0, 99, true))
    expected = {
        pair[0] or 99: (case["pred_ids"][pair[1]], iou)
        for pair, iou in zip(case["scene"]["pairs"], case["scene"]["pair_iou"], strict=True)
    }
    assert {t: p for t, p in scores.pairs} == {t: p for t, (p, _) in expected.items()}
    assert scores.miou == pytest.approx(case["scene"]["miou_over_gt"], abs=1e-6)
    assert scores.f1 == pytest.approx(case["scene"]["fscore"], abs=1e-6)


@pytest.mark.parametrize("name", ORACLES["matrices"])
def test_matrix_cases_equal_the_oracles(name):
    case = ORACLES["matrices"][name]
    matrix = np.array(case["M"])
    true_ids, pred_ids = map(np.arange, matrix.shape)
    check(match_matrix(matrix, true_ids, pred_ids), case, true_ids.tolist(), pred_ids.tolist())


@pytest.mark.parametrize("seed", range(8))
def test_matching_is_the_best_of_all_permutations(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    num_true, num_pred = rng.integers(1, 6, 2).tolist()
    matrix = rng.random((num_true, num_pred)) * (rng.random((num_true, num_pred)) < 0.7)
    padded = np.zeros((num_true, max(num_true, num_pred)))
    padded[:, :num_pred] = matrix
    best = max(
        sum(padded[row, column] for row, column in enumerate(columns))
        for columns in itertools.permutations(range(padded.shape[1]), num_true)
    )
    for most in (2**22, 0):  # as a matrix, and as a graph of what overlaps
        monkeypatch.setattr(matched, "MAX_MATRIX", most)
        found = match_matrix(matrix, np.arange(num_true), np.arange(num_pred))
        assert found.miou == pytest.approx(best / num_true)
        assert len({true for true, _ in found.pairs}) == len({pred for _, pred in found.pairs}) == len(found.pairs)


def test_a_graph_is_matched_as_its_matrix(monkeypatch):
    rng = np.random.default_rng(0)
    matrix = rng.random((300, 280)) * (rng.random((300, 280)) < 0.02)
    expected = match_matrix(matrix, np.arange(300), np.arange(280) + 7)
    monkeypatch.setattr(matched, "MAX_MATRIX", 0)
    assert match_matrix(matrix, np.arange(300), np.arange(280) + 7) == expected


@pytest.mark.parametrize("profile", ["scene", "scene_masked", "viewmean"])
def test_renaming_predictions_changes_no_score(profile):
    rng = np.random.default_rng(3)
    true, pred = rng.integers(0, 6, (2, 3, 10, 12))
    renamed = rng.permutation(1000)[:6][pred]
    first, second = matched_scores(pred, true, profile=profile), matched_scores(renamed, true, profile=profile)
    assert (first.miou, first.f1, first.num_pred) == (pytest.approx(second.miou), second.f1, second.num_pred)
    perfect = matched_scores(true + 500, true + 1, profile=profile)
    assert (perfect.miou, perfect.f1, perfect.tp) == (1.0, 1.0, 6)


def test_bad_inputs_are_refused():
    ids = np.ones((2, 3, 3), dtype=np.int32)
    for trues, message in ((np.zeros_like(ids), "no true object"), (ids[:1], "same views"), ([], "same views")):
        with pytest.raises(ValueError, match=message):
            matched_scores(ids if len(trues) else [], trues)
    with pytest.raises(ValueError, match="profile"):
        matched_scores(ids, ids, profile="pixels")
