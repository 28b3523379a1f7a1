"""Masks of a transformers model: behind a stand-in for the library, and a small random SAM where it is installed."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.data.fixtures import write_dataset
from unified_lift.capture.mask_generators.hf import GENERATOR, HfGenerator, HfSettings, small_sam
from unified_lift.capture.masks import GRANULARITIES
from unified_lift.cli.main import main
from unified_lift.errors import UserError

CPU = torch.device("cpu")
PHOTO = np.zeros((6, 8, 3), dtype=np.uint8)


class Model:
    """Two points; the n-th mask of a point is its n + 1 first rows, its score 0.1 lower for every row."""

    def __init__(self, num_masks=3):
        self.num_masks = num_masks
        self.hooks = []

    def register_forward_hook(self, hook):
        self.hooks.append(hook)

    def state_dict(self):
        return {}

    def __call__(self):
        masks = torch.full((1, 2, self.num_masks, 6, 8), -1.0)
        for n in range(self.num_masks):
            masks[:, 0, n, : n + 1] = 1
            masks[:, 1, n, 5 - n :] = 1
        scores = torch.tensor([0.99 - 0.1 * n for n in range(self.num_masks)]).repeat(1, 2, 1)
        outputs = {"pred_masks": masks, "iou_scores": scores}
        for hook in self.hooks:
            outputs = hook(self, (), outputs)
        return outputs


class Pipeline:
    def __init__(self, model):
        self.model = model
        self.asked = []

    def __call__(self, image, **settings):
        assert image.size == (8, 6)
        self.asked.append(settings)
        outputs = self.model()
        masks, scores = outputs["pred_masks"].flatten(0, 2) > 0, outputs["iou_scores"].flatten()
        kept = scores > settings["pred_iou_thresh"]
        return {"masks": list(masks[kept].numpy()), "scores": scores[kept]}


def proposed(model, granularities, **settings):
    return HfGenerator(Pipeline(model), HfSettings(**settings), facts={}).propose(PHOTO, granularities)


@pytest.mark.parametrize(
    ("granularity", "rows", "score"), [("subpart", 1, 0.99), ("part", 2, 0.89), ("whole", 3, 0.79)]
)
def test_a_granularity_is_one_of_the_three_masks_of_each_point(granularity, rows, score):
    found = proposed(Model(), (granularity,), pred_iou_thresh=0.5)
    of_a_point = (granularity, 8 * rows, score)
    assert [(p.granularity, int(p.mask.sum()), round(p.score, 2)) for p in found] == [of_a_point] * 2
    assert [bool(p.mask[0, 0]) for p in found] == [True, False]


def test_each_granularity_is_filtered_by_the_pipeline_with_our_settings():
    generator = HfGenerator(Pipeline(Model()), HfSettings(points_per_side=9, crops_n_layers=1), facts={})
    found = generator.propose(PHOTO, GRANULARITIES)
    assert [p.granularity for p in found] == ["part", "part", "subpart", "subpart"]  # 0.79 is below 0.88
    asked = dict(points_per_crop=9, points_per_batch=64, pred_iou_thresh=0.88, stability_score_thresh=0.95)
    assert generator._pipeline.asked == 3 * [{**asked, "crops_n_layers": 1}]


def test_a_model_without_granularities_gives_all_its_masks_as_whole_and_refuses_parts():
    assert len(proposed(Model(num_masks=4), ("whole",), pred_iou_thresh=0.5)) == 8
    with pytest.raises(UserError, match="--granularity part.*levels are unknown"):
        proposed(Model(num_masks=4), ("part",))


@pytest.fixture
def library(monkeypatch):
    """A stand-in for transformers that makes a pipeline from a folder with a config.json."""

    def loads(made):
        def from_pretrained(folder, *, local_files_only, trust_remote_code, output_loading_info=False):
            assert local_files_only  # nothing is downloaded
            assert not trust_remote_code
            if not (folder / "config.json").is_file():
                raise OSError(f"{folder} has no config.json")
            return (made, {"missing_keys": set(lacking)}) if output_loading_info else made

        return SimpleNamespace(from_pretrained=from_pretrained)

    def pipeline(task, *, model, image_processor, device):
        assert (task, image_processor, device) == ("mask-generation", "processor", CPU)
        return Pipeline(model)

    lacking = []
    fake = SimpleNamespace(
        __version__="1.2",
        AutoConfig=loads(SimpleNamespace(model_type="sam")),
        AutoImageProcessor=loads("processor"),
        AutoModelForMaskGeneration=loads(Model()),
        logging=SimpleNamespace(set_verbosity_error=lambda: None, disable_progress_bar=lambda: None),
        pipeline=pipeline,
    )
    monkeypatch.setitem(sys.modules, "transformers", fake)
    ops = SimpleNamespace(nms=lambda boxes, scores, limit: scores.argmax()[None])
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(ops=ops))
    return lacking


def test_loading_tells_versions_and_model(library, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    generator = GENERATOR.load(HfSettings(weights=tmp_path), CPU)
    assert generator.facts == {
        "transformers": "1.2", "torch": torch.__version__, "weights": tmp_path.name, "model_type": "sam"
    }  # fmt: skip
    assert len(generator.propose(PHOTO, ("subpart",))) == 2


def test_wrong_folders_and_a_missing_library_are_named(library, tmp_path, monkeypatch):
    for weights, words in (
        (None, "--weights missing"),
        (tmp_path / "nowhere", "nowhere: no such folder"),
        (tmp_path, "not a mask-generation model"),
    ):
        with pytest.raises(UserError, match=words):
            GENERATOR.load(HfSettings(weights=weights), CPU)
    (tmp_path / "config.json").write_text("{}")
    library.append("mask_decoder.weight")
    with pytest.raises(UserError, match="its files lack 1 tensors of sam, first mask_decoder.weight"):
        GENERATOR.load(HfSettings(weights=tmp_path), CPU)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="model.safetensors: is empty"):
        GENERATOR.load(HfSettings(weights=tmp_path), CPU)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="transformers is not installed"):
        GENERATOR.load(HfSettings(weights=tmp_path), CPU)


def test_a_small_random_sam_of_transformers_makes_masks_of_a_scene(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model, processor = small_sam(transformers)
    weights, scene = tmp_path / "weights", tmp_path / "scene"
    model.save_pretrained(weights)
    processor.save_pretrained(weights)
    write_dataset("transforms", scene)
    argv = [
        "--out", "hf", "--granularity", "all", "--points-per-side", "4", "--pred-iou-thresh", "0",
        "--stability-score-thresh", "0", "--min-score", "0", "--min-area", "1",
    ]  # fmt: skip
    assert main(["masks", "-s", str(scene), "--provider", "hf", "--weights", str(weights), "--quiet", *argv]) == 0
    for granularity in GRANULARITIES:
        record = json.loads((scene / f"hf_{granularity}" / "masks.json").read_text())
        assert record["versions"]["model_type"] == "sam"
        assert record["counts"]["views"] == 10
        assert 0 < record["counts"]["proposals"] <= 10 * 16
