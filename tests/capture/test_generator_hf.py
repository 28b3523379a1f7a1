"""Masks of a transformers model: behind a stand-in for the library, and a small random SAM where it is installed."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.data.fixtures import write_dataset
from unified_lift.capture.mask_generators.hf import GENERATOR, HfGenerator, HfSettings, certain, small_sam
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


DECODER = {"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32}


def small_sam2(library):
    """A SAM 2 of 64 pixels with random weights."""
    backbone = library.Sam2HieraDetConfig(
        hidden_size=8, image_size=[64, 64], num_attention_heads=1, blocks_per_stage=[1, 2, 2, 2],
        embed_dim_per_stage=[8, 16, 32, 64], num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[4, 4, 4, 4], global_attention_blocks=[4],
        window_positional_embedding_background_size=[4, 4],
    )  # fmt: skip
    config = library.Sam2Config(
        vision_config=library.Sam2VisionConfig(
            backbone_config=backbone,
            backbone_channel_list=[64, 32, 16, 8],
            backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
            fpn_hidden_size=32,
        ),
        prompt_encoder_config={"hidden_size": 32, "image_size": 64, "patch_size": 16},
        mask_decoder_config=DECODER,
    )
    sizes = {"size": {"height": 64, "width": 64}, "mask_size": {"height": 16, "width": 16}}
    return certain(library.Sam2Model(config)), library.Sam2ImageProcessor(**sizes)


def small_sam3(library):
    """A SAM 3 of 112 pixels that answers points, with random weights."""
    backbone = library.Sam3ViTConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=112,
        patch_size=14, window_size=4, global_attn_indexes=[1], pretrain_image_size=56,
    )  # fmt: skip
    config = library.Sam3TrackerConfig(
        vision_config=library.Sam3VisionConfig(
            backbone_config=backbone, fpn_hidden_size=32, backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]]
        ),
        prompt_encoder_config={"hidden_size": 32, "image_size": 112, "patch_size": 14},
        mask_decoder_config=DECODER,
    )
    sizes = {"size": {"height": 112, "width": 112}, "mask_size": {"height": 28, "width": 28}}
    return certain(library.Sam3TrackerModel(config)), library.Sam3ImageProcessor(**sizes)


@pytest.mark.parametrize(
    ("model_type", "make", "needs"),
    [
        ("sam", small_sam, "SamModel"),
        ("sam2", small_sam2, "Sam2Model"),
        ("sam3_tracker", small_sam3, "Sam3TrackerModel"),
    ],
)
def test_a_small_random_sam_of_transformers_makes_masks_of_a_scene(tmp_path, capsys, model_type, make, needs):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torchvision")
    if not hasattr(transformers, needs):
        pytest.skip(f"this transformers has no {needs}")
    torch.manual_seed(0)
    model, processor = make(transformers)
    weights, scene = tmp_path / "weights", tmp_path / "scene"
    model.save_pretrained(weights)
    processor.save_pretrained(weights)
    write_dataset("transforms", scene)
    argv = [
        "--provider", "hf", "--weights", str(weights), "--quiet", "--limit", "2", "--granularity", "all",
        "--points-per-side", "4", "--pred-iou-thresh", "0", "--stability-score-thresh", "0", "--min-score", "0",
        "--min-area", "1",
    ]  # fmt: skip
    assert main(["masks", "-s", str(scene), *argv, "--out", "hf"]) == 0
    for granularity in GRANULARITIES:
        record = json.loads((scene / f"hf_{granularity}" / "masks.json").read_text())
        assert record["versions"]["model_type"] == model_type
        assert record["counts"]["views"] == 2
        assert 0 < record["counts"]["proposals"] <= 2 * 16
    capsys.readouterr()
    file = weights / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])  # cut short
    assert main(["masks", "-s", str(scene), *argv, "--out", "cut"]) == 2
    model.save_pretrained(weights, state_dict={"x.weight": torch.ones(2)})
    assert main(["masks", "-s", str(scene), *argv, "--out", "other"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert ["not a mask-generation model" in line for line in errors] == [True, True]
