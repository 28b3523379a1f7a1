"""The benchmark of text prompts, on views small enough to score by hand."""

import json

import numpy as np
import pytest

from unified_lift.evaluation.grounding import TextMasks
from unified_lift.evaluation.protocols import PROTOCOLS, GroundTruth, PredictionBundle, ProtocolResult

# Three views of 4 x 6: id 5 is the left half, 6 the right one; in view c id 5 has one column more.
LEFT = np.tile(np.arange(6) < 3, (4, 1))
IDS = {"a": np.where(LEFT, 5, 6), "b": np.where(LEFT, 5, 6), "c": np.where(np.roll(LEFT, 1, axis=1) | LEFT, 5, 6)}
NAMES = ["c", "a", "b"]  # not sorted: the reference view is a
CUP, HAT = LEFT, ~LEFT


def score(prompt_masks: dict | None = None, **changes) -> ProtocolResult:
    truth = {"b": {"cup": CUP, "hat": HAT}, "c": {"cup": CUP}} if prompt_masks is None else prompt_masks
    bundle = PredictionBundle(**({"names": NAMES, "object_ids": IDS} | changes))
    return PROTOCOLS["lerf_mask"].score(bundle, GroundTruth(prompt_masks=truth))


def grounded(masks: dict[str, np.ndarray], seen: list | None = None, **changes) -> ProtocolResult:
    def find_prompts(name, prompts):
        if seen is not None:
            seen.append((name, list(prompts)))
        return TextMasks(masks, {"provider": "by hand"})

    return score(find_prompts=find_prompts, **changes)


def entry(result, prompt: str) -> dict:
    return next(entry for entry in result.report["prompts"] if entry["prompt"] == prompt)


def test_scores_by_hand():
    seen = []
    result = grounded({"cup": CUP, "hat": HAT}, seen)
    assert seen == [("a", ["cup", "hat"])]
    # cup: 1 in b, 12 of 16 pixels in c; hat: 1 in b.
    assert result.scores["mIoU"] == pytest.approx((7 / 8 + 1) / 2)
    # Band of width 1: cup in c has 4 x 4 pixels, 12 on its rim; truth 4 x 3 has 10, of which 3 + 2 x 2 + ... agree.
    rim = np.zeros((4, 6), bool)
    rim[:, :4] = True
    rim[1:3, 1:3] = False
    true_rim = LEFT.copy()
    true_rim[1:3, 1] = False
    expected = (rim & true_rim).sum() / (rim | true_rim).sum()
    assert result.scores["mBIoU"] == pytest.approx(((1 + expected) / 2 + 1) / 2)
    assert (result.scores["num_prompts"], result.scores["num_prompt_masks"]) == (2, 3)
    assert result.per_view["mIoU"]["c"] == pytest.approx(3 / 4)
    assert result.report["reference_view"] == "a"
    assert result.report["grounding"] == {"provider": "by hand"}
    assert entry(result, "cup")["ids"] == [5]
    json.dumps(result.report, allow_nan=False)
    of_masks = result.report["masks"]
    assert [(entry["view"], entry["prompt"]) for entry in of_masks] == [("b", "cup"), ("b", "hat"), ("c", "cup")]
    assert of_masks[2]["IoU"] == of_masks[2]["IoU_oracle"] == pytest.approx(3 / 4)
    assert "IoU_oracle" not in of_masks[0]


def test_oracle_rows_leave_out_the_view_they_were_shown():
    result = score()
    assert result.scores["mIoU_oracle"] == pytest.approx(12 / 16)  # only cup in c: hat is in no second view
    assert entry(result, "cup")["oracle_view"] == "b"
    assert entry(result, "cup")["ids_oracle"] == [5]
    assert "IoU_oracle" not in entry(result, "hat")
    assert [list(values) for values in result.per_view.values()] == [["c"], ["c"]]
    assert any("one view only" in warning and "hat" in warning for warning in result.report["warnings"])
    assert result.report["missing_annotations"] == ["a"]
    with pytest.raises(ValueError, match="none of the 3 views has a prompt mask"):
        score(prompt_masks={"b": {}})


def test_without_grounding_its_rows_are_absent_and_the_fix_is_told():
    result = score()
    assert sorted(result.scores) == ["mBIoU_oracle", "mIoU_best_id", "mIoU_oracle", "num_prompt_masks", "num_prompts"]
    assert result.report["grounding"] is None
    assert any("--grounding FOLDER" in warning and "view a" in warning for warning in result.report["warnings"])
    assert result.masks == {}


