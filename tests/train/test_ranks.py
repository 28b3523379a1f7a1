"""Several processes that train one scene, on CPUs through gloo, against one process that takes as many views a step."""

import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from unittest import mock

import pytest
import torch

from tests import processes
from tests.cli.test_train import SHORT as FLAGS
from tests.data.fixtures import write_dataset
from tests.scenes import tiny_scene
from tests.train.test_training import DEFAULT, JOINT, SHORT, StopAt
from unified_lift import ranks
from unified_lift.cli.main import main
from unified_lift.errors import UserError
from unified_lift.methods.unified_lift import UnifiedLift, UnifiedLiftSettings
from unified_lift.model.initialize import gaussians_from_points
from unified_lift.modelfolder import outputs
from unified_lift.modelfolder.checkpoint import checkpoints, load_checkpoint, named_tensors
from unified_lift.modelfolder.labels import label_gaussians
from unified_lift.modelfolder.settings import GeometrySettings, LiftSettings, TrainSettings, changed, with_preset
from unified_lift.ranks import Ranks
from unified_lift.settings.yaml import merged
from unified_lift.train import hooks
from unified_lift.train.geometry import GeometryStage
from unified_lift.train.hooks import Hook, Interrupted
from unified_lift.train.lift import LiftStage
from unified_lift.train.logs import read_log
from unified_lift.train.run import latest_checkpoint, run

MCMC = {"relocate_from_iter": 2, "relocation_interval": 5, "max_gaussians": 150}
CASES = {
    "staged": {
        "iterations": 23,
        "lift_cache_mb": 0,
        "lift_pool": 0,
    },  # the last step of the geometry has a view too many
    "joint": JOINT,
    "mcmc, exposure": {
        "strategy": "mcmc",
        "density": MCMC,
        "geometry": {"exposure": "affine", "random_background": True},
    },
    "gaussian_grouping": {"preset": "gaussian_grouping", "geometry": {"iterations": 4}},
    "many": {"lift": {"lift_cache_mb": 0, "lift_pixels": 8}, "geometry": {"iterations": 4}, "many": 1},
}


each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)], ids=str)


def settings_for(path, changes):
    changes = {name: value for name, value in changes.items() if name != "many"}
    base = with_preset(TrainSettings(), changes.pop("preset", "unified_lift"))
    base = changed(base, {"strategy": changes.pop("strategy", "default")}, origin="test")
    own = {"density": base.strategy == "default", "method": base.method_name == "unified_lift"}
    short = {key: value for key, value in SHORT.items() if own.get(key, True)}
    return merged(merged(base, short | {"model_path": str(path)}, origin="test"), changes, origin="test")


def train(path, changes, *, resume=False, watch=()):
    settings = settings_for(path, changes)
    start = latest_checkpoint(settings) if resume else None
    try:
        with mock.patch("unified_lift.model.gaussians.MANY", changes.get("many", 2**20)):
            run(settings, tiny_scene(), resume_from=start, hooks=watch)
    except Interrupted:
        return 130
    return 0


def in_two(folder, path, changes, **options):
    """Train in two processes; return their exit codes."""
    return processes.finish(processes.start(partial(train, path, changes, **options), 2, folder))


@pytest.fixture
def two_views(monkeypatch):
    """One process that takes two views a step."""
    monkeypatch.setattr(ranks, "_current", Ranks(batch=2))


