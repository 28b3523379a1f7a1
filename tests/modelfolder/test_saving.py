"""What reaches the disk while a run goes on, and what never does."""

import errno
import os
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Thread

import pytest
import torch

from tests.train.test_training import SHORT, CrashAfter, StopAt, assert_same_state, final_state, settings_for
from unified_lift import fileio
from unified_lift.errors import UserError
from unified_lift.kernels.photometric import photometric_loss
from unified_lift.model.initialize import gaussians_from_points
from unified_lift.modelfolder import checkpoint, outputs
from unified_lift.modelfolder.checkpoint import (
    CheckpointWriter,
    checkpoint_path,
    checkpoints,
    load_checkpoint,
    named_tensors,
    snapshot,
)
from unified_lift.modelfolder.inference import load_model
from unified_lift.modelfolder.labels import GaussianLabels
from unified_lift.train import geometry
from unified_lift.train.hooks import Hook, Interrupted
from unified_lift.train.run import latest_checkpoint, run


def run_settings(path, **run):
    return settings_for(path, run=SHORT["run"] | run)


def before(monkeypatch, where, name, action):
    """Have `action` called before a function, with its arguments."""
    function = getattr(where, name)

    def both(*arguments, **options):
        action(*arguments)
        return function(*arguments, **options)

    monkeypatch.setattr(where, name, both)


def test_snapshot_does_not_change_with_what_it_was_taken_from():
    tree = {"a": torch.zeros(3), "b": [(torch.ones(2, requires_grad=True), 5)], "c": "x"}
    copy = snapshot(tree)
    tree["a"].fill_(7)
    tree["b"][0][0].data.fill_(7)
    assert copy["a"].tolist() == [0, 0, 0]
    assert copy["b"][0][0].tolist() == [1, 1]
    assert not copy["b"][0][0].requires_grad
    assert (copy["b"][0][1], copy["c"]) == (5, "x")


def test_every_tensor_of_a_tree_has_a_name():
    tree = {"a": torch.zeros(1), "b": {"m": (torch.ones(1), torch.ones(2))}, "n": 3}
    assert [(name, len(value)) for name, value in named_tensors(tree)] == [("a", 1), ("b.m.0", 1), ("b.m.1", 2)]


def test_a_checkpoint_holds_the_moment_it_was_asked_for_however_slowly_it_is_written(tmp_path, scene, monkeypatch):
    fast, slow = (run_settings(tmp_path / name, checkpoint_iterations=[9, 30]) for name in ("fast", "slow"))
    run(fast, scene)
    before(monkeypatch, torch, "save", lambda *_: time.sleep(0.3))  # the steps until the end take less
    run(slow, scene)
    assert list(checkpoints(tmp_path / "slow")) == [9, 24, 30, 44]
    for total in (9, 24, 30, 44):
        assert_same_state(final_state(tmp_path / "fast", total), final_state(tmp_path / "slow", total))


def test_rolling_checkpoints_by_time_resume_bit_for_bit(tmp_path, scene, monkeypatch):
    run(settings_for(tmp_path / "whole"), scene)
    settings = run_settings(tmp_path / "crashed", checkpoint_minutes=1e-6)
    writers = []

    class Slow(Hook):  # else the disk decides which steps are saved
        def after_step(self, stage, step, terms):
            writers[-1].wait()

    make = CheckpointWriter.__init__
    monkeypatch.setattr(CheckpointWriter, "__init__", lambda writer: (writers.append(writer), make(writer))[1])
    with pytest.raises(MemoryError):
        run(settings, scene, hooks=[Slow(), CrashAfter(18)])
    assert list(checkpoints(settings.model_path)) == [18]
    run(settings, scene, resume_from=latest_checkpoint(settings))
    assert_same_state(final_state(tmp_path / "whole", 44), final_state(tmp_path / "crashed", 44))
    assert list(checkpoints(settings.model_path))[:2] == [24, 44]


def test_by_time_no_checkpoint_is_begun_while_another_is_written(tmp_path, scene, monkeypatch):
    written, release = [], threading.Event()

    def slow_save(path, state):
        written.append(state["total_steps"])
        assert release.wait(30)

    before(monkeypatch, checkpoint, "save_checkpoint", slow_save)

    class Release(Hook):
        def before_step(self, stage, step):
            if stage.steps_before + step + 1 == 20:
                release.set()

    run(run_settings(tmp_path, checkpoint_minutes=1e-6), scene, hooks=[Release()])
    assert written[0] == 1
    assert all(total >= 20 for total in written[1:])
    assert 44 in written


def test_no_rolling_checkpoints_if_none_are_wanted(tmp_path, scene, monkeypatch):
    written = []
    before(monkeypatch, checkpoint, "save_checkpoint", lambda path, state: written.append(state["total_steps"]))
    run(run_settings(tmp_path, checkpoint_minutes=0), scene)
    assert written == [24, 44]


