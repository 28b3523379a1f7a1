"""render.py and eval.py, run as a user runs them."""

import json
import os
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import yaml

from tests.saved_model import COIN_IDS, save_model, shift_gaussians
from unified_lift.cli.evaluate import eval_main
from unified_lift.cli.main import main
from unified_lift.cli.render import render_main
from unified_lift.data import DATASETS
from unified_lift.errors import UserError
from unified_lift.evaluation.evaluate import evaluate
from unified_lift.evaluation.grounding import masks_in
from unified_lift.evaluation.pictures import OBJECT_PICTURES, PICTURES, object_colors, read_picture
from unified_lift.methods import METHODS
from unified_lift.methods.unified_lift import UnifiedLift
from unified_lift.metrics import VIEW_METRICS
from unified_lift.modelfolder.inference import load_model, views_of

KINDS = ("renders", "gt", "depth", "objects_pred", "objects_color", "overlay", "uncertainty")


def read(model, name="results.json"):
    """Return what a file says about the saved iteration."""
    return json.loads((model / name).read_text())["ours_40"]


def scores_of(model, *flags):
    """Run eval.py and return the scores."""
    assert eval_main(["-m", str(model), "--quiet", *map(str, flags)]) == 0
    return read(model)


@pytest.fixture
def refused(capsys):
    """Run a command that must fail; return what it says."""

    def run(command, model, *flags):
        assert main([command, "-m", str(model), "--quiet", *map(str, flags)]) == 2
        (error,) = capsys.readouterr().err.splitlines()
        return error

    return run


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """A model folder after `render.py`, for reading only."""
    model = save_model(tmp_path_factory.mktemp("rendered"))
    assert render_main(["-m", str(model), "--video_seconds", "0.1", "--quiet"]) == 0
    return model


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A model folder after `eval.py` alone, for reading only."""
    model = save_model(tmp_path_factory.mktemp("scored"))
    (model / "metrics.jsonl").write_text('{"stage": "lift", "step": 50, "contrastive": 1.5}\n')
    assert eval_main(["-m", str(model), "--quiet"]) == 0
    return model


def test_every_view_has_every_picture_and_ids_agree_with_their_colors(rendered):
    for split, count in (("test", 2), ("train", 8)):
        folder = rendered / split / "ours_40"
        assert sorted(path.name for path in folder.iterdir()) == sorted(KINDS)
        assert [len(list((folder / kind).rglob("*.png"))) for kind in KINDS] == [count] * len(KINDS)
        for path in (folder / "objects_pred").rglob("*.png"):
            ids = read_picture(path)
            assert set(np.unique(ids)) <= set(range(len(COIN_IDS)))
            assert (read_picture(folder / "objects_color" / path.name) == object_colors(ids)).all()
    assert not list(rendered.rglob("*.partial*"))


def test_the_video_shows_colour_beside_objects(rendered):
    capture = cv2.VideoCapture(str(rendered / "orbit_40.mp4"))
    assert capture.read()[1].shape == (240, 640, 3)
    assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == 2


def test_views_with_the_same_stem_in_two_folders_do_not_collide(tmp_path):
    model, scene = save_model(tmp_path), tmp_path / "scene"
    content = json.loads((scene / "transforms.json").read_text())
    names = [f"images/cam{index % 2}/{index // 2}.png" for index in range(len(content["frames"]))]
    for name, frame in zip(names, content["frames"]):
        (scene / name).parent.mkdir(exist_ok=True)
        (scene / (frame["file_path"].removesuffix(".png") + ".png")).rename(scene / name)
        frame["file_path"] = name
    content |= {"train_filenames": names[:-2], "val_filenames": names[-2:], "test_filenames": names[-2:]}
    (scene / "transforms.json").write_text(json.dumps(content))
    assert render_main(["-m", str(model), "--skip_train", "--no-video", "--quiet"]) == 0
    assert len(list((model / "test" / "ours_40" / "gt").rglob("4.png"))) == 2
    assert not [*model.glob("train"), *model.glob("*.mp4")]


def test_an_unlifted_model_gives_colour_only_and_says_so(tmp_path, capsys):
    model = save_model(tmp_path, lifted=False)
    assert main(["render", "-m", str(model), "--skip_train", "--video_seconds", "0.05", "--quiet"]) == 0
    assert sorted(path.name for path in (model / "test" / "ours_40").iterdir()) == ["depth", "gt", "renders"]
    assert cv2.VideoCapture(str(model / "orbit_40.mp4")).read()[1].shape == (240, 320, 3)
    assert main(["eval", "-m", str(model), "--quiet"]) == 0
    assert capsys.readouterr().out.count("knows no objects") == 2
    assert sorted(read(model)) == ["PSNR", "SSIM", "num_gaussians"]
    assert not (model / "evaluation.json").exists()


def test_eval_renders_what_is_missing_and_writes_every_file(scored):
    files = ("results.json", "per_view.json", "evaluation.json", "report.html", "plots/losses.png", "plots/metrics.png")
    assert [name for name in files if not (scored / name).is_file()] == []
    assert len(list((scored / "test" / "ours_40" / "objects_pred").rglob("*.png"))) == 2
    report = read(scored, "evaluation.json")
    assert (report["protocol"], report["predictions_resampled_to_annotations"]) == ("generic", 0)
    assert {entry["true_id"] for entry in report["objects"]} == set(COIN_IDS[1:])
    page = (scored / "report.html").read_text()
    for caption in ("photo", "render", "true objects", "predicted objects", "overlay", "uncertainty"):
        assert page.count(f"<figcaption>{caption}</figcaption>") == 2


def test_scores_are_fractions_and_high_for_a_model_that_is_right(scored):
    scores, per_view = read(scored), read(scored, "per_view.json")
    fractions = ("PQ_scene", "SQ_scene", "RQ_scene", "PQ_things", "PQ_stuff", "mIoU", "F1", "SSIM")
    assert all(0 <= scores[name] <= 1 for name in fractions)
    assert scores["PQ_scene"] > 0.75
    assert scores["F1"] == 6 / 7  # the predicted background counts as an object that is not there
    assert scores["PSNR"] > 18
    assert (scores["num_objects_true"], scores["num_objects_pred"], scores["num_objects_3d"]) == (3, 3, 4)
    assert {len(values) for values in per_view.values()} == {2}
    for metric in ("PSNR", "SSIM"):
        assert np.mean(list(per_view[metric].values())) == pytest.approx(scores[metric])


def test_pictures_that_are_missing_or_older_than_the_model_are_rendered_again(tmp_path):
    model = save_model(tmp_path)
    before = scores_of(model)
    pictures = sorted(model.glob("test/**/*.png"))
    assert {path.parent.name for path in pictures} == {*PICTURES, *OBJECT_PICTURES}
    for kind in (*PICTURES, *OBJECT_PICTURES):
        next((model / "test" / "ours_40" / kind).rglob("*.png")).unlink()
        assert scores_of(model) == before
        assert sorted(model.glob("test/**/*.png")) == pictures
    for path in model.glob("test/**/*.png"):
        os.utime(path, (1e9, 1e9))
    shift_gaussians(model, 40, 0.3)
    assert scores_of(model)["PSNR"] < before["PSNR"] - 1


def test_scoring_writes_nothing_by_itself_and_agrees_with_the_stored_pictures(tmp_path, scored):
    path = save_model(tmp_path)
    before = sorted(path.rglob("*"))
    model = load_model(path)
    result = evaluate(model, views_of(model))
    assert sorted(path.rglob("*")) == before
    for found, name in ((result.scores, "results"), (result.per_view, "per_view"), (result.report, "evaluation")):
        assert found == read(scored, f"{name}.json")


def test_a_metric_of_views_also_sees_depth_ids_and_annotation(tmp_path, monkeypatch):
    def depth_of_coins(bundle):
        on_coin = torch.from_numpy(bundle.annotation > 0)
        return float(bundle.depth()[on_coin].mean()) if bundle.object_ids[on_coin].any() else None

    monkeypatch.setitem(VIEW_METRICS, "coin_depth", depth_of_coins)
    model = load_model(save_model(tmp_path))
    scene = views_of(model)
    result = evaluate(model, scene)
    distances = [np.linalg.norm(view.camera.position) for view in scene.test]  # from the middle of the floor
    assert list(result.per_view["coin_depth"].values()) == pytest.approx(distances, rel=0.3)
    assert result.scores["coin_depth"] == pytest.approx(np.mean(list(result.per_view["coin_depth"].values())))


def test_colours_are_fitted_where_exposures_were_trained_or_it_is_asked_for(tmp_path, capsys):
    model = save_model(tmp_path)
    assert not {"cc_PSNR", "cc_SSIM"} & set(scores_of(model))
    asked = scores_of(model, "--color_correct", "quadratic")
    config = model / "config.yaml"
    config.write_text(config.read_text().replace("exposure: none", "exposure: bilateral"))
    affine = scores_of(model)
    assert affine["PSNR"] < affine["cc_PSNR"] < asked["cc_PSNR"]
    assert "cc_PSNR" in capsys.readouterr().out
    assert "cc_SSIM" not in scores_of(model, "--color_correct", "none")
    assert "cc_SSIM" not in (model / "per_view.json").read_text()


def test_results_of_other_iterations_are_kept(tmp_path):
    model = save_model(tmp_path)
    (model / "results.json").write_text('{"ours_7": {"PSNR": 11.0}}')
    eval_main(["-m", str(model), "--quiet"])
    results = json.loads((model / "results.json").read_text())
    assert list(results) == ["ours_7", "ours_40"]
    assert "11.00 dB" in (model / "report.html").read_text()
    (model / "results.json").write_text("{half")
    with pytest.raises(UserError, match="results.json: not a readable JSON"):
        eval_main(["-m", str(model), "--quiet"])


@pytest.mark.parametrize(
    ("reader", "flags", "protocol", "known", "unknown"),
    [
        ("messy_rooms", (), "messy_rooms", "PQ_scene", "mIoU_masked"),
        ("messy_rooms", ("--protocol", "generic"), "generic", "PQ_scene", "mIoU_masked"),
        ("replica", (), "replica", "F1_viewmean", "PQ_scene"),
    ],
)
def test_scenes_are_scored_by_their_own_protocol_unless_told_otherwise(
    tmp_path, reader, flags, protocol, known, unknown
):
    model = save_model(tmp_path, reader=reader)
    scores = scores_of(model, *flags)
    assert read(model, "evaluation.json")["protocol"] == protocol
    assert known in scores
    assert unknown not in scores
    assert (known == "F1_viewmean") == ("averaged view by view" in (model / "report.html").read_text())


def test_a_reader_that_names_an_unknown_protocol_is_told(tmp_path, monkeypatch, refused):
    monkeypatch.setitem(DATASETS, "transforms", replace(DATASETS["transforms"], protocol="coco"))
    assert "reader transforms names coco, but there are generic" in refused("eval", save_model(tmp_path))


@pytest.fixture
def prompted(tmp_path):
    """A model of a scene with text prompts, and a folder of masks that words might have found in view 0."""
    model, masks = save_model(tmp_path, reader="lerf_mask"), tmp_path / "words"
    shutil.copytree(tmp_path / "scene" / "test_mask" / "0", masks)
    return model, masks


def test_prompts_without_grounding_have_oracle_scores_only(prompted, capsys):
    model, _ = prompted
    assert main(["eval", "-m", str(model), "--quiet"]) == 0
    scores = read(model)
    assert scores["mIoU_oracle"] > 0.7
    assert "mIoU" not in scores
    assert "give --grounding FOLDER" in capsys.readouterr().out
    assert not (model / "test" / "ours_40_text").exists()


def test_prompts_found_by_words_are_scored_and_their_masks_written(prompted):
    model, masks = prompted
    scores = scores_of(model, "--grounding", masks)
    assert 0.7 < scores["mIoU"] <= scores["mIoU_best_id"] <= 1
    assert 0 < scores["mBIoU"] <= 1
    written = model / "test" / "ours_40_text" / "test_mask"
    assert sorted(path.name for path in written.iterdir()) == ["0", "1", "2"]
    for path in written.rglob("*.png"):
        pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert (pixels.dtype, pixels.shape) == (np.uint8, (24, 32))
        assert set(np.unique(pixels)) <= {0, 255}
        assert pixels.any()
    report = read(model, "evaluation.json")
    assert report["grounding"] == {"provider": "folder", "folder": "../words", "reference_image": "dataset"}
    assert report["mask_source"]
    page = (model / "report.html").read_text()
    for caption in ("true prompts", "predicted prompts", "red coin with a very long name"):
        assert caption in page
    # The masks found are kept, and give another model the same start.
    assert scores_of(model, "--grounding", written.with_name("reference_mask")) == scores


@pytest.mark.parametrize(("kind", "folder"), [("dataset", "gt"), ("render", "renders")])
def test_words_look_at_the_photo_or_at_the_rendering(prompted, monkeypatch, kind, folder):
    model, masks = prompted
    seen = []

    def spy(image, prompts):
        seen.append(image)
        return masks_in(masks)(image, prompts)

    monkeypatch.setattr("unified_lift.cli.evaluate.grounding_of", lambda text, device: spy)
    scores_of(model, "--grounding", "spy", "--reference_image", kind)
    (image,) = seen
    assert (image == read_picture(model / "test" / "ours_40" / folder / "test_0.png")).all()
    assert read(model, "evaluation.json")["grounding"]["reference_image"] == kind


def test_grounding_that_does_not_fit_is_refused(prompted, refused):
    model, masks = prompted
    for path in masks.iterdir():
        cv2.imwrite(str(path), np.zeros((9, 5), np.uint8))
    assert "is 5x9 but view test_0 is 32x24" in refused("eval", model, "--grounding", masks)
    assert "generic has no prompts" in refused("eval", model, "--grounding", masks, "--protocol", "generic")
    assert "--protocol replica: scene has no annotations" in refused("eval", model, "--protocol", "replica")


class Swept(UnifiedLift):
    """Keeps three codebooks; its own is the second one, in another order."""

    names = ("coarse", "fine", "bad")

    def candidates(self):
        return {name: self.segmenting_as(name) for name in self.names}

    def segmenting_as(self, name):
        other, codes = UnifiedLift(self.settings, zero_id="ignore", seed=0), torch.eye(4, 16)
        other.load_object_state({"coarse": codes[:2], "fine": codes.flip(0), "bad": codes[:1]}[name])
        return other


@pytest.fixture
def swept(monkeypatch):
    """Models are loaded as ones that kept several codebooks; scores by flags and returns oracle.json."""
    monkeypatch.setitem(METHODS, "unified_lift", METHODS["unified_lift"]._replace(build=Swept))

    def sweep(model, *flags):
        scores_of(model, "--oracle_codebooks", *flags)
        return json.loads((model / "oracle.json").read_text())

    return sweep


def test_the_best_of_several_clusterings_is_told_apart_from_the_one_that_was_chosen(
    tmp_path, swept, monkeypatch, capsys
):
    model = save_model(tmp_path)
    sweep = swept(model)
    of = {name: scores["PQ_scene"] for name, scores in sweep["candidates"].items()}
    assert list(of) == ["coarse", "fine", "bad"]
    assert (sweep["best"], sweep["chosen"], sweep["headline"]) == ("fine", "fine", "PQ_scene")
    assert of["coarse"] < of["fine"] == pytest.approx(read(model)["PQ_scene"])
    output = capsys.readouterr().out
    assert "fine: PQ_scene" in output
    assert "chosen with the annotations" in output
    # A choice that is no candidate is scored beside them.
    monkeypatch.setattr(Swept, "names", ("coarse", "bad"))
    sweep = swept(model)
    assert list(sweep["candidates"]) == ["as trained", "coarse", "bad"]
    assert sweep["chosen"] == sweep["best"] == "as trained"


def test_masks_of_prompts_are_swept_as_well(prompted, swept):
    model, masks = prompted
    sweep = swept(model, "--grounding", masks)
    assert (sweep["headline"], sweep["best"]) == ("mIoU", "fine")
    assert sweep["candidates"]["bad"]["mIoU"] < 0.1


def test_without_annotations_only_images_are_scored_and_nothing_is_swept(tmp_path, monkeypatch, capsys, refused):
    model = save_model(tmp_path)
    assert "keeps no candidates" in refused("eval", model, "--oracle_codebooks")
    shutil.rmtree(tmp_path / "scene" / "annotations")
    of_masks, counts = ["coverage", "coverage_by_masks", "mask_agreement"], ["num_gaussians", "num_objects_3d"]
    assert sorted(scores_of(model)) == ["PSNR", "SSIM", *of_masks, "neighbour_consistency", *counts]
    assert "no annotations: no scores against ground truth" in capsys.readouterr().out
    monkeypatch.setitem(METHODS, "unified_lift", METHODS["unified_lift"]._replace(build=Swept))
    assert "no annotations to choose by" in refused("eval", model, "--oracle_codebooks")
    assert not (model / "oracle.json").exists()


def test_ids_rendered_small_are_compared_at_the_size_of_the_annotations(tmp_path):
    model = save_model(tmp_path)
    config = yaml.safe_load((model / "config.yaml").read_text())
    config["data"]["resolution"] = 2
    (model / "config.yaml").write_text(yaml.safe_dump(config))
    scores_of(model)
    report = read(model, "evaluation.json")
    assert report["predictions_resampled_to_annotations"] == 2
    assert report["resolution"] == ["32x24"]


def test_a_scene_that_moved_is_found_with_s(tmp_path, refused):
    model = save_model(tmp_path)
    (tmp_path / "scene").rename(tmp_path / "elsewhere")
    assert "give its place with -s" in refused("eval", model)
    assert scores_of(model, "-s", tmp_path / "elsewhere")["PSNR"] > 18


def test_a_model_without_held_out_views_cannot_be_scored(tmp_path, capsys, refused):
    model = save_model(tmp_path, hold_out=False)
    assert "unified-lift train ... --eval" in refused("eval", model)
    assert main(["render", "-m", str(model), "--no-video", "--quiet"]) == 0
    assert "no view is held out" in capsys.readouterr().out


def test_wrong_arguments_are_one_line_each(tmp_path, refused):
    for command in ("render", "eval"):
        assert "nowhere: no config.yaml" in refused(command, tmp_path / "nowhere")
    assert "--protocol best: there are auto, generic, lerf_mask" in refused("eval", tmp_path, "--protocol", "best")
    assert "--video_seconds must be at least" in refused("render", tmp_path, "--video-seconds", "0")
