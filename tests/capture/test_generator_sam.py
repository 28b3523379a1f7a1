"""The SAM generator on the real package with a small random network; runs where the extra [masks] is installed."""

import json

import numpy as np
import pytest
import torch

from tests.data.fixtures import write_dataset
from unified_lift.capture.mask_generators.sam import SamGenerator, SamSettings, certain, small_sam
from unified_lift.capture.masks import GRANULARITIES
from unified_lift.cli.main import main
from unified_lift.data.masks import read_mask

sam = pytest.importorskip("segment_anything")
pytest.importorskip("torchvision")
ALL = SamSettings(points_per_side=4, pred_iou_thresh=0, stability_score_thresh=0, box_nms_thresh=1.0)  # nothing goes


def random_sam(checkpoint=None):
    torch.manual_seed(0)
    return small_sam(sam)


@pytest.fixture(scope="module")
def network():
    return random_sam()


@pytest.fixture(scope="module")
def photo():
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def proposed(network, photo, granularities=GRANULARITIES, settings=ALL):
    return SamGenerator(network, settings, facts={}).propose(photo, granularities)


def key(mask, score, stability):
    return mask.tobytes(), round(score, 5), round(stability, 5)


def test_the_three_granularities_together_are_what_the_official_generator_finds(network, photo):
    official = sam.SamAutomaticMaskGenerator(
        network, points_per_side=4, pred_iou_thresh=0, stability_score_thresh=0, box_nms_thresh=1.0
    ).generate(photo)
    expected = sorted(key(r["segmentation"], r["predicted_iou"], r["stability_score"]) for r in official)
    found = proposed(network, photo)
    assert len(found) == 3 * 16
    assert sorted(key(p.mask, p.score, p.stability) for p in found) == expected
    assert all(p.mask.shape == (40, 60) and p.mask.dtype == bool for p in found)


@pytest.mark.parametrize(("granularity", "index"), [("subpart", 0), ("part", 1), ("whole", 2)])
def test_a_granularity_is_one_index_of_sams_answers(network, photo, granularity, index):
    predictor = sam.SamPredictor(network)
    predictor.set_image(photo)
    points = (np.stack(np.meshgrid(*[np.arange(4) / 4 + 1 / 8] * 2), -1).reshape(-1, 2) * [60, 40])[:, None]
    expected = []
    for point in points:  # one at a time, through the public interface
        masks, quality, _ = predictor.predict(point, np.ones(1), multimask_output=True)
        expected.append((round(float(quality[index]), 4), int(masks[index].sum())))
    found = [(round(p.score, 4), int(p.mask.sum())) for p in proposed(network, photo, (granularity,))]
    assert sorted(found) == sorted(expected)


def test_a_granularity_does_not_depend_on_which_others_are_asked_for(network, photo):
    settings = SamSettings(points_per_side=6, pred_iou_thresh=0.5, stability_score_thresh=0.5, box_nms_thresh=0.5)
    alone = [key(p.mask, p.score, p.stability) for p in proposed(network, photo, ("whole",), settings)]
    together = [p for p in proposed(network, photo, GRANULARITIES, settings) if p.granularity == "whole"]
    assert 0 < len(alone) < 36  # box NMS did something
    assert [key(p.mask, p.score, p.stability) for p in together] == alone


@pytest.mark.parametrize(("layers", "crops"), [(0, 1), (1, 5)])
def test_every_crop_is_encoded_once_for_all_granularities_and_again_for_the_next_photo(network, photo, layers, crops):
    calls = []
    handle = network.image_encoder.register_forward_hook(lambda *_: calls.append(1))
    settings = SamSettings(points_per_side=2, pred_iou_thresh=0, stability_score_thresh=0, crop_n_layers=layers)
    generator = SamGenerator(network, settings, facts={})
    generator.propose(photo, GRANULARITIES)
    assert len(calls) == crops
    generator.propose(photo, ("part",))
    handle.remove()
    assert len(calls) == 2 * crops


def test_a_photo_in_which_nothing_is_found_has_no_proposal(network, photo):
    assert proposed(network, photo, settings=SamSettings(points_per_side=2, pred_iou_thresh=1.0)) == []


@pytest.fixture
def scene(tmp_path, monkeypatch):
    monkeypatch.setitem(sam.sam_model_registry, "small", random_sam)
    write_dataset("colmap", tmp_path / "scene")
    torch.save(random_sam().state_dict(), tmp_path / "small.pth")
    return tmp_path / "scene"


