"""render.py and eval.py, run as a user runs them."""

import json
import os
import shutil

import cv2
import numpy as np
import pytest
import yaml

from tests.saved_model import COIN_IDS, save_model, shift_gaussians
from unified_lift.cli.evaluate import eval_main
from unified_lift.cli.main import main
from unified_lift.cli.render import render_main
from unified_lift.evaluation.pictures import object_colors, read_picture
from unified_lift.types import UserError

KINDS = ("renders", "gt", "depth", "objects_pred", "objects_color", "overlay", "uncertainty")


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


def test_every_view_has_every_picture(rendered):
    for split, count in (("test", 2), ("train", 8)):
        folder = rendered / split / "ours_40"
        assert sorted(path.name for path in folder.iterdir()) == sorted(KINDS)
        for kind in KINDS:
            assert len(list((folder / kind).rglob("*.png"))) == count
    assert not list(rendered.rglob("*.partial*"))


def test_id_pictures_are_16_bit_and_agree_with_their_colors(rendered):
    for path in (rendered / "test" / "ours_40" / "objects_pred").rglob("*.png"):
        assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED).dtype == np.uint16
        ids = read_picture(path)
        assert set(np.unique(ids)) <= set(range(len(COIN_IDS)))
        colors = rendered / "test" / "ours_40" / "objects_color" / path.name
        assert (read_picture(colors) == object_colors(ids)).all()


def test_the_video_shows_colour_beside_objects(rendered):
    capture = cv2.VideoCapture(str(rendered / "orbit_40.mp4"))
    good, frame = capture.read()
    assert good
    assert frame.shape == (240, 640, 3)
    assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == 2


def test_views_with_the_same_stem_in_two_folders_do_not_collide(tmp_path):
    model = save_model(tmp_path)
    scene = tmp_path / "scene"
    content = json.loads((scene / "transforms.json").read_text())
    for index, frame in enumerate(content["frames"]):
        old = scene / (frame["file_path"].removesuffix(".png") + ".png")
        new = scene / f"images/cam{index % 2}/{index // 2}.png"
        new.parent.mkdir(exist_ok=True)
        old.rename(new)
        frame["file_path"] = new.relative_to(scene).as_posix()
    names = [frame["file_path"] for frame in content["frames"]]
    content |= {"train_filenames": names[:-2], "val_filenames": names[-2:], "test_filenames": names[-2:]}
    (scene / "transforms.json").write_text(json.dumps(content))
    assert render_main(["-m", str(model), "--skip_train", "--no-video", "--quiet"]) == 0
    assert len(list((model / "test" / "ours_40" / "gt").rglob("4.png"))) == 2


def test_splits_and_video_can_be_left_out(tmp_path, capsys):
    model = save_model(tmp_path)
    assert main(["render", "-m", str(model), "--skip-train", "--no-video", "--quiet"]) == 0
    assert sorted(path.name for path in model.iterdir() if path.name in ("train", "test")) == ["test"]
    assert not list(model.glob("*.mp4"))
    assert "2 views" in capsys.readouterr().out


def test_an_unlifted_model_gives_colour_only_and_says_so(tmp_path, capsys):
    model = save_model(tmp_path, lifted=False)
    assert main(["render", "-m", str(model), "--skip_train", "--video_seconds", "0.05", "--quiet"]) == 0
    assert sorted(path.name for path in (model / "test" / "ours_40").iterdir()) == ["depth", "gt", "renders"]
    assert cv2.VideoCapture(str(model / "orbit_40.mp4")).read()[1].shape == (240, 320, 3)
    assert main(["eval", "-m", str(model), "--quiet"]) == 0
    assert capsys.readouterr().out.count("knows no objects") == 2
    scores = json.loads((model / "results.json").read_text())["ours_40"]
    assert sorted(scores) == ["PSNR", "SSIM", "num_gaussians"]
    assert not (model / "evaluation.json").exists()


def test_eval_renders_what_is_missing_and_writes_every_file(scored):
    files = ("results.json", "per_view.json", "evaluation.json", "report.html", "plots/losses.png", "plots/metrics.png")
    assert [name for name in files if not (scored / name).is_file()] == []
    assert len(list((scored / "test" / "ours_40" / "objects_pred").rglob("*.png"))) == 2


def test_scores_are_fractions_and_high_for_a_model_that_is_right(scored):
    scores = json.loads((scored / "results.json").read_text())["ours_40"]
    fractions = ("PQ_scene", "SQ_scene", "RQ_scene", "PQ_things", "PQ_stuff", "mIoU", "F1", "SSIM")
    assert all(0 <= scores[name] <= 1 for name in fractions)
    assert scores["PQ_scene"] > 0.75
    assert scores["F1"] == 6 / 7  # the predicted background counts as an object that is not there
    assert scores["PSNR"] > 18
    assert (scores["num_objects_true"], scores["num_objects_pred"], scores["num_objects_3d"]) == (3, 3, 4)


def test_scores_of_views_average_to_those_of_the_scene(scored):
    scores = json.loads((scored / "results.json").read_text())["ours_40"]
    per_view = json.loads((scored / "per_view.json").read_text())["ours_40"]
    assert {len(values) for values in per_view.values()} == {2}
    for metric in ("PSNR", "SSIM"):
        assert np.mean(list(per_view[metric].values())) == pytest.approx(scores[metric])
    assert all(0 <= value <= 1 for value in per_view["mIoU"].values())


