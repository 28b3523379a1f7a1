import json
from pathlib import Path

import numpy as np
import pytest

from unified_lift.metrics.masks import boundary, boundary_iou, boundary_width, iou

ORACLES = json.loads((Path(__file__).parent / "oracles.json").read_text())


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
        if case[name] is None:
            assert score(pred, true) is None
        else:
            assert score(pred, true) == pytest.approx(case[name], abs=1e-6)


@pytest.mark.parametrize("case", ORACLES["boundary_width"], ids=lambda case: str(case["hw"]))
def test_boundary_width_equals_the_table(case):
    assert boundary_width(*case["hw"]) == case["dilation"]


def test_boundary_is_the_chebyshev_band_of_a_ragged_mask():
    mask = np.random.default_rng(0).random((20, 30)) < 0.9
    for width in (1, 2, 4):
        padded = np.pad(mask, width)
        expected = np.zeros_like(mask)
        for row, col in np.argwhere(mask):
            expected[row, col] = not padded[row : row + 2 * width + 1, col : col + 2 * width + 1].all()
        assert (boundary(mask, width=width) == expected).all()


def test_unequal_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        iou(np.zeros((2, 3), bool), np.zeros((3, 2), bool))
