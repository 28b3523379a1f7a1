import time

import pytest
import torch

from tests.train.test_training import SHORT, settings_for
from unified_lift.model.initialize import gaussians_from_points
from unified_lift.train.hooks import Hook, fit
from unified_lift.train.profiling import Profile, device_times, profile_table, windows
from unified_lift.train.run import run
from unified_lift.train.stage import Stage, no_op


def test_windows_lie_after_a_quarter_of_the_steps_and_at_their_end():
    assert windows(0, 30_000) == [range(7_500, 7_700), range(29_800, 30_000)]
    assert windows(0, 16) == [range(4, 8), range(12, 16)]
    assert windows(20, 28) == [range(22, 24), range(26, 28)]
    assert windows(20, 27) == windows(7, 7) == []


class Sleeper(Stage):
    """Spends two milliseconds in its first phase and one in its second."""

    name = "sleeper"

    def step(self, step):
        self.on_phase("forward")
        time.sleep(0.002)
        self.on_phase("backward")
        time.sleep(0.001)
        return {}


class Listening(Hook):
    """Notes the steps that somebody listens to; sleeps between steps."""

    def __init__(self):
        self.steps = []

    def before_step(self, stage, step):
        if stage.on_phase is not no_op:
            self.steps.append(step)

    def after_step(self, stage, step, terms):
        time.sleep(0.003)


def test_time_is_that_of_the_phases_and_the_rest_lies_between_steps(scene):
    gaussians, listening, profile = gaussians_from_points(scene.points, sh_degree=0), Listening(), {}
    method = settings_for("model").build_method(zero_id="ignore")
    fit(Sleeper(scene, [], gaussians, None, num_steps=16, seed=0), [Profile(method, profile), listening])
    assert listening.steps == [4, 5, 12, 13]
    first, second = profile["sleeper"]
    assert (first["steps"], second["steps"], first["gaussians"]) == ([5, 6], [13, 14], len(gaussians))
    for result in (first, second):
        spent = result["host_ms"]
        assert 2 <= spent["forward"] < 500
        assert 1 <= spent["backward"] < 500
        assert 3 <= spent["between steps"] < 500
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


@pytest.mark.gpu
def test_kernels_of_the_rasterizer_are_seen(tmp_path, scene):
    state = run(settings_for(tmp_path, run=SHORT["run"] | {"profile": True, "device": "cuda"}), scene)
    for stage, kernel in (("geometry", "project_kernel"), ("lift", "adam_kernel")):
        for window in state.profile[stage]:
            assert 0 < window["device_ms"]
            assert window["launches"] > 5
            assert any(kernel in found["name"] for found in window["kernels"])
