"""What a training says that it needs of memory and disk before it begins; that it refuses what cannot fit, no more."""

import gc
import re
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.model.test_ply import random_gaussians
from tests.scenes import tiny_scene
from tests.train.test_training import settings_for
from unified_lift.data.cache import CacheChoice
from unified_lift.errors import UserError
from unified_lift.memory import OutOfMemory
from unified_lift.model.ply import write_gaussians
from unified_lift.modelfolder.settings import TrainSettings
from unified_lift.train import clock, needs
from unified_lift.train.run import run
from unified_lift.types import Camera

IN_MEMORY = CacheChoice("cpu", 100, 10**9)
LIFT_ONLY = {"geometry": {"iterations": 0}}


@pytest.fixture
def scene():
    return tiny_scene()


def gaussians_at(*places, rest=0):
    gaussians = random_gaussians(len(places), rest=rest, feature_dim=0)
    gaussians.set("means", torch.tensor(places))
    gaussians.set("log_scales", torch.full_like(gaussians.log_scales, -30.0))
    return gaussians


def test_what_views_show_is_told_by_boxes_and_tiles():
    camera = Camera(cam_from_world=np.eye(4), fx=100.0, fy=100.0, cx=32.0, cy=32.0, width=64, height=64)
    scene = SimpleNamespace(train=[SimpleNamespace(camera=camera)])
    # A point: its box is 2 x 3.33 sqrt(0.3) = 3.648 pixels wide, so it meets (1 + 3.648 / 16)^2 tiles on average.
    seen = needs.Seen.by(gaussians_at((0.0, 0.0, 5.0), (0.0, 0.0, -5.0)), scene)
    assert seen == pytest.approx((0.5, 0.5, 1.508), abs=1e-3)


def test_bytes_of_a_lift_and_of_a_training_by_hand(tmp_path, scene):
    gaussians = random_gaussians(1_000, rest=0, feature_dim=0)  # 14 numbers: 56 bytes; 16 features: 64
    lift = needs.needs_of(settings_for(tmp_path, **LIFT_ONLY), scene, gaussians, IN_MEMORY, "cpu", begin="geometry")
    assert lift.least == 1_000 * (56 + 3 * 64)
    assert lift.least_disk == 1_000 * (4 * 17 + 4 * 34 + (4 + 2 + 32) + 56 + 3 * 64)  # .ply, .ply, .npz, checkpoint
    # With weights kept, every feature has a gradient; 16 bytes are which block and step each Gaussian belongs to.
    assert lift.parts["lift"]["parameters, features and moments"] == 1_000 * (56 + 4 * 64 + 16)
    assert all(part["photos"] == 100 for part in lift.parts.values())
    settings = settings_for(tmp_path, density={"max_gaussians": 3_000})
    train = needs.needs_of(settings, scene, gaussians, IN_MEMORY, "cuda", begin="geometry")
    assert (train.least, train.least_disk) == (3 * 56_000, 0)  # what is pruned needs no disk
    assert train.parts["geometry"]["parameters and moments"] == 3 * 56 * 3_000
    assert train.parts["geometry"]["photos"] == 0  # they are in main memory


@pytest.mark.parametrize(("count", "least"), [(1, 3), (2, 1.5), (8, 1)])  # in the end each process holds them all
def test_processes_that_share_the_gaussians_out_need_less(count, least, tmp_path, scene, monkeypatch):
    monkeypatch.setattr(needs.ranks, "current", lambda: SimpleNamespace(count=count))
    gaussians = random_gaussians(1_000, rest=0, feature_dim=0)
    settings = settings_for(tmp_path, run={"shard_gaussians": True})
    found = needs.needs_of(settings, scene, gaussians, IN_MEMORY, "cuda", begin="geometry")
    assert found.least == least * 56_000


def test_the_disk_gets_what_was_forecast(tmp_path, scene):
    write_gaussians(tmp_path / "a.ply", random_gaussians(4_000, rest=3, feature_dim=0))
    settings = settings_for(tmp_path / "m", init_ply=str(tmp_path / "a.ply"), **LIFT_ONLY)
    state = run(settings, scene)
    told = needs.needs_of(state.settings, scene, state.gaussians, IN_MEMORY, "cpu", begin="geometry").least_disk
    files = [path for path in (tmp_path / "m").rglob("*") if path.suffix in (".ply", ".npz", ".pth")]
    assert sum(path.stat().st_size for path in files) == pytest.approx(told, rel=0.03)


def forecast(path, scene, gaussians, **changes):
    return needs.forecast(settings_for(path, **changes), scene, gaussians, IN_MEMORY, torch.device("cpu"))


def test_memory_that_cannot_suffice_is_refused_and_what_may_is_not(tmp_path, scene, monkeypatch):
    gaussians = random_gaussians(1_000, rest=0, feature_dim=0)
    missing = 1_000 * 3 * 64  # the parameters are in memory
    monkeypatch.setattr(needs, "available_memory", lambda: missing)
    line = forecast(tmp_path, scene, gaussians, **LIFT_ONLY)
    assert line.startswith("memory: about ")
    assert "; it may not fit: lower it with " in line
    monkeypatch.setattr(needs, "available_memory", lambda: missing - 1)
    with pytest.raises(
        OutOfMemory, match=r"^1,000 Gaussians of SH degree 0: parameters and moments alone need .*, --data_"
    ):
        forecast(tmp_path, scene, gaussians, **LIFT_ONLY)


def test_a_gpu_is_told_apart_from_main_memory(tmp_path, scene, monkeypatch):
    free = [2**30, 141 * 2**30]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: tuple(free))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 2**29)
    monkeypatch.setattr(needs, "available_memory", lambda: 2**31)
    arguments = settings_for(tmp_path, **LIFT_ONLY), scene, random_gaussians(1_000), IN_MEMORY, torch.device("cuda")
    line = needs.forecast(*arguments)
    assert re.search(
        r"^memory: about [\d.]+ of 1\.5 GiB on the GPU, .*; 0\.0 of 2\.0 GiB of main memory; .* of disk$", line
    )
    free[0] = 1_000 * (236 + 3 * 64) - 1  # nothing is there yet
    with pytest.raises(OutOfMemory, match="need 0.00 GiB on the GPU, 0.00 can be taken"):
        needs.forecast(*arguments)


def test_a_refused_run_leaves_the_earlier_one_alone(tmp_path, scene, monkeypatch):
    run(settings_for(tmp_path), scene)
    before = sorted(path for path in tmp_path.rglob("*"))
    monkeypatch.setattr(needs, "available_memory", lambda: 0)
    with pytest.raises(OutOfMemory, match="torchrun"):
        run(settings_for(tmp_path), scene)
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_a_disk_that_cannot_suffice_is_refused(tmp_path, scene, monkeypatch):
    monkeypatch.setattr(needs.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000))
    with pytest.raises(UserError, match=r"results and checkpoints need .* of disk, .* are free; free some, or give"):
        forecast(tmp_path / "new" / "model", scene, random_gaussians(1_000), **LIFT_ONLY)


@pytest.mark.parametrize(("much", "is_there"), [(2**50, True), (0, False)])
def test_what_a_stage_leaves_in_circles_goes_before_the_next_where_memory_is_short(much, is_there, monkeypatch):
    monkeypatch.setattr(clock, "_MUCH", much)
    circle = torch.nn.Module()
    circle.__dict__["itself"], left = circle, weakref.ref(circle)
    del circle
    gc.disable()  # so that nothing goes by chance
    try:
        with clock.RunClock(TrainSettings(), torch.device("cpu")).part("lift"):
            assert (left() is not None) == is_there
    finally:
        gc.enable()
