"""Several sets of masks lifted on one geometry: train.py --levels."""

import filecmp
import shutil

import cv2
import pytest

from tests.cli.test_train import SHORT
from tests.data.fixtures import write_dataset
from unified_lift.cli.main import main
from unified_lift.errors import UserError
from unified_lift.modelfolder.inference import load_model
from unified_lift.modelfolder.outputs import level_dir, saved_levels
from unified_lift.train import schedule


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A miniature with masks of whole objects and others in which each is cut in two."""
    root = tmp_path_factory.mktemp("levels") / "scene"
    write_dataset("colmap", root)
    shutil.copytree(root / "object_mask", root / "object_mask_part")
    for path in (root / "object_mask_part").rglob("*.png"):
        ids = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        ids[:, ::2][ids[:, ::2] > 0] += 5000
        cv2.imwrite(str(path), ids)
    return root


def train(scene, model, *flags):
    return main(["train", "-s", str(scene), "-m", str(model), *SHORT, *flags])


def test_levels_share_the_geometry_and_are_models_of_their_own(scene, tmp_path, capsys):
    model = tmp_path / "model"
    assert train(scene, model, "--levels", "part=object_mask_part") == 0
    assert saved_levels(model) == ["part"]
    whole, part = load_model(model), load_model(model, level="part")
    assert whole.gaussians.means.equal(part.gaussians.means)
    assert not whole.gaussians.features.equal(part.gaussians.features)
    saved, of_level = model / "point_cloud" / "iteration_12", level_dir(model, "part") / "point_cloud" / "iteration_0"
    assert filecmp.cmp(saved / "point_cloud.ply", of_level / "point_cloud.ply", shallow=False)
    with pytest.raises(UserError, match="no level parts; there are part"):
        load_model(model, level="parts")
    capsys.readouterr()
    assert main(["render", "-m", str(level_dir(model, "part")), "--quiet", "--no-video"]) == 0
    # A new run into the folder does not leave levels of the old geometry behind.
    assert train(scene, model, "--overwrite") == 0
    assert saved_levels(model) == []


def test_levels_lie_on_geometry_whose_length_was_chosen(scene, tmp_path, monkeypatch):
    monkeypatch.setattr(schedule, "cpu_schedule", lambda photos, **_: (12, 200))
    model = tmp_path / "model"
    assert train(scene, model, "--levels", "part=object_mask_part", "--iterations", "-1", "--device", "cpu") == 0
    assert load_model(model).iteration == 12
    assert load_model(model).gaussians.means.equal(load_model(model, level="part").gaussians.means)


def test_a_level_goes_on_where_it_was_stopped(scene, tmp_path):
    model, flags = tmp_path / "model", ["--levels", "part=object_mask_part"]
    assert train(scene, model, *flags, "--checkpoint_iterations", "5") == 0
    whole = load_model(model, level="part")
    shutil.rmtree(level_dir(model, "part") / "point_cloud")
    for name in ("manifest.json", "chkpnt10.pth"):
        (level_dir(model, "part") / name).unlink()
    assert main(["train", "-m", str(model), "--resume", *flags]) == 0
    resumed = load_model(model, level="part")
    assert whole.gaussians.features.equal(resumed.gaussians.features)
    assert whole.object_ids.equal(resumed.object_ids)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("object_mask_part", "write NAME=FOLDER"),
        ("part=", "write NAME=FOLDER"),
        ("../x=object_mask_part", "write NAME=FOLDER"),
        ("part=object_mask_parts", "object_mask_parts: no such mask folder"),
    ],
)
def test_a_wrong_level_is_refused_before_anything_is_trained(scene, tmp_path, word, message, capsys):
    assert train(scene, tmp_path / "model", "--levels", word) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
