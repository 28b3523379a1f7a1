"""Every reader, by being listed, is trained, rendered and scored through the command line on its miniature."""

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from tests.cli.test_train import SHORT
from tests.data.fixtures import write_dataset
from unified_lift.cli.main import main
from unified_lift.data import DATASETS
from unified_lift.evaluation.protocols import PROTOCOLS
from unified_lift.modelfolder.checkpoint import checkpoints, load_checkpoint
from unified_lift.modelfolder.inference import load_model


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_miniature_goes_through_the_whole_program(name, tmp_path, capsys):
    scene, model = tmp_path / "scene", tmp_path / "model"
    write_dataset(name, scene)
    before = {path: path.read_bytes() for path in scene.rglob("*") if path.is_file()}
    points = ["--random_init", "--num_random_points", "200"]
    train = ["train", "-s", str(scene), "-m", str(model), "--eval", *points, *SHORT]
    assert main(train) == 0
    assert main(["render", "-m", str(model), "--quiet", "--no-video"]) == 0
    assert main(["eval", "-m", str(model), "--quiet"]) == 0
    assert "PSNR" in capsys.readouterr().out
    (scores,) = json.loads((model / "results.json").read_text()).values()
    assert 3 < scores["PSNR"] < 60
    given = [scores[metric] for metric in PROTOCOLS[DATASETS[name].protocol].headline if metric in scores]
    assert given
    assert all(0 <= value <= 1 for value in given)
    assert (model / "report.html").stat().st_size > 10_000
    assert {path: path.read_bytes() for path in scene.rglob("*") if path.is_file()} == before  # nothing written there
    # The saved model reads back as it was trained.
    loaded = load_model(model)
    gaussians, codebook = loaded.gaussians, loaded.method.codebook
    state = load_checkpoint(list(checkpoints(model).values())[-1])
    for name, value in gaussians:
        if name != "features":  # which the objects' votes replace at the end
            assert torch.equal(value, state["gaussians"][name]), name
    trained = state["method"]["codebook"]  # the saved one is ordered by area
    codes = sorted(normalize(trained, dim=1).tolist())
    assert sorted(codebook.tolist()) == codes
    labels = np.load(model / "point_cloud" / "iteration_12" / "segmentation.npz")
    assert labels["object_id"].shape == (len(gaussians),)
    assert labels["object_id"].max() < len(codebook)
    objects = json.loads((model / "point_cloud" / "iteration_12" / "objects.json").read_text())
    unlisted = (labels["object_id"] == labels["no_object"]).sum()  # what no mask claims is no object
    assert sum(entry["count"] for entry in objects.values()) + unlisted == len(gaussians)
    assert (unlisted > 0) == (str(labels["no_object"]) not in objects and labels["no_object"] >= 0)
