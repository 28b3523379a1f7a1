import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from unified_lift.metrics.prompts import (
    best_ids,
    boundary,
    boundary_iou,
    boundary_width,
    iou,
    likely_ids,
    mask_of,
    means,
    select_ids,
)
from unified_lift.ops.resample import nearest_indices

ORACLES = json.loads((Path(__file__).parent / "oracles.json").read_text())
MEANS, IDS, WIDTHS = ORACLES["prompt_means"], ORACLES["prompt_ids"], ORACLES["boundary_width"]


@pytest.mark.parametrize("kind", [0, 1], ids=["iou", "biou"])
def test_means_go_over_views_then_prompts_then_scenes(kind):
    scenes = []
    for name, views in MEANS["input"].items():
        per_prompt = means((prompt, pair[kind]) for found in views.values() for prompt, pair in found.items())
        scene = np.mean(list(per_prompt.values()))
        expected = {prompt: pair[kind] for prompt, pair in MEANS["scenes"][name]["per_prompt"].items()}
        assert per_prompt == pytest.approx(expected)
        assert scene == pytest.approx(MEANS["scenes"][name]["scene"][kind])
        scenes.append(scene)
    assert np.mean(scenes) == pytest.approx(MEANS["overall"][kind])
    assert np.mean(scenes) != pytest.approx(MEANS["not_this_flat_mean"][kind], abs=0.01)
    # What cannot be scored does not count.
    assert means([("cup", None), ("hat", 0.5), ("cup", 0.25), ("pen", None)]) == {"hat": 0.5, "cup": 0.25}


def boxes_to_mask(hw: list[int], boxes: list[list[int]]) -> np.ndarray:
    mask = np.zeros(hw, dtype=bool)
    for row0, row1, col0, col1 in boxes:
        mask[row0:row1, col0:col1] = True
    return mask


@pytest.mark.parametrize("case", ORACLES["mask_scores"], ids=lambda case: case["name"])
def test_iou_and_boundary_iou_equal_the_oracles(case):
    true, pred = boxes_to_mask(case["hw"], case["gt_boxes"]), boxes_to_mask(case["hw"], case["pred_boxes"])
    assert boundary_width(*case["hw"]) == case["dilation"]
    assert boundary(true, width=case["dilation"]).sum() == case["gt_boundary"]
    assert boundary(pred, width=case["dilation"]).sum() == case["pred_boundary"]
    for score, name in ((iou, "iou"), (boundary_iou, "biou")):
        assert score(pred, true) == (None if case[name] is None else pytest.approx(case[name], abs=1e-6))


def test_boundary_width_equals_the_table():
    assert [boundary_width(*case["hw"]) for case in WIDTHS] == [case["dilation"] for case in WIDTHS]


def test_boundary_is_the_chebyshev_band_of_a_ragged_mask():
    mask = np.random.default_rng(0).random((20, 30)) < 0.9
    for width in (1, 2, 4):
        padded = np.pad(mask, width)
        expected = np.zeros_like(mask)
        for row, col in np.argwhere(mask):
            expected[row, col] = not padded[row : row + 2 * width + 1, col : col + 2 * width + 1].all()
        assert (boundary(mask, width=width) == expected).all()
    with pytest.raises(ValueError, match="one shape"):
        iou(mask, mask.T)


def test_ids_are_chosen_by_the_share_of_their_own_pixels():
    ids, mask = np.array(IDS["class_map"]), np.array(IDS["text_mask"], dtype=bool)
    expected = {int(label): share for label, share in IDS["ioa"].items()}
    assert select_ids(ids, mask, min_share=-1) == pytest.approx(expected, abs=1e-6)
    assert list(select_ids(ids, mask)) == IDS["selected"]


def test_a_share_of_exactly_the_threshold_is_too_little():
    ids = np.zeros((2, 10), dtype=np.int32)
    mask = np.arange(10) < np.array([[7], [7]])
    assert select_ids(ids, mask) == {}
    mask[1, 7] = True
    assert select_ids(ids, mask) == {0: 15 / 20}  # 0 is an id like others
    assert select_ids(ids, mask & False) == {}


def test_a_pixel_belongs_to_every_id_that_is_likely_enough():
    logits = torch.tensor(IDS["toy_logits"]).T  # [pixels, codes]
    probabilities = torch.softmax(logits, dim=1)
    np.testing.assert_allclose(probabilities.T, IDS["toy_probs"], atol=1e-6)
    mask = mask_of(likely_ids(probabilities).numpy(), IDS["toy_chosen"])
    assert mask.astype(int).tolist() == IDS["toy_mask"]
    assert probabilities.argmax(dim=1).tolist() == IDS["toy_argmax"]


def test_likely_ids_equal_a_loop_over_all_ids():
    probabilities = torch.softmax(4 * torch.randn(7, 9, 12, generator=torch.Generator().manual_seed(0)), dim=-1)
    likely = likely_ids(probabilities).numpy()
    assert likely.dtype == np.int32
    for chosen in ([0], [3, 5], list(range(12))):
        expected = (probabilities[..., chosen] > 0.2).any(dim=-1).numpy()
        assert (mask_of(likely, chosen) == expected).all()
        assert 0 < expected.sum()
    assert not mask_of(likely, []).any()
    assert not mask_of(likely, [12]).any()

    # Exactly the threshold is not likely, and few ids are all looked at.
    assert likely_ids(torch.full((1, 5), 0.2)).tolist() == [[-1] * 5]
    assert likely_ids(torch.tensor([[0.75, 0.25]])).tolist() == [[0, 1]]


@pytest.mark.parametrize("seed", range(6))
def test_best_ids_come_close_to_all_subsets_and_never_fall_below_a_start(seed):
    rng = np.random.default_rng(seed)
    trues = [np.kron(rng.random((3, 4)) < 0.5, np.ones((4, 4))).astype(bool) for _ in range(2)]
    likely = [np.kron(rng.integers(0, 6, (6, 8)), np.ones((2, 2), int))[..., None] for _ in range(2)]

    def mean_iou(chosen: tuple) -> float:
        return float(np.mean([iou(mask_of(ids, chosen), true) for ids, true in zip(likely, trues, strict=True)]))

    start = tuple(rng.choice(6, 2, replace=False).tolist())
    chosen, value = best_ids(likely, trues, starts=[start])
    assert value == pytest.approx(mean_iou(chosen))
    assert value >= mean_iou(start)
    subsets = itertools.chain.from_iterable(itertools.combinations(range(6), size) for size in range(7))
    assert value == pytest.approx(max(map(mean_iou, subsets)))


def test_best_ids_of_overlapping_masks():
    # Pixels in order: only 1, both 1 and 2, only 2, neither; the truth is the first two, so 1 alone is right.
    likely = np.array([[[1, -1], [2, 1], [2, -1], [-1, -1]]])
    assert best_ids([likely], [np.array([[True, True, False, False]])]) == ((1,), 1.0)
    assert best_ids([likely], [np.array([[False, False, False, True]])], starts=[(2,)]) == ((), 0.0)


@pytest.mark.parametrize("case", ORACLES["resampling"], ids=lambda case: f"{case['n_in']}to{case['n_out']}")
def test_label_maps_follow_the_centre_rule_and_opencv_does_not(case):
    assert nearest_indices(case["n_in"], case["n_out"]).tolist() == case["centre_rule"]
    line = np.arange(case["n_in"], dtype=np.uint8)[None]
    opencv = cv2.resize(line, (case["n_out"], 1), interpolation=cv2.INTER_NEAREST)[0]
    assert opencv.tolist() == case["corner_rule"] != case["centre_rule"]