@pytest.mark.parametrize(("first_failing", "kept"), [(10, 5), (44, 40)])  # amid the run; at its very end
def test_full_disk_ends_the_run_and_keeps_the_checkpoint_before(tmp_path, scene, monkeypatch, first_failing, kept):
    def full(state, file):
        if isinstance(state, dict) and state.get("total_steps", 0) >= first_failing:
            raise OSError(28, "No space left on device")

    before(monkeypatch, torch, "save", full)
    with pytest.raises(UserError, match=rf"chkpnt{first_failing}.pth: no space left .*--resume"):
        run(run_settings(tmp_path, checkpoint_interval=5), scene)
    assert max(checkpoints(tmp_path)) == kept
    assert load_checkpoint(checkpoint_path(tmp_path, kept))["total_steps"] == kept
    assert not list(tmp_path.glob(f"*{fileio._MARK}"))


def test_interrupt_waits_until_its_checkpoint_is_on_disk(tmp_path, scene, monkeypatch):
    before(monkeypatch, checkpoint, "save_checkpoint", lambda *_: time.sleep(0.2))
    with pytest.raises(Interrupted):
        run(settings_for(tmp_path), scene, hooks=[StopAt(1)])
    assert list(checkpoints(tmp_path)) == [1]


def test_writer_raises_an_error_once_and_goes_on(tmp_path, monkeypatch):
    def fail_first(path, state):
        if path.name == "chkpnt1.pth":
            raise UserError("no disk")

    before(monkeypatch, checkpoint, "save_checkpoint", fail_first)
    writer = CheckpointWriter()
    writer.write(tmp_path / "chkpnt1.pth", {"total_steps": 1}, kept=())
    while writer._running is not None and not writer._running.done():
        time.sleep(0.01)
    with pytest.raises(UserError, match="no disk"):
        writer.is_busy()
    assert not writer.is_busy()
    writer.write(tmp_path / "chkpnt2.pth", {"total_steps": 2}, kept=())
    writer.wait()
    assert list(checkpoints(tmp_path)) == [2]
    writer.shutdown()


def test_half_written_checkpoint_of_a_killed_run_is_removed(tmp_path, scene):
    killed = subprocess.Popen(["true"])
    killed.wait()
    mine = fileio._scratch(tmp_path / "chkpnt7.pth")
    mine.with_name(mine.name.replace(f".{os.getpid()}-", f".{killed.pid}-")).write_bytes(b"half")
    fileio._tidied.clear()
    run(settings_for(tmp_path, lift_iterations=0), scene)
    assert not list(tmp_path.glob(f"*{fileio._MARK}"))


def test_of_damaged_checkpoints_the_newest_intact_one_is_gone_on_from(tmp_path, scene, capsys):
    settings = run_settings(tmp_path, checkpoint_interval=5, checkpoint_iterations=(10, 20))
    run(settings, scene)
    ply = tmp_path / "point_cloud" / "iteration_24" / "segmentation.npz"
    whole, labels = sorted(checkpoints(tmp_path)), ply.read_bytes()
    for total in [total for total in whole if total > 20]:
        flip_a_bit_of_the_means(checkpoint_path(tmp_path, total))
    found = latest_checkpoint(settings)
    assert found == checkpoint_path(tmp_path, 20)
    assert capsys.readouterr().out.count("damaged: the checksum of") == sum(total > 20 for total in whole)
    run(settings, scene, resume_from=found)
    assert ply.read_bytes() == labels
    for path in checkpoints(tmp_path).values():
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="chkpnt45.pth: not a readable checkpoint"):
        latest_checkpoint(settings)


def flip_a_bit_of_the_means(path):
    content = bytearray(path.read_bytes())
    means = load_checkpoint(path)["gaussians"]["means"].numpy().tobytes()
    place = content.index(means[:64])
    content[place + 2] ^= 1
    path.write_bytes(content)


def test_an_earlier_run_is_kept_until_the_one_that_replaces_it_is_done(tmp_path, scene):
    settings = settings_for(tmp_path)
    run(settings, scene)
    old = {path.name: path.read_bytes() for path in (tmp_path / "point_cloud" / "iteration_24").iterdir()}
    (tmp_path / "notes.txt").write_text("mine")
    for step in (1, 30):  # before anything is written, and after geometry is
        with pytest.raises(Interrupted):
            run(replace(settings, seed=1), scene, hooks=[StopAt(step)])
        kept = tmp_path / "replaced" / "point_cloud" / "iteration_24"
        assert {path.name: path.read_bytes() for path in kept.iterdir()} == old
        assert len(load_model(tmp_path / "replaced").gaussians)
    run(replace(settings, seed=1), scene)
    assert not (tmp_path / "replaced").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    new = tmp_path / "point_cloud" / "iteration_24" / "point_cloud.ply"
    assert new.read_bytes() != old["point_cloud.ply"]


