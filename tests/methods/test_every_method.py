"""Every method, by being found, is lifted, stopped, resumed, saved, rendered and scored on a miniature."""

import json
import os

import pytest
import torch

from tests.data.fixtures import write_dataset
from tests.methods.calls import build
from unified_lift.cli.main import main
from unified_lift.errors import UserError
from unified_lift.methods import METHODS
from unified_lift.methods.base import Method
from unified_lift.modelfolder.checkpoint import checkpoints, load_checkpoint
from unified_lift.modelfolder.inference import load_model
from unified_lift.modelfolder.outputs import iteration_dir
from unified_lift.modelfolder.settings import TrainSettings, with_preset

GEOMETRY = ["--iterations=60", "--sh_degree=0", "--densify_from_iter=1000"]
LIFT = ["--iterations=0", "--lift_pixels=300", "--random_init", "--num_random_points=4"]
EASY = [f"--codebook_{name}" for name in ("min_members=1", "min_pixels=1", "min_consistency=0", "min_support=0")]
QUIET = ["--quiet", "--logger=none", "--test_iterations=60", "--device=cpu"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A miniature scene and the geometry that every method shares."""
    root = tmp_path_factory.mktemp("methods")
    write_dataset("messy_rooms", root / "scene")
    points = ["--random_init", "--num_random_points=200"]
    argv = ["train", "-s", str(root / "scene"), "-m", str(root / "geometry"), "--eval", "--lift_iterations=0"]
    assert main([*argv, *GEOMETRY, *points, *QUIET]) == 0
    return root / "scene", root / "geometry" / "point_cloud" / "iteration_60" / "point_cloud.ply"


def lift(trained, model, name, steps, *flags):
    scene, ply = trained
    argv = ["train", "-s", str(scene), "-m", str(model), "--eval", "--method", name, "--init_ply", str(ply)]
    return main([*argv, *LIFT, *QUIET, f"--lift_iterations={steps}", *flags])


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_goes_through_the_whole_program(name, trained, tmp_path, capsys):
    model = tmp_path / "model"
    flags = EASY if name == "unified_lift" else []
    assert lift(trained, model, name, 40, *flags) == 0
    assert main(["eval", "-m", str(model), "--quiet", "--device=cpu"]) == 0
    assert "PQ_scene" in capsys.readouterr().out
    (scores,) = json.loads((model / "results.json").read_text()).values()
    assert 0 <= scores["PQ_scene"] <= 1
    saved = load_model(model)
    assert isinstance(saved.method, Method)
    assert saved.method.num_objects > 0
    manifest = json.loads((model / "manifest.json").read_text())
    assert manifest["method"]["name"] == name
    sweep = manifest["method"].get("cluster_sweep", [])
    sizes = [f"min_cluster_size={row['min_cluster_size']}" for row in sweep if row["clusters"]]
    assert list(saved.method.candidates()) == sizes
    assert not sizes or saved.method.chosen == manifest["method"]["chosen"]
    features = torch.randn(50, saved.method.feature_dim, generator=torch.Generator().manual_seed(0))
    ids, confidence = saved.method.segment(features)
    assert int(ids.min()) >= 0
    assert int(ids.max()) < saved.method.num_objects
    assert bool(((confidence >= 0) & (confidence <= 1)).all())
    order = torch.arange(saved.method.num_objects).flip(0)
    saved.method.reorder(order)
    assert torch.equal(order[saved.method.segment(features).object_ids], ids)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_new_method_knows_nothing_and_has_its_preset(name):
    entry = METHODS[name]
    settings = with_preset(TrainSettings(), name)
    assert (settings.method_name, settings.method) == (name, entry.settings())
    method = entry.build(settings.method, zero_id="segment", seed=0)
    ids, confidence = method.segment(torch.randn(3, 4, method.feature_dim))
    assert ids.shape == confidence.shape == (3, 4)
    assert method.num_objects == int(ids.abs().max()) == int(confidence.max()) == 0
    assert method.candidates() == {}
    asked = [("ignore", "auto"), ("segment", "ignore"), ("segment", "auto"), ("ignore", "segment")]
    ignored = [build(name, data_says=data, zero_id=setting).ignore_zero for data, setting in asked]
    assert ignored == [True, True, False, False]


NONSENSE = {
    "unified_lift": [{"num_codes": -1}, {"feature_dim": 0}],
    "gaga": [
        *({name: 0} for name in ("bank_grid", "knn_interval", "knn_neighbours", "knn_anchors")),
        *({"bank_share": share} for share in (0.0, 1.5)),
        *({"bank_min_score": score} for score in (0.0, 0.51)),
    ],
    "gaussian_grouping": [{"num_codes": 0}],
    "panoptic_lifting_gs": [{"num_codes": 0}],
    "omniseg3d_gs": [
        *({"cluster_sizes": sizes} for sizes in ((), (1, 5))),
        *({"cluster_sample": 1}, {"score_pixels": 0}, {"confidence_temperature": 0.0}),
    ],
    "contrastive_lift_gs": [{"feature_dim": 7}, {"slow_momentum": 1.5}, {"view_pixels": 1}],
}


@pytest.mark.parametrize(("name", "change"), [(n, change) for n, own in NONSENSE.items() for change in own], ids=str)
def test_settings_that_make_no_sense_name_their_flag(name, change):
    METHODS[name].settings().check()
    with pytest.raises(UserError, match=f"--{next(iter(change))}"):
        METHODS[name].settings(**change).check()


@pytest.mark.parametrize("name", sorted(METHODS))
def test_stopping_and_resuming_changes_nothing(name, trained, tmp_path):
    flags = EASY if name == "unified_lift" else []
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert lift(trained, whole, name, 24, "--checkpoint_iterations", "12", *flags) == 0
    halves.mkdir()
    for file in ("config.yaml", "chkpnt12.pth"):
        os.link(whole / file, halves / file)
    assert lift(trained, halves, name, 24, "--start_checkpoint", str(halves / "chkpnt12.pth"), *flags) == 0
    first, second = (load_checkpoint(list(checkpoints(m).values())[-1]) for m in (whole, halves))
    assert first["step"] == second["step"] == 24
    for part in ("gaussians", "method"):
        torch.testing.assert_close(first[part], second[part], rtol=0, atol=0)
    for file in ("classifier.pth", "segmentation.npz"):
        one, other = ((iteration_dir(m, 0) / file).read_bytes() for m in (whole, halves))
        assert one == other, file


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"unified_lift"}))
def test_methods_on_finished_geometry_say_so(name, trained, tmp_path, capsys):
    scene, _ = trained
    argv = ["train", "-s", str(scene), "-m", str(tmp_path / "m"), "--method", name, "--schedule=joint", *GEOMETRY]
    if METHODS[name].build(METHODS[name].settings(), zero_id="segment", seed=0).allows_joint:
        pytest.fail(f"{name} allows the joint schedule, which nothing tests")
    assert main([*argv, "--random_init", "--num_random_points=50", *QUIET]) == 2
    assert f"--method {name} needs finished geometry" in capsys.readouterr().err