def test_best_ids_bound_both_rows_from_above():
    # Words take the hat for the cup, and view b, which the oracle sees, shows the cup as a mixture of ids.
    mixed = IDS | {"b": np.where(np.arange(24).reshape(4, 6) % 2, 5, 6)}
    result = grounded({"cup": HAT, "hat": HAT}, object_ids=mixed)
    assert entry(result, "cup")["ids"] == [6]
    # Everything at once: half of both views; id 5 alone: 4 of 20 pixels in b and 12 of 16 in c.
    assert (entry(result, "cup")["ids_best_id"], entry(result, "cup")["IoU_best_id"]) == ([5, 6], 1 / 2)
    assert entry(result, "cup")["IoU"] < 1 / 2
    assert result.scores["mIoU_best_id"] > result.scores["mIoU"]


def test_a_prompt_that_was_not_found_scores_zero_everywhere():
    result = grounded({"hat": HAT})
    assert entry(result, "cup")["ids"] == []
    assert entry(result, "cup")["IoU"] == 0
    assert result.scores["mIoU"] == pytest.approx(1 / 2)
    assert any("lies in the mask" in warning and "cup" in warning for warning in result.report["warnings"])


def test_masks_take_every_likely_id_not_the_most_likely():
    asked = []

    def likely(name, threshold):
        asked.append((name, threshold))
        return np.stack([IDS[name], np.where(IDS[name] == 6, 5, -1)], axis=-1)  # 5 is likely everywhere

    result = grounded({"cup": CUP, "hat": HAT}, likely_ids=likely)
    assert entry(result, "cup")["ids"] == [5]  # chosen by the arg-max
    assert entry(result, "cup")["IoU"] == pytest.approx(12 / 24)
    assert entry(result, "hat")["IoU"] == 1
    assert sorted(asked) == [("a", 0.2), ("b", 0.2), ("c", 0.2)]


def test_masks_of_all_views_are_returned_whether_annotated_or_not():
    masks = grounded({"cup": CUP, "hat": HAT}).masks
    assert sorted(masks) == ["a", "b", "c"]
    assert (masks["a"]["cup"] == CUP).all()
    assert (masks["c"]["hat"] == (IDS["c"] == 6)).all()


def test_a_view_without_prediction_scores_zero_and_is_counted():
    ids = {name: IDS[name] for name in "ab"}
    result = grounded({"cup": CUP, "hat": HAT}, object_ids=ids)
    assert entry(result, "cup")["IoU"] == pytest.approx((1 + 0) / 2)
    assert result.report["missing_predictions"] == ["c"]
    assert result.report["num_missing_predictions"] == 1
    assert any("no prediction" in warning for warning in result.report["warnings"])
    ids = {name: IDS[name] for name in "bc"}  # without the reference view nothing is chosen
    assert grounded({"cup": CUP, "hat": HAT}, object_ids=ids).scores["mIoU"] == 0


def test_empty_truth_scores_zero_where_something_is_predicted_and_not_at_all_otherwise():
    empty = np.zeros((4, 6), bool)
    truth = {"b": {"cup": CUP, "hat": empty}, "c": {"cup": empty}}
    result = grounded({"cup": CUP}, prompt_masks=truth)
    assert entry(result, "cup")["IoU"] == pytest.approx((1 + 0) / 2)
    assert "IoU" not in entry(result, "hat")
    assert result.scores["mIoU"] == pytest.approx(1 / 2)
    assert result.report["num_not_scored"]["mIoU"] == 1
    assert any("do not count in mIoU" in warning for warning in result.report["warnings"])


def test_masks_of_another_size_are_resampled_and_counted():
    grown = {"cup": np.kron(CUP, np.ones((3, 3), bool)), "hat": np.kron(HAT, np.ones((3, 3), bool))}
    truth = {"b": grown, "c": {"cup": grown["cup"]}}
    small = grounded({"cup": CUP, "hat": HAT})
    text = {"cup": np.kron(CUP, np.ones((2, 2), bool)), "hat": HAT}
    large = grounded(text, prompt_masks=truth)
    assert large.scores["mIoU"] == pytest.approx(small.scores["mIoU"])
    assert large.report["predictions_resampled_to_annotations"] == 3
    assert small.report["predictions_resampled_to_annotations"] == 0
    assert large.report["resolution"] == ["18x12"]
    assert large.masks["a"]["cup"].shape == (4, 6)
