"""Masks from words: a folder of masks, and GroundingDINO with SAM behind a stand-in for `transformers`."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.fake_transformers import Batch, Model, loader, package
from unified_lift.errors import UserError
from unified_lift.evaluation.grounding import dino_and_sam, grounding_of, masks_in

CPU = torch.device("cpu")
IMAGE = np.zeros((20, 30, 3), dtype=np.uint8)
BOXES = {"red apple.": [[2.0, 3.0, 10.0, 9.0], [8.0, 5.0, 20.0, 15.0]], "cup.": []}


class DinoProcessor:
    def __call__(self, *, images, text, return_tensors):
        assert (images.shape, images.dtype, return_tensors) == (IMAGE.shape, np.uint8, "pt")
        return Batch(input_ids=text)

    def post_process_grounded_object_detection(self, outputs, input_ids, threshold, text_threshold, target_sizes):
        assert (threshold, text_threshold, target_sizes) == (0.30, 0.45, [(20, 30)])
        return [{"boxes": torch.tensor(BOXES[input_ids]).view(-1, 4)}]


class SamProcessor:
    """Halves the picture; the network answers at half size and the masks come back at full size."""

    def __call__(self, image, *, input_boxes, return_tensors):
        assert image.shape == IMAGE.shape
        (boxes,) = input_boxes
        sizes = {"original_sizes": torch.tensor([[20, 30]]), "reshaped_input_sizes": torch.tensor([[10, 15]])}
        return Batch(boxes=torch.tensor(boxes), **sizes)

    @property
    def image_processor(self):
        return self

    def post_process_masks(self, masks, original_sizes, reshaped_input_sizes):
        assert (original_sizes.tolist(), reshaped_input_sizes.tolist()) == ([[20, 30]], [[10, 15]])
        return [masks[0].repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1) > 0]


def sam(*, boxes, multimask_output):
    assert multimask_output is False
    masks = torch.full((1, len(boxes), 1, 10, 15), -1.0)
    for index, (x0, y0, x1, y1) in enumerate((boxes / 2).int().tolist()):
        masks[0, index, 0, y0:y1, x0:x1] = 1
    return SimpleNamespace(pred_masks=masks)


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Two weight folders, and a stand-in for the package that reads them."""
    library = package(
        AutoProcessor=loader(DinoProcessor()),
        AutoModelForZeroShotObjectDetection=loader(Model(lambda **inputs: inputs)),
        SamProcessor=loader(SamProcessor()),
        SamModel=loader(Model(sam)),
    )
    monkeypatch.setitem(sys.modules, "transformers", library)
    for name in ("dino", "sam"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    return tmp_path


def test_the_mask_of_a_prompt_is_the_union_of_its_boxes_and_empty_without_one(weights):
    find = grounding_of(f"dino:{weights / 'dino'},sam:{weights / 'sam'}", device=CPU)
    found = find(IMAGE, ["Red apple", "cup"])
    mask = found.masks["Red apple"]
    assert (mask.shape, mask.dtype) == ((20, 30), bool)
    expected = np.zeros((20, 30), bool)
    expected[2:8, 2:10] = True  # the boxes in the grid of the stand-in, doubled
    expected[4:14, 8:20] = True
    assert (mask == expected).all()
    assert not found.masks["cup"].any()
    assert found.warnings == ("GroundingDINO found no box for: cup",)
    assert (found.facts["box_threshold"], found.facts["sam"]) == (0.30, str(weights / "sam"))
    assert not sys.modules["transformers"].said


def test_weights_that_are_not_there_are_named(weights, monkeypatch):
    with pytest.raises(UserError, match="sam:.*nowhere: no such folder"):
        grounding_of(f"dino:{weights / 'dino'},sam:{weights / 'nowhere'}", device=CPU)
    with pytest.raises(UserError, match="write dino:FOLDER,sam:FOLDER"):
        grounding_of(f"dino:{weights / 'dino'}", device=CPU)
    (weights / "sam" / "config.json").unlink()
    with pytest.raises(UserError, match=r"sam:.*cannot be loaded \(.*no config.json"):
        dino_and_sam(weights / "dino", weights / "sam", device=CPU)
    monkeypatch.setitem(sys.modules, "transformers", None)  # as where it is not installed
    with pytest.raises(UserError, match=r'pip install "unified-lift\[grounding\]"'):
        dino_and_sam(weights / "dino", weights / "sam", device=CPU)


def test_folder_masks_are_foreground_above_128_and_a_prompt_without_a_file_was_not_found(tmp_path):
    Image.fromarray(np.array([[0, 128, 129, 255]], np.uint8)).save(tmp_path / "red apple.png")
    find = grounding_of(str(tmp_path), device=CPU)
    found = find(IMAGE, ["red apple"])
    assert found.masks["red apple"].tolist() == [[False, False, True, True]]
    assert (found.facts, found.warnings) == ({"provider": "folder", "folder": str(tmp_path)}, ())
    found = find(IMAGE, ["hat", "red apple"])
    assert list(found.masks) == ["red apple"]
    assert "hat" in found.warnings[0]


def test_a_folder_without_any_mask_is_refused(tmp_path):
    with pytest.raises(UserError, match="name the files cup.png, hat.png"):
        masks_in(tmp_path)(IMAGE, ["cup", "hat"])
    with pytest.raises(UserError, match="nowhere: no such folder"):
        grounding_of(str(tmp_path / "nowhere"), device=CPU)
    (tmp_path / "cup.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"cup.png: not a readable image"):
        masks_in(tmp_path)(IMAGE, ["cup"])
