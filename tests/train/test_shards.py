"""Gaussians of which each of two processes keeps a part, against one process that sees the same views."""

import pytest
import torch

from tests import processes
from tests.train.test_ranks import assert_equal, in_two, tensors, train
from tests.train.test_training import StopAt
from unified_lift import ranks
from unified_lift.modelfolder.checkpoint import checkpoints
from unified_lift.modelfolder.inference import load_model
from unified_lift.ranks import Ranks
from unified_lift.train import hooks
from unified_lift.train.logs import read_log

SHARDS = {"shard_gaussians": True, "lift_iterations": 0}
DENSE = {"densify_from_iter": 4, "densify_until_iter": 20, "densification_interval": 6, "min_contribution": 1e-3}


def test_without_rounds_of_density_two_parts_train_as_the_whole(tmp_path, monkeypatch):
    changes = {
        "density": {"densify_from_iter": 1_000},
        "geometry": {"exposure": "affine", "loss_weights": ["opacity=0.1", "needle=0.1"], "max_scale": 0.2},
        "run": {"save_iterations": [11], "checkpoint_iterations": [14]},
    }
    changes["run"] |= {"logger": "none", "quiet": True, "log_interval": 5}
    monkeypatch.setattr(ranks, "_current", Ranks(batch=2))
    assert train(tmp_path / "one", changes | {"lift_iterations": 0}) == 0
    monkeypatch.setattr(ranks, "_current", Ranks())
    assert in_two(tmp_path, tmp_path / "two", changes | SHARDS) == [0, 0], processes.said(tmp_path)
    assert "each of 2 processes keeps a part" not in processes.said(tmp_path)  # quiet
    one, two = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert one.keys() == two.keys() == {14, 24}
    rows = torch.cat([torch.arange(120)[0::2], torch.arange(120)[1::2]])  # of the whole, in the order of the parts
    for number in one:
        for name, value in one[number].items():
            same = value[rows] if value.shape[:1] == (120,) else value
            # The first Gaussians are round, so that their turns have no gradient but noise, which Adam makes steps of.
            share = 2e-2 if "quats" in name else 5e-3
            if "generator" not in name and value.numel():
                assert float((two[number][name] - same).abs().max()) <= share * float(same.abs().max()), name
    models = [load_model(tmp_path / name, iteration=11).gaussians.means.detach() for name in ("one", "two")]
    torch.testing.assert_close(models[1], models[0][rows], rtol=1e-4, atol=1e-5)
    assert read_log(tmp_path / "two")[-1]["psnr"] == pytest.approx(read_log(tmp_path / "one")[-1]["psnr"], abs=1e-2)


@pytest.mark.parametrize("strategy", ["default", "mcmc"])
def test_interrupted_and_resumed_parts_equal_undisturbed_ones(tmp_path, monkeypatch, strategy):
    monkeypatch.setattr(hooks, "_AGREE_S", 0.0)
    density = DENSE if strategy == "default" else {"relocate_from_iter": 2, "relocation_interval": 5}
    changes = SHARDS | {"strategy": strategy, "density": density | {"max_gaussians": 151}}
    assert in_two(tmp_path, tmp_path / "whole", changes) == [0, 0], processes.said(tmp_path)
    assert in_two(tmp_path, tmp_path / "halves", changes, watch=[StopAt(13)]) == [130, 130], processes.said(tmp_path)
    assert max(checkpoints(tmp_path / "halves")) == 14
    assert in_two(tmp_path, tmp_path / "halves", changes, resume=True) == [0, 0], processes.said(tmp_path)
    whole = tensors(tmp_path / "whole")
    assert_equal({24: tensors(tmp_path / "halves")[24]}, whole)
    assert 120 < len(whole[24]["gaussians.means"]) <= 151
    assert len({len(value) for name, value in whole[24].items() if "adam.moments" in name}) == 1


def test_parts_are_read_by_one_process_and_the_whole_by_two(tmp_path, monkeypatch):
    monkeypatch.setattr(hooks, "_AGREE_S", 0.0)
    changes = SHARDS | {"density": DENSE, "lift_iterations": 20}
    assert in_two(tmp_path, tmp_path / "two", changes, watch=[StopAt(13)]) == [130, 130], processes.said(tmp_path)
    assert train(tmp_path / "two", changes, resume=True) == 0
    assert train(tmp_path / "one", changes, watch=[StopAt(13)]) == 130
    assert in_two(tmp_path, tmp_path / "one", changes, resume=True) == [0, 0], processes.said(tmp_path)
    for name in ("one", "two"):
        assert max(checkpoints(tmp_path / name)) == 44
        assert read_log(tmp_path / name)[-1]["stage"] == "refine"
        assert load_model(tmp_path / name).gaussians.feature_dim == 16