def masks(scene, *argv):
    return main(["masks", "-s", str(scene), "--provider", "sam", "--quiet", "--device", "cpu", *map(str, argv)])


def test_from_a_checkpoint_to_three_folders_of_masks(scene, tmp_path):
    argv = [
        "--weights", tmp_path / "small.pth", "--model", "small", "--out", "sam", "--granularity", "all",
        "--points-per-side", 3, "--pred-iou-thresh", 0, "--stability-score-thresh", 0, "--min-score", 0,
        "--min-area", 1,
    ]  # fmt: skip
    assert masks(scene, *argv) == 0
    for granularity in GRANULARITIES:
        record = json.loads((scene / f"sam_{granularity}" / "masks.json").read_text())
        assert record["settings"]["granularity"] == granularity
        assert record["settings"]["weights"].startswith("small.pth (")
        assert record["versions"]["segment_anything"] == "1.0"
        assert record["counts"]["views"] == 9
        assert record["counts"]["proposals"] > 0
        for name, view in record["views"].items():
            ids = read_mask(scene / f"sam_{granularity}" / f"{name}.png")
            assert (ids.shape, ids.max()) == ((24, 32), view["ids"])


def test_wrong_weights_are_named(scene, tmp_path, capsys):
    (tmp_path / "broken.pth").write_bytes(b"no checkpoint")
    state = random_sam().state_dict()
    state.pop("mask_decoder.iou_token.weight")
    torch.save(state, tmp_path / "other.pth")
    positions = {"image_encoder.pos_embed": torch.zeros(1, 2, 2, 768)}
    for name, content in (("b", positions), ("two", {"model": {"sam_mask_decoder.x": torch.ones(1)}})):
        torch.save(content, tmp_path / f"{name}.pth")
    torch.save({"image_encoder.patch_embed.seq.0.c.weight": torch.ones(1)}, tmp_path / "mobile.pt")
    torch.save({"mask_decoder.hf_token.weight": torch.ones(1)}, tmp_path / "hq.pth")
    for argv, words in (
        (["--out", "new"], "--weights: missing"),
        (["--out", "new", "--weights", tmp_path / "none.pth"], "none.pth: no such file"),
        (
            ["--out", "new", "--weights", tmp_path / "broken.pth", "--model", "small"],
            "is no file that torch saves",
        ),
        (
            ["--out", "new", "--weights", tmp_path / "small.pth", "--model", "vit_x"],
            "there are vit_h, vit_l, vit_b, vit",
        ),
        (["--out", "new", "--weights", tmp_path / "other.pth", "--model", "small"], "name its network with --model"),
        (["--out", "new", "--weights", tmp_path / "b.pth"], "b.pth: is a checkpoint of vit_b; add --model vit_b"),
        (["--out", "new", "--weights", tmp_path / "two.pth"], "of SAM 2; use --provider hf"),
        (["--out", "new", "--weights", tmp_path / "hq.pth"], "of SAM-HQ; use --provider hf"),
        (["--out", "new", "--weights", tmp_path / "mobile.pt"], "of vit_t; add --model vit_t"),
    ):
        assert masks(scene, *argv) == 2
        assert words in capsys.readouterr().err
    assert not (scene / "new").exists()


def test_an_error_inside_the_network_is_one_line_that_names_the_photo(scene, tmp_path, capsys, monkeypatch):
    def fails(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied\nat line 3")

    monkeypatch.setattr(SamGenerator, "propose", fails)
    assert masks(scene, "--out", "new", "--weights", tmp_path / "small.pth", "--model", "small") == 2
    error = capsys.readouterr().err
    assert ".png: --provider sam fails on this photo (RuntimeError: mat1 and mat2 shapes" in error
    assert error.count("\n") == 1


def test_mobile_sam_makes_masks_where_its_code_is_installed(scene, tmp_path):
    mobile = pytest.importorskip("mobile_sam")
    torch.save(certain(mobile.sam_model_registry["vit_t"]()).state_dict(), tmp_path / "mobile_sam.pt")
    few = ["--points-per-side", 2, "--pred-iou-thresh", 0, "--stability-score-thresh", 0, "--min-score", 0]
    assert masks(scene, "--out", "new", "--weights", tmp_path / "mobile_sam.pt", "--model", "vit_t", *few) == 0
    assert json.loads((scene / "new" / "masks.json").read_text())["versions"]["mobile_sam"]
