"""What a geometry allows: votes and fitted channels of true ids."""

import json

import numpy as np
import pytest
import score_ceiling as script
import torch
from diff_gaussian_rasterization import blend

from tests.saved_model import floor_gaussians, save_model
from unified_lift.data import load_annotations
from unified_lift.model.render import blending_weights
from unified_lift.modelfolder.inference import load_model, views_of

CPU = torch.device("cpu")


@pytest.fixture
def seen(tmp_path):
    """Return cameras of the miniature and the channel of each pixel: is it on a coin?"""
    model = load_model(save_model(tmp_path))
    scene = views_of(model)
    truth = load_annotations(model.settings.data, [view.name for view in scene.train])
    return [(view.camera, torch.from_numpy(truth[view.name] > 0).long().reshape(-1)) for view in scene.train]


def test_shares_are_those_of_the_blending_weights(seen):
    gaussians, seen = floor_gaussians(), seen[:2]
    expected = np.zeros((len(gaussians), 2))
    for camera, channel in seen:
        dense = blend(blending_weights(gaussians, camera), torch.eye(len(gaussians))).numpy()  # [P, N]
        for value in (0, 1):
            expected[:, value] += dense[channel.numpy() == value].sum(axis=0)
    total = expected.sum(axis=1, keepdims=True)
    found = script.shares_of_votes(gaussians, seen, 2).numpy()
    assert np.allclose(found, expected / np.maximum(total, 1e-12), atol=1e-5)
    assert (total == 0).any()
    assert (found[total[:, 0] == 0] == 0).all()


def test_fitted_channels_explain_more_training_pixels_than_votes(seen):
    gaussians = floor_gaussians()
    # So wide and thin that many share a pixel, and that the border of a coin runs through many.
    gaussians.set("log_scales", gaussians.log_scales + 0.7)
    gaussians.set("logit_opacities", torch.full_like(gaussians.logit_opacities, -1.0))
    shares = script.shares_of_votes(gaussians, seen, 2)
    fitted = script.fitted_channels(gaussians, seen, shares * script.LOGIT_OF_ONE, steps=200, quiet=True)

    def wrong(values):
        return sum(int((script.largest(gaussians, c, values).reshape(-1) != channel).sum()) for c, channel in seen)

    assert 0 < wrong(fitted) < 0.9 * wrong(shares)


def test_the_table_has_the_model_and_both_ceilings(tmp_path, capsys):
    model = save_model(tmp_path)
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    out = tmp_path / "found.json"
    assert script.main(["-m", str(model), "--steps", "40", "--quiet", "--json", str(out)]) == 0
    rows = json.loads(out.read_text())
    assert list(rows) == ["model", "votes", "fitted"]
    # The model's features are the true ids of its Gaussians; the coins' ids go beyond 8 bits.
    assert all(0.6 < scores["mIoU"] < 1 for scores in rows.values())
    assert rows["votes"]["num_objects_pred"] == rows["votes"]["num_objects_true"] == 3
    printed = capsys.readouterr().out.splitlines()
    assert "PQ_scene" in printed[0]
    assert [line.split()[0] for line in printed[1:]] == list(rows)
    assert {path: path.read_bytes() for path in model.rglob("*") if path.is_file()} == before


def test_a_scene_that_was_not_lifted_has_ceilings_all_the_same(tmp_path):
    args = ["-m", str(save_model(tmp_path, lifted=False)), "--steps", "2", "--quiet"]
    assert script.main([*args, "--json", str(tmp_path / "found.json")]) == 0
    assert list(json.loads((tmp_path / "found.json").read_text())) == ["votes", "fitted"]


@pytest.mark.parametrize(
    ("make", "flags", "message"),
    [
        (lambda root: save_model(root, hold_out=False), [], "train with --eval"),
        (lambda root: root / "nowhere", [], "nowhere"),
        (save_model, ["--steps", "0"], "--steps must be at least 1"),
    ],
)
def test_what_cannot_be_scored_is_an_error_that_says_so(tmp_path, capsys, make, flags, message):
    with pytest.raises(SystemExit):
        script.main(["-m", str(make(tmp_path)), *flags])
    assert message in capsys.readouterr().err
