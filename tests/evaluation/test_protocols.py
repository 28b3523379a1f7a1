import json

import numpy as np
import pytest

from unified_lift.evaluation.protocols import PROTOCOLS, GroundTruth, PredictionBundle, ProtocolResult
from unified_lift.metrics.matched import matched_scores
from unified_lift.ops.resample import nearest

# Two views of 4 x 6 with 3 objects; id 8 is the largest predicted area (34 of 48 pixels).
TRUE = np.array(
    [
        [[0, 0, 0, 0, 0, 0], [0, 1, 1, 0, 2, 2], [0, 1, 1, 0, 2, 2], [0, 0, 0, 0, 0, 0]],
        [[0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 2, 2], [1, 1, 0, 3, 2, 2], [0, 0, 0, 3, 0, 0]],
    ],
    dtype=np.int32,
)
PRED = np.array(
    [
        [[8, 8, 8, 8, 8, 8], [8, 4, 4, 8, 6, 6], [8, 4, 4, 8, 6, 8], [8, 8, 8, 8, 8, 8]],
        [[8, 8, 8, 8, 8, 8], [4, 4, 8, 8, 6, 6], [4, 8, 8, 8, 6, 6], [8, 8, 8, 8, 8, 8]],
    ],
    dtype=np.int32,
)
NAMES = ["a", "b"]


def views(ids: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(NAMES, ids, strict=True))


def evaluate(protocol: str, predictions: dict, annotations: dict, names: list[str]) -> ProtocolResult:
    bundle = PredictionBundle(names=names, object_ids=predictions)
    return PROTOCOLS[protocol].score(bundle, GroundTruth(annotations=annotations))


def test_generic_scores_by_hand():
    result = evaluate("generic", views(PRED), views(TRUE), NAMES)
    # Panoptic values are those of the oracle; matching: 1-4 at 7/8, 2-6 at 7/8, and 3 takes 8 at 2/34.
    panoptic = {"PQ_scene": 0.791176, "SQ_scene": 0.878676, "RQ_scene": 0.9, "PQ_things": 0.7, "PQ_stuff": 30 / 34}
    matched = {"mIoU": (7 / 8 + 7 / 8 + 2 / 34) / 3, "F1": 2 * 2 / (3 + 3)}
    counts = {"num_objects_true": 3, "num_objects_pred": 2}
    assert result.scores == pytest.approx(panoptic | matched | counts, abs=1e-6)
    # View a: 4 of 4 pixels and 3 of 4; view b: 3 of 4, 4 of 4, and object 3 with partner 8 at 2 of 17.
    assert result.per_view["mIoU"]["a"] == pytest.approx((1 + 3 / 4) / 2)
    assert result.per_view["mIoU"]["b"] == pytest.approx((3 / 4 + 1 + 2 / 17) / 3)
    assert result.per_view["num_objects"]["b"] == 3
    assert result.per_view["object_share"]["a"] == pytest.approx(8 / 24)


def test_report_tells_how_the_scores_came_about():
    report = evaluate("generic", views(PRED), views(TRUE), NAMES).report
    assert report["background_id"] == 8
    assert report["views"] == NAMES
    assert report["resolution"] == ["6x4"]
    assert report["classes"]["object"]["fn"] == 1
    assert report["matching"]["scene_masked"]["miou"] == matched_scores(PRED, TRUE, profile="scene_masked").miou
    assert [o["area"] for o in report["objects"]] == [8, 8, 2]
    assert report["warnings"] == []
    json.dumps(report)


def test_a_missing_prediction_counts_as_background_and_is_listed():
    result = evaluate("generic", {"a": PRED[0]}, views(TRUE), NAMES)
    filled = evaluate("generic", views(np.stack([PRED[0], np.full_like(PRED[0], 8)])), views(TRUE), NAMES)
    assert result.scores == filled.scores
    assert result.report["missing_predictions"] == ["b"]
    assert any("no prediction" in warning for warning in result.report["warnings"])