def test_a_second_training_of_a_folder_is_refused_while_the_first_runs(tmp_path, scene):
    settings = settings_for(tmp_path)

    class Second(Hook):
        def before_stage(self, stage):
            with (
                ThreadPoolExecutor(1) as pool,  # as from outside: what a thread holds it may take again
                pytest.raises(UserError, match=rf"training \(process {os.getpid()}\) is at work there"),
            ):
                pool.submit(run, settings, scene).result()

    run(settings, scene, hooks=[Second()])
    assert not (tmp_path / ".lock").exists()
    run(settings, scene)


def poison(monkeypatch, *, call, gradient_only=False):
    """Make the photometric loss, or only its gradient, NaN at the given call, counted from 0."""
    calls = []

    def poisoned(image, *arguments, **options):
        calls.append(1)
        if len(calls) != call + 1:
            return photometric_loss(image, *arguments, **options)
        if gradient_only:
            image.register_hook(lambda gradient: gradient * float("nan"))
        return photometric_loss(image, *arguments, **options) * (1 if gradient_only else float("nan"))

    monkeypatch.setattr(geometry, "photometric_loss", poisoned)


@pytest.mark.parametrize(("log_interval", "checkpoint_interval"), [(5, 0), (50, 0), (50, 4), (50, 9)])
def test_nan_is_named_by_its_step_and_never_saved(tmp_path, scene, monkeypatch, log_interval, checkpoint_interval):
    poison(monkeypatch, call=7)
    settings = run_settings(tmp_path, log_interval=log_interval, checkpoint_interval=checkpoint_interval)
    with pytest.raises(FloatingPointError, match="the loss is not finite at step 7: photometric = nan"):
        run(settings, scene)
    assert list(checkpoints(tmp_path)) == ([4] if checkpoint_interval == 4 else [])
    assert not (tmp_path / "point_cloud").exists()
    for path in checkpoints(tmp_path).values():
        for name, value in named_tensors(load_checkpoint(path)):
            assert bool(torch.isfinite(value.float()).all()), name


@pytest.mark.parametrize("save_iterations", [[], [8]])
def test_nan_of_a_gradient_with_a_finite_loss_is_never_saved(tmp_path, scene, monkeypatch, save_iterations):
    poison(monkeypatch, call=7, gradient_only=True)
    options = {"log_interval": 50, "save_iterations": save_iterations, "checkpoint_iterations": [8]}
    with pytest.raises(FloatingPointError, match=r"gaussians\.\w+ holds \d+ values that are not finite after 8 steps"):
        run(run_settings(tmp_path, **options), scene)
    assert not checkpoints(tmp_path)
    assert not (tmp_path / "point_cloud").exists()


def test_nan_that_breaks_a_later_step_is_named_instead_of_what_it_broke(tmp_path, scene, monkeypatch):
    poison(monkeypatch, call=7)

    class BreakAt9(Hook):
        def before_step(self, stage, step):
            if step == 9:
                stage.gaussians = None

    with pytest.raises(FloatingPointError, match="step 7"):
        run(run_settings(tmp_path, log_interval=50), scene, hooks=[BreakAt9()])


@pytest.mark.parametrize("content", [b"garbage", b""])
def test_broken_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "chkpnt9.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a readable checkpoint") as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)


def test_checkpoint_of_another_program_is_refused(tmp_path):
    path = tmp_path / "chkpnt9.pth"
    torch.save({"something": 1}, path)
    with pytest.raises(UserError, match="not a checkpoint of this program"):
        load_checkpoint(path)
    with pytest.raises(UserError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "absent.pth")


def test_features_that_half_precision_cannot_hold_have_diverged(tmp_path, scene):
    gaussians = gaussians_from_points(scene.points, sh_degree=0)
    gaussians.set("features", torch.full((len(gaussians), 16), 1e5))
    labels = GaussianLabels(torch.zeros(len(gaussians), dtype=torch.int64), torch.ones(len(gaussians)))
    with pytest.raises(FloatingPointError, match="features reach 100000, which"):
        outputs.write_objects(tmp_path, gaussians, labels)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("has_links", [True, False])
def test_an_earlier_run_steps_aside_at_once_and_the_lock_stays(tmp_path, monkeypatch, has_links):
    def refuse(*args, **options):
        raise OSError(errno.EPERM, "no links here")

    model = tmp_path / "model"
    for name in ("config.yaml", "manifest.json", "point_cloud/iteration_4/point_cloud.ply", "mine.txt", "replaced/old"):
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text(name)
    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    with fileio.locked(model, "training"):
        assert outputs.set_earlier_run_aside(model)
        another = Thread(target=lambda: refused.append(is_refused(model)))
        refused = []
        another.start()
        another.join()
    assert refused == [True]
    found = {str(path.relative_to(model)): path.read_text() for path in model.rglob("*") if path.is_file()}
    run = ("config.yaml", "manifest.json", "point_cloud/iteration_4/point_cloud.ply")
    assert found == {"mine.txt": "mine.txt"} | {f"replaced/{name}": name for name in run}


def is_refused(model):
    try:
        with fileio.locked(model, "another"):
            return False
    except UserError:
        return True
