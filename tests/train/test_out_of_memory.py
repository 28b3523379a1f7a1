"""Lack of memory ends a training in one line that says what to lower; checkpoints stay, and lowered it goes on."""

import re
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import torch

from tests.cli.test_train import ROOT, SHORT
from tests.data.fixtures import write_dataset
from tests.saved_model import save_model
from tests.train.test_training import assert_same_state, final_state, settings_for
from unified_lift.cli.main import main
from unified_lift.cli.train import parse
from unified_lift.evaluation import pictures
from unified_lift.memory import OutOfMemory
from unified_lift.modelfolder.checkpoint import checkpoints, load_checkpoint
from unified_lift.settings.yaml import merged
from unified_lift.train import run as training
from unified_lift.train.clock import what_to_lower
from unified_lift.train.hooks import Hook
from unified_lift.train.logs import read_log
from unified_lift.train.run import latest_checkpoint, run

OF_TORCH = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139.81 GiB of which 1.25 GiB is "
    "free. Including non-PyTorch memory, this process has 138.50 GiB memory in use. Of the allocated memory 130.00 GiB "
    "is allocated by PyTorch, and 8.00 GiB is reserved by PyTorch but unallocated."
)
GPU = "out of GPU memory: 2.00 GiB asked for, 1.25 GiB of 139.81 GiB free, 138.50 GiB in use by this process; lower "
REAL = r"out of GPU memory: [\d.]+ [KMG]iB asked for, .* free"
# Of a run of 24 steps of geometry, 20 of the lift and 4 of the refinement: when it ends, and what goes on from where.
STAGES = {
    "geometry": (12, {}, 10),
    "lift": (32, {"lift": {"lift_pixels": 100}}, 24),
    "refine": (47, {"refine": {"refine_pixels": 300}}, 44),
}


class Lacks(Hook):
    """Asks for too much before the step that makes `total_steps`."""

    def __init__(self, total_steps, ask):
        self.total_steps, self.ask = total_steps, ask

    def before_step(self, stage, step):
        if stage.steps_before + step + 1 == self.total_steps:
            self.ask()


def of_torch():
    raise torch.OutOfMemoryError(OF_TORCH)


def of_the_cpu():
    torch.empty(2**50, dtype=torch.uint8)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("ask", [of_torch, of_the_cpu])
def test_a_stage_that_lacks_memory_ends_in_one_line_and_goes_on_lowered(tmp_path, scene, stage, ask):
    total, lowered, goes_on_at = STAGES[stage]
    settings = settings_for(tmp_path / "model", run={"checkpoint_interval": 5})
    with pytest.raises(OutOfMemory) as caught:
        run(settings, scene, hooks=[Lacks(total, ask)])
    line = str(caught.value)
    asked = "out of memory: 1,024.00 TiB asked for, " if ask is of_the_cpu else GPU
    assert re.match(rf"{stage}: {re.escape(asked)}", line), line
    assert line.endswith("checkpoints are intact")
    assert "\n" not in line
    found = checkpoints(settings.model_path)
    assert max(found) == (total - 1) // 5 * 5 if stage != "refine" else 45
    assert all(load_checkpoint(path)["total_steps"] == number for number, path in found.items())
    if stage == "geometry":  # it goes on as it was; with less of it to train is another run
        run(settings, scene, resume_from=latest_checkpoint(settings))
        run(settings_for(tmp_path / "whole"), scene)
        assert_same_state(final_state(tmp_path / "whole", 44), final_state(tmp_path / "model", 44))
    else:
        lowered = merged(settings, lowered, origin="test")
        start = latest_checkpoint(lowered)
        assert start is not None
        assert start.name == f"chkpnt{goes_on_at}.pth"
        run(lowered, scene, resume_from=start)


def test_labels_that_lack_memory_keep_the_lift(tmp_path, scene, monkeypatch):
    settings = settings_for(tmp_path)
    monkeypatch.setattr(training, "label_gaussians", lambda *_: of_torch())
    with pytest.raises(OutOfMemory, match=f"^labels: {GPU}"):
        run(settings, scene)
    assert latest_checkpoint(settings).name == "chkpnt44.pth"


@pytest.mark.parametrize("part", ["load", "geometry", "lift", "finish", "refine"])
@pytest.mark.parametrize("joint", [False, True])
def test_what_is_to_be_lowered_are_flags_of_the_program(part, joint):
    settings = settings_for("model", **({"preset": "released"} if joint else {}))
    said = what_to_lower(part, settings, torch.device("cuda"))
    flags = set(re.findall(r"--[\w_]+", said))
    assert len(flags) > 1
    values = {"--data_device": ["cpu"], "--resume": ["auto"], "--overwrite": []}
    words = [word for flag in flags for word in (flag, *values.get(flag, ["1"]))]
    assert parse(["-s", "scene", "-m", "model", *words]).settings