def test_no_prediction_at_all_scores_no_object_and_a_view_without_annotation_is_left_out():
    result = evaluate("generic", {}, views(TRUE), NAMES)
    assert (result.scores["PQ_things"], result.report["num_missing_predictions"]) == (0, 2)
    result = evaluate("generic", views(PRED), {"b": TRUE[1]}, NAMES)
    assert (list(result.per_view["num_objects"]), result.report["missing_annotations"]) == (["b"], ["a"])
    # The background rule sees it nevertheless.
    pred = {"a": np.full((4, 6), 5, np.int32), "b": np.where(TRUE[1], 5, 8)}
    assert evaluate("generic", pred, {"b": TRUE[1]}, NAMES).report["background_id"] == 5


def test_messy_rooms_compares_a_square_of_512():
    result = evaluate("messy_rooms", views(PRED), views(TRUE), NAMES)
    square = [np.stack([nearest(view, 512, 512) for view in ids]) for ids in (PRED, TRUE)]
    assert result.scores == evaluate("generic", views(square[0]), views(square[1]), NAMES).scores
    assert result.report["resolution"] == ["512x512"]
    assert result.report["resampling"] == "nearest, centre rule"


def test_background_is_found_before_resampling():
    # The wide view weighs 60 to 40 pixels at its own size, the two are equal as squares.
    pred = {"a": np.full((4, 10), 1, np.int32), "b": np.full((6, 10), 2, np.int32)}
    true = {"a": np.ones((4, 10), np.int32), "b": np.zeros((6, 10), np.int32)}
    assert evaluate("messy_rooms", pred, true, NAMES).report["background_id"] == 2
    assert evaluate("messy_rooms", pred, true, NAMES).scores["PQ_scene"] == 1.0


def test_a_dropped_object_class_is_warned_about():
    true = np.zeros((100, 100), dtype=np.int32)
    true[:4, :10] = 5
    result = evaluate("generic", {"a": np.where(true, 3, 7)}, {"a": true}, ["a"])
    assert result.scores["PQ_scene"] == 1.0
    assert "PQ_things" not in result.scores
    assert any("drops their class" in warning for warning in result.report["warnings"])


def test_stray_pixels_leave_the_second_f1_alone():
    true = np.zeros((40, 40), dtype=np.int32)
    true[10:30, 10:30] = 1
    pred = true + 4
    pred[0, :20] = np.arange(100, 120)
    matching = evaluate("generic", {"a": pred}, {"a": true}, ["a"]).report["matching"]
    assert matching["scene"]["num_pred"] == 22
    assert matching["scene_from_100_px"]["num_pred"] == 2
    assert matching["scene_from_100_px"]["tp"] == 1


@pytest.mark.parametrize("protocol", ["generic", "replica"])
def test_scenes_without_objects_have_no_matched_scores(protocol):
    empty = {"a": np.zeros((4, 4), np.int32)}
    result = evaluate(protocol, empty, empty, ["a"])
    assert result.scores["num_objects_true"] == 0
    assert result.scores.get("PQ_scene", 1.0) == 1.0
    assert "mIoU" not in {*result.scores, *result.per_view}
    assert any("do not apply" in warning for warning in result.report["warnings"])


@pytest.mark.parametrize("name", [name for name, entry in PROTOCOLS.items() if entry.ground_truth == "annotations"])
def test_bad_inputs_are_refused(name):
    with pytest.raises(ValueError, match="view a: prediction"):
        evaluate(name, {"a": PRED[0].T}, {"a": TRUE[0]}, ["a"])
    with pytest.raises(ValueError, match="none of the 2 views"):
        evaluate(name, views(PRED), {}, NAMES)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_ids_beyond_16_bits_are_ids_like_others(name):
    masks = {n: {"cup": t == 1} for n, t in views(TRUE).items()}

    def scores(pred, true):
        truth = GroundTruth(annotations=views(true), prompt_masks=masks)
        return PROTOCOLS[name].score(PredictionBundle(names=NAMES, object_ids=views(pred)), truth).scores

    assert scores(PRED + 70_000, TRUE * 70_000) == scores(PRED, TRUE)


