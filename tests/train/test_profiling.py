import time

import pytest
import torch

from tests.train.test_training import SHORT, settings_for
from unified_lift.train.profiling import BETWEEN_STEPS, StepProfiler, Window, device_times, profile_table, windows
from unified_lift.train.run import Trainer
from unified_lift.train.stage import Stage
from unified_lift.train.views import ViewSource


def test_windows_lie_after_a_quarter_of_the_steps_and_at_their_end():
    assert windows(0, 30_000) == [Window(7_500, 7_600, 7_700), Window(29_800, 29_900, 30_000)]
    assert windows(0, 16) == [Window(4, 6, 8), Window(12, 14, 16)]
    assert windows(20, 28) == [Window(22, 23, 24), Window(26, 27, 28)]
    assert windows(20, 27) == windows(7, 7) == []


class Sleeper(Stage):
    """Spends two milliseconds in its first phase and one in its second; counts who listens."""

    name = "sleeper"

    def train_step(self, step):
        self.mark("forward")
        time.sleep(0.002)
        self.mark("backward")
        time.sleep(0.001)
        return {}


def test_time_is_that_of_the_phases_and_the_rest_lies_between_steps():
    stage = Sleeper(num_steps=16, views=ViewSource([], kept_on="cpu", device=torch.device("cpu")), seed=0)
    profiler, unheard = StepProfiler(stage, start=0, device=torch.device("cpu")), stage.mark
    for step in range(16):
        profiler.before_step(step, gaussians=7, codes=3)
        assert (stage.mark != unheard) == (step in (4, 5, 12, 13))
        stage.train_step(step)
        stage.mark(BETWEEN_STEPS)
        time.sleep(0.003)
    profiler.before_step(16)
    first, second = profiler.results
    assert (first["steps"], second["steps"], first["gaussians"]) == ([5, 6], [13, 14], 7)
    for result in (first, second):
        spent = result["host_ms"]
        assert 2 <= spent["forward"] < 500
        assert 1 <= spent["backward"] < 500
        assert 3 <= spent[BETWEEN_STEPS] < 500
        assert sum(spent.values()) == pytest.approx(result["wall_ms"])


class Event:
    def __init__(self, key, microseconds, count, kind="CUDA"):
        self.key, self.self_device_time_total, self.count = key, microseconds, count
        self.device_type = getattr(torch.autograd.DeviceType, kind)


class Trace:
    def key_averages(self):
        return [Event("blend", 1_000, 10), Event("sort", 3_000, 20), Event("aten::add", 50, 500, kind="CPU")]


def test_device_time_and_launches_are_per_step_and_the_longest_kernel_comes_first():
    found = device_times(Trace(), steps=10)  # 1 ms and 10 launches, 3 ms and 20 launches in ten steps
    assert found["kernels"] == [
        {"name": "sort", "ms": pytest.approx(0.3), "launches": 2.0},
        {"name": "blend", "ms": pytest.approx(0.1), "launches": 1.0},
    ]
    assert (found["device_ms"], found["launches"]) == (pytest.approx(0.4), 3.0)
    window = {"steps": [5, 14], "gaussians": 9, "codes": 2, "wall_ms": 1.25, "host_ms": {"view": 0.5}}
    lines = profile_table({"lift": [window | found]}).splitlines()
    assert lines[0] == "lift, steps 5 to 14 (9 gaussians, 2 codes): 1.250 ms a step"
    assert lines[1].split() == ["0.500", "ms", "view"]
    assert lines[2] == "  on the GPU 0.400 ms in 3.0 launches a step"
    assert lines[3].split() == ["0.3000", "ms", "2.0", "x", "sort"]


def test_a_run_that_ends_inside_a_window_stops_listening(tmp_path, scene):
    trainer = Trainer(settings_for(tmp_path, run=SHORT["run"] | {"profile": True}), scene)
    stages, after_step = [], trainer._after_step

    def fail(stage, step, total, log):
        stages.append(stage)
        after_step(stage, step, total, log)
        if step == 7:  # 24 steps: the first window begins after the sixth and times three
            raise MemoryError

    trainer._after_step = fail
    with pytest.raises(MemoryError):
        trainer.run()
    assert stages[0].mark.__name__ == "unheard"


@pytest.mark.gpu
def test_kernels_of_the_rasterizer_are_seen(tmp_path, scene):
    trainer = Trainer(settings_for(tmp_path, run=SHORT["run"] | {"profile": True, "device": "cuda"}), scene)
    trainer.run()
    for stage, kernel in (("geometry", "project_kernel"), ("lift", "adam_kernel")):
        for window in trainer.profile[stage]:
            assert 0 < window["device_ms"]
            assert window["launches"] > 5
            assert any(kernel in found["name"] for found in window["kernels"])