def test_the_report_of_the_protocol_tells_its_choices(scored):
    report = json.loads((scored / "evaluation.json").read_text())["ours_40"]
    assert report["protocol"] == "generic"
    assert report["predictions_resampled_to_annotations"] == 0
    assert {entry["true_id"] for entry in report["objects"]} == set(COIN_IDS[1:])


def test_the_page_shows_both_views_with_six_pictures_each(scored):
    page = (scored / "report.html").read_text()
    for caption in ("photo", "render", "true objects", "predicted objects", "overlay", "uncertainty"):
        assert page.count(f"<figcaption>{caption}</figcaption>") == 2
    assert "http" not in page.replace("data:image", "")


def test_a_deleted_prediction_is_rendered_again(tmp_path):
    model = save_model(tmp_path)
    eval_main(["-m", str(model), "--quiet"])
    before = json.loads((model / "results.json").read_text())
    next((model / "test" / "ours_40" / "objects_pred").rglob("*.png")).unlink()
    eval_main(["-m", str(model), "--quiet"])
    assert json.loads((model / "results.json").read_text()) == before


def test_pictures_older_than_the_model_are_rendered_again(tmp_path):
    model = save_model(tmp_path)
    eval_main(["-m", str(model), "--quiet"])
    before = json.loads((model / "results.json").read_text())["ours_40"]["PSNR"]
    for path in model.glob("test/**/*.png"):
        os.utime(path, (1e9, 1e9))
    shift_gaussians(model, 40, 0.3)
    eval_main(["-m", str(model), "--quiet"])
    assert json.loads((model / "results.json").read_text())["ours_40"]["PSNR"] < before - 1


def test_results_of_other_iterations_are_kept(tmp_path):
    model = save_model(tmp_path)
    (model / "results.json").write_text('{"ours_7": {"PSNR": 11.0}}')
    eval_main(["-m", str(model), "--quiet"])
    results = json.loads((model / "results.json").read_text())
    assert list(results) == ["ours_7", "ours_40"]
    assert "11.00 dB" in (model / "report.html").read_text()
    (model / "results.json").write_text("{half")
    with pytest.raises(UserError, match="results.json: not readable JSON"):
        eval_main(["-m", str(model), "--quiet"])


def test_messy_rooms_scenes_are_scored_by_their_own_protocol_unless_told_otherwise(tmp_path):
    model = save_model(tmp_path, reader="messy_rooms")
    eval_main(["-m", str(model), "--quiet"])
    assert json.loads((model / "evaluation.json").read_text())["ours_40"]["protocol"] == "messy_rooms"
    eval_main(["-m", str(model), "--quiet", "--protocol", "generic"])
    assert json.loads((model / "evaluation.json").read_text())["ours_40"]["protocol"] == "generic"


def test_ids_rendered_small_are_compared_at_the_size_of_the_annotations(tmp_path):
    model = save_model(tmp_path)
    config = yaml.safe_load((model / "config.yaml").read_text())
    config["data"]["resolution"] = 2
    (model / "config.yaml").write_text(yaml.safe_dump(config))
    eval_main(["-m", str(model), "--quiet"])
    report = json.loads((model / "evaluation.json").read_text())["ours_40"]
    assert report["predictions_resampled_to_annotations"] == 2
    assert report["resolution"] == ["32x24"]


def test_without_annotations_only_images_are_scored(tmp_path, capsys):
    model = save_model(tmp_path)
    shutil.rmtree(tmp_path / "scene" / "annotations")
    assert main(["eval", "-m", str(model), "--quiet"]) == 0
    assert "no annotations: only image scores" in capsys.readouterr().out
    scores = json.loads((model / "results.json").read_text())["ours_40"]
    assert sorted(scores) == ["PSNR", "SSIM", "num_gaussians", "num_objects_3d"]


def test_a_scene_that_moved_is_found_with_s(tmp_path, capsys):
    model = save_model(tmp_path)
    (tmp_path / "scene").rename(tmp_path / "elsewhere")
    assert main(["eval", "-m", str(model), "--quiet"]) == 2
    assert "give its place with -s" in capsys.readouterr().err
    assert main(["eval", "-m", str(model), "-s", str(tmp_path / "elsewhere"), "--quiet"]) == 0


def test_a_model_without_held_out_views_cannot_be_scored(tmp_path, capsys):
    model = save_model(tmp_path, hold_out=False)
    assert main(["eval", "-m", str(model)]) == 2
    assert "train.py ... --eval" in capsys.readouterr().err
    assert main(["render", "-m", str(model), "--no-video", "--quiet"]) == 0
    assert "no view is held out" in capsys.readouterr().out


def test_wrong_arguments_are_one_line_each(tmp_path, capsys):
    assert main(["render", "-m", str(tmp_path / "nowhere")]) == 2
    assert main(["eval", "-m", str(tmp_path / "nowhere")]) == 2
    assert main(["eval", "-m", str(tmp_path), "--protocol", "best"]) == 2
    assert main(["render", "-m", str(tmp_path), "--video-seconds", "0"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4
    assert "nowhere: no config.yaml" in errors[0]
    assert "--protocol best: there are auto, generic, messy_rooms" in errors[2]
    assert "--video_seconds" in errors[3]