def test_replica_scores_by_hand():
    result = evaluate("replica", views(PRED), views(TRUE), NAMES)
    # Objects 1 and 2 at 7/8 each, 3 with 8 at 2/34; ids 4, 6 and 8 all count as predicted: there is no background.
    assert result.scores["mIoU"] == pytest.approx((7 / 8 + 7 / 8 + 2 / 34) / 3)
    assert result.scores["F1"] == pytest.approx(2 * 2 / (3 + 3))
    counts = [result.scores[f"num_objects_{kind}"] for kind in ("true", "pred", "found")]
    assert counts == [3, 3, 2]
    # Without the pixels of true 0, id 8 keeps the 2 of object 3 and one of each other object: 2/4.
    assert result.scores["mIoU_masked"] == pytest.approx((7 / 8 + 7 / 8 + 2 / 4) / 3)
    assert not any(name.startswith("PQ") for name in result.scores)


def test_replica_shows_the_profiles_side_by_side():
    result = evaluate("replica", views(PRED), views(TRUE), NAMES)
    profile = matched_scores(PRED, TRUE, profile="viewmean")
    assert (result.scores["mIoU_viewmean"], result.scores["F1_viewmean"]) == (profile.miou, profile.f1)
    assert list(result.report["matching"]) == ["scene", "scene_masked", "viewmean"]  # nothing has 100 pixels
    grown = [{n: np.kron(ids, np.ones((10, 10), np.int32)) for n, ids in views(side).items()} for side in (PRED, TRUE)]
    assert evaluate("replica", *grown, NAMES).scores["F1_from_100_px"] == pytest.approx(2 * 2 / 6)
    assert result.per_view == evaluate("generic", views(PRED), views(TRUE), NAMES).per_view
    json.dumps(result.report)


def test_replica_counts_a_view_without_prediction_and_adds_no_id():
    result = evaluate("replica", {"a": PRED[0]}, views(TRUE), NAMES)
    assert result.report["missing_predictions"] == ["b"]
    assert result.scores["num_objects_pred"] == 3
    # 1 and 2 lose what view b shows of them: 4 of 8 and 3 of 8 pixels; 3 stays with 8, which covers all of view b.
    assert result.scores["mIoU"] == pytest.approx((4 / 8 + 3 / 8 + 2 / 41) / 3)


def test_models_are_ranked_by_the_first_headline_that_applies():
    lerf = PROTOCOLS["lerf_mask"]
    assert lerf.headline_of({"mIoU_oracle": 0.5, "mIoU": 0.4}) == "mIoU"
    assert lerf.headline_of({"mIoU_oracle": 0.5}) == "mIoU_oracle"
    assert PROTOCOLS["replica"].headline_of({"num_objects_true": 0}) is None


@pytest.mark.parametrize("protocol", ["generic", "replica", "messy_rooms"])
def test_pixels_that_do_not_count_are_as_if_the_views_ended_there(protocol):
    counted = {"a": np.ones((4, 4), bool)}
    counted["a"][:, 2:] = False
    pred, true = np.array([[5, 5, 9, 5]] * 4), np.array([[1, 1, 0, 7]] * 4)
    pred[:2], true[:2] = 3, 0

    def score(pred, true, **more):
        bundle = PredictionBundle(names=["a"], object_ids={"a": pred}, **more)
        return PROTOCOLS[protocol].score(bundle, GroundTruth(annotations={"a": true}))

    whole, cut = score(pred, true, counted=counted), score(pred[:, :2], true[:, :2])
    # The background is found in the whole prediction, here as there.
    assert whole.scores == cut.scores != score(pred, true).scores
    assert whole.per_view == cut.per_view
    with pytest.raises(ValueError, match="nothing to score"):
        score(pred, true, counted={"a": np.zeros((4, 4), bool)})