def tensors(path):
    """What the checkpoints of a model folder hold."""
    return {number: dict(named_tensors(load_checkpoint(file))) for number, file in checkpoints(path).items()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for number, state in expected.items():
        assert found[number].keys() == state.keys()
        different = [name for name, value in state.items() if not torch.equal(found[number][name], value)]
        assert different == [], f"checkpoint {number}"


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one_that_sees_the_same_views_and_one_another_bit_for_bit(tmp_path, two_views, case):
    assert train(tmp_path / "one", CASES[case]) == 0
    for name in ("two", "again") if case == "staged" else ("two",):
        codes = in_two(tmp_path, tmp_path / name, CASES[case])
        assert codes == [0, 0], processes.said(tmp_path)
        assert_equal(tensors(tmp_path / name), tensors(tmp_path / "one"))
    assert processes.said(tmp_path).count("forecast") == 1  # the first one prints
    found, expected = read_log(tmp_path / "two"), read_log(tmp_path / "one")
    assert [(line["stage"], line["step"]) for line in found] == [(line["stage"], line["step"]) for line in expected]
    assert len(set(tmp_path.glob("*/point_cloud/*"))) == len(list(tmp_path.glob("*/manifest.json")))


@each_device
def test_a_step_of_two_views_is_that_of_their_mean_gradient_with_scaled_rates(monkeypatch, device):
    scene, moments, moved = tiny_scene(), [], []
    for batch, skipped in ((1, 0), (1, 1), (2, 0)):
        monkeypatch.setattr(ranks, "_current", Ranks(batch=batch))
        gaussians = gaussians_from_points(scene.points, sh_degree=1).to(device)
        before = gaussians.means.detach().clone()
        stage = GeometryStage(scene, gaussians, GeometrySettings(iterations=8), DEFAULT, seed=0)
        for _ in range(skipped):
            stage.order.next_index()
        stage.step(0)
        moments.append({name: first / (1 - 0.9**batch) for name, (first, _) in stage.adam.moments.items()})
        moments[-1] |= {"grad_sum": stage.density["grad_sum"], "num_seen": stage.density["num_seen"]}
        moved.append(gaussians.means.detach() - before)
    one, other, both = moments
    for name, value in both.items():
        mean = (one[name] + other[name]) / (1 if name in stage.density else 2)
        assert float(mean.abs().max()) > 0 or name == "shN"  # of degree 0 so early
        torch.testing.assert_close(value, mean, rtol=1e-3, atol={"cpu": 1e-9, "cuda": 1e-7}[device])
    # The first step of Adam has the length of its rate, whatever the gradient.
    torch.testing.assert_close(moved[2].abs().max(), 2**0.5 * moved[0].abs().max(), rtol=1e-3, atol=0)


@each_device
def test_a_lift_step_of_two_views_has_the_mean_gradient(monkeypatch, device):
    scene, moments = tiny_scene(), []
    for batch, skipped in ((1, 0), (1, 1), (2, 0)):
        monkeypatch.setattr(ranks, "_current", Ranks(batch=batch))
        gaussians = gaussians_from_points(scene.points, sh_degree=0).to(device)
        method = UnifiedLift(UnifiedLiftSettings(), zero_id="segment", seed=0).to(device)
        stage = LiftStage(scene, gaussians, method, LiftSettings(lift_iterations=20, lift_pixels=480), seed=0)
        for _ in range(skipped):
            stage.order.next_index()
        stage.step(skipped)
        moments.append(stage.adam.moments["features"][0] / (1 - 0.9**batch))
    assert float(moments[2].abs().max()) > 0
    torch.testing.assert_close(
        moments[2], (moments[0] + moments[1]) / 2, rtol=1e-3, atol={"cpu": 1e-9, "cuda": 1e-7}[device]
    )


@pytest.mark.parametrize("stop_at", [11, 33, 45])  # in geometry, lift and refinement
def test_interrupted_and_resumed_in_two_processes_equals_the_undisturbed_run(tmp_path, monkeypatch, stop_at):
    monkeypatch.setattr(hooks, "_AGREE_S", 0.0)  # after every step
    assert in_two(tmp_path, tmp_path / "whole", {}) == [0, 0], processes.said(tmp_path)
    halves = tmp_path / "halves"
    assert in_two(tmp_path, halves, {}, watch=[StopAt(stop_at)]) == [130, 130], processes.said(tmp_path)
    assert max(checkpoints(halves)) == stop_at + 1
    assert in_two(tmp_path, halves, {}, resume=True) == [0, 0], processes.said(tmp_path)
    assert_equal({44: tensors(halves)[44]}, {44: tensors(tmp_path / "whole")[44]})
    folders = [path / "point_cloud" / "iteration_24" for path in (tmp_path / "whole", halves)]
    assert len({(folder / "segmentation.npz").read_bytes() for folder in folders}) == 1


def test_a_checkpoint_is_read_by_any_number_of_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(hooks, "_AGREE_S", 0.0)
    assert in_two(tmp_path, tmp_path / "two", {}, watch=[StopAt(9)]) == [130, 130]
    assert train(tmp_path / "two", {}, resume=True) == 0
    with pytest.raises(Interrupted):
        run(settings_for(tmp_path / "one", {}), tiny_scene(), hooks=[StopAt(31)])
    assert in_two(tmp_path, tmp_path / "one", {}, resume=True) == [0, 0], processes.said(tmp_path)
    for name in ("one", "two"):
        assert max(checkpoints(tmp_path / name)) == 44
        assert outputs.saved_iterations(tmp_path / name) == [24]


class FailIn(Hook):
    """An error of one process, or its death, in the middle."""

    def __init__(self, rank, error):
        self.rank, self.error = rank, error

    def after_step(self, stage, step, terms):
        if step >= 7 and stage.ranks.index == self.rank:
            if self.error is None:
                os.kill(os.getpid(), signal.SIGKILL)
            raise self.error


@pytest.mark.parametrize("error", [UserError("disk: full"), FloatingPointError("loss is nan"), None], ids=repr)
def test_what_goes_wrong_in_one_process_ends_all_with_one_line(tmp_path, monkeypatch, error):
    def trained(argv):
        return train(tmp_path / "model", {}, watch=[FailIn(1, error)])

    def command():
        return main(["train", "-s", "scene", "-m", "model"])

    monkeypatch.setattr("unified_lift.cli.train.train_main", trained)
    began = time.monotonic()
    codes = processes.finish(processes.start(command, 2, tmp_path))
    assert time.monotonic() - began < 10
    assert codes == {None: [2, -9]}.get(error, [2, 1 if isinstance(error, FloatingPointError) else 2])
    lines = [line for line in processes.said(tmp_path).splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "Traceback" not in processes.said(tmp_path)
    assert (str(error) if error else "another process of this run has ended") in lines[0]


def test_each_process_votes_with_a_share_of_the_views_for_labels_of_all(tmp_path):
    scene = tiny_scene()

    def label(file):
        g = torch.Generator().manual_seed(0)
        gaussians = gaussians_from_points(scene.points, sh_degree=0)
        gaussians.set("features", torch.randn(len(gaussians), 16, generator=g))
        method = UnifiedLift(UnifiedLiftSettings(), zero_id="segment", seed=0)
        method.load_object_state(torch.randn(7, 16, generator=g))
        ranks.join("cpu")
        found = label_gaussians(gaussians, method, [view.camera for view in scene.train[:5]])
        torch.save(vars(found), tmp_path / f"{file}{ranks.current().index}")

    assert processes.finish(processes.start(partial(label, "two"), 2, tmp_path)) == [0, 0], processes.said(tmp_path)
    label("one")
    one, *both = (torch.load(tmp_path / name) for name in ("one0", "two0", "two1"))
    for found in both:
        for name in ("object_ids", "areas", "num_views"):
            assert torch.equal(found[name], one[name])
        torch.testing.assert_close(found["features"], one["features"])
        torch.testing.assert_close(found["confidence"], one["confidence"])


def test_torchrun_is_told_to_stop_and_the_run_goes_on_in_one_process(tmp_path):
    write_dataset("transforms", tmp_path / "scene")
    model, steps = tmp_path / "model", ["--iterations", "4000", "--max-gaussians", "1000", "--log-interval", "9"]
    argv = ["-m", "unified_lift", "train", "-s", str(tmp_path / "scene"), "-m", str(model), "--device", "cpu"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"]
    command = [*torchrun, str(processes.free_port()), *argv, *FLAGS, *steps]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as started:
        while not (model / "metrics.jsonl").is_file() or not (model / "metrics.jsonl").read_text():
            assert started.poll() is None, started.stdout.read()
            time.sleep(0.1)
        started.send_signal(signal.SIGINT)
        printed = started.communicate()[0]
    assert "2 processes: 2 views a step, rates x 1.41, betas to the power of 2" in printed
    assert re.search(r"interrupted; go on with: torchrun --nproc_per_node 2 .*train -m .* --resume", printed)
    (stopped,) = checkpoints(model)
    assert 9 <= stopped < 4000
    assert main(["train", "-m", str(model), "--resume", "--iterations", str(stopped + 1), *FLAGS[2:]]) == 0


def test_other_commands_and_one_process_are_as_without(monkeypatch, capsys):
    monkeypatch.setattr(ranks, "hush", lambda: None)
    for name, value in processes.environment(0, 2, 1).items():
        monkeypatch.setenv(name, value)
    assert main(["eval", "-m", "model"]) == 2
    assert "error: eval: runs in one process; start it without torchrun" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert ranks.join("cpu") == Ranks()