@pytest.mark.parametrize("command", ["render", "eval", "train"])
def test_a_command_that_lacks_memory_says_so_in_one_line(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("unified_lift.cli.model_flags.load_model", lambda *_, **__: of_torch())
    monkeypatch.setattr("unified_lift.cli.train.parse", lambda _: of_torch())
    assert main([command, "-m", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {command}: {GPU.removesuffix('lower ')}")
    assert line.endswith("use --device cpu")


class FullGpu:
    """Takes all that the allocator of torch has, and lets it ask for no more, until there is room again."""

    def __init__(self):
        self.held = []

    def __call__(self):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1e-9)
        for size in (2**24, 2**20, 2**16, 2**12, 2**9):
            with suppress(torch.OutOfMemoryError):
                while True:
                    self.held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))

    def make_room(self):
        self.held.clear()
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.fixture
def a_full_gpu():
    full = FullGpu()
    yield full
    full.make_room()


@pytest.mark.gpu
@pytest.mark.parametrize("stage", STAGES)
def test_a_full_gpu_ends_a_stage_in_one_line_and_room_lets_it_go_on(tmp_path, scene, stage, a_full_gpu):
    settings = settings_for(tmp_path, run={"checkpoint_interval": 5, "device": "cuda"})
    with pytest.raises(OutOfMemory, match=f"^{stage}: {REAL}.*; lower --"):
        run(settings, scene, hooks=[Lacks(STAGES[stage][0], a_full_gpu)])
    found = checkpoints(tmp_path)
    assert all(load_checkpoint(path)["total_steps"] == number for number, path in found.items())
    a_full_gpu.make_room()
    start = latest_checkpoint(settings)
    assert start == found[max(found)]
    state = run(settings, scene, resume_from=start)
    assert all(bool(torch.isfinite(value).all()) for _, value in state.gaussians)
    assert state.manifest["num_codes"] > 0


@pytest.mark.gpu
def test_a_full_gpu_ends_the_labels_in_one_line(tmp_path, scene, a_full_gpu, monkeypatch):
    label = training.label_gaussians
    monkeypatch.setattr(training, "label_gaussians", lambda *args: (a_full_gpu(), label(*args))[1])
    with pytest.raises(OutOfMemory, match=f"^labels: {REAL}"):
        run(settings_for(tmp_path, run={"device": "cuda"}), scene)
    assert max(checkpoints(tmp_path)) == 44


@pytest.mark.gpu
@pytest.mark.parametrize("command", ["render", "eval"])
def test_a_full_gpu_ends_a_command_in_one_line(command, tmp_path, a_full_gpu, monkeypatch, capsys):
    model, show = save_model(tmp_path), pictures.render_view
    monkeypatch.setattr(pictures, "render_view", lambda *args: (a_full_gpu(), show(*args))[1])
    assert main([command, "-m", str(model), "--device", "cuda", "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"error: {command}: {REAL}", line)


@pytest.mark.gpu
def test_a_training_on_a_gpu_that_is_killed_goes_on_to_where_the_whole_one_ends(tmp_path):
    write_dataset("transforms", tmp_path / "scene")
    command = [sys.executable, "train.py", "-s", str(tmp_path / "scene"), *SHORT]
    command += "--device cuda --resume auto --checkpoint-interval 20 --log-interval 50".split()
    command += "--iterations 800 --lift-iterations 400 --sharpen-steps 50 --densify-from-iter 5000".split()
    whole, killed = ([*command, "-m", str(tmp_path / name)] for name in ("whole", "killed"))
    process = subprocess.Popen(killed, cwd=ROOT)
    while not checkpoints(tmp_path / "killed") and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -9
    assert [subprocess.run(one, cwd=ROOT).returncode for one in (killed, whole)] == [0, 0]
    steps = {"geometry": 800, "lift": 400, "refine": 50}
    logs = [[line for line in read_log(tmp_path / name) if line["stage"] != "test"] for name in ("whole", "killed")]
    told = [(name, step) for name, count in steps.items() for step in range(50, count + 1, 50)]
    assert [[(line["stage"], line["step"]) for line in log] for log in logs] == [told, told]
    for lines in zip(*logs, strict=True):  # sums on a GPU differ in the last bits, and what grows of them
        assert lines[0]["total"] == pytest.approx(lines[1]["total"], rel=0.2, abs=0.02), lines
        assert lines[0]["num_gaussians"] == pytest.approx(lines[1]["num_gaussians"], rel=0.1), lines
