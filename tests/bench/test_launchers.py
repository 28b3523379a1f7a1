"""Worker processes, and submitit through a stand-in of the package."""

import json
import os
import signal
import sys
import threading
import time
import types

import pytest

from tests.bench.cells_of import finished
from unified_lift.bench import launchers
from unified_lift.bench.grid import expand, read_record
from unified_lift.bench.launchers import SubmititLauncher, Worker, make_launcher
from unified_lift.bench.schedule import run_grid, states_of
from unified_lift.errors import UserError


@pytest.fixture(scope="module")
def worker():
    """A worker process for several tests, as it is for several cells."""
    made = Worker(os.environ)
    yield made
    made.close()


def test_a_worker_logs_each_command_and_outlives_every_failure(worker, tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("before\n")
    assert worker.execute(["eval", "-m", str(tmp_path / "gone")], log) == 2
    assert log.read_text().startswith("before\nerror: ")
    assert worker.execute(["train", "-s", "a", "-m", "b", "--itertions", "5"], tmp_path / "flags.txt") == 2
    assert "itertions" in (tmp_path / "flags.txt").read_text()
    assert worker.execute([["not", "a", "word"]], tmp_path / "crash.txt") == 70  # a defect: nobody catches TypeError
    assert "Traceback" in (tmp_path / "crash.txt").read_text()
    assert worker.execute(["--help"], tmp_path / "help.txt") == 0
    assert "usage: unified-lift" in (tmp_path / "help.txt").read_text()


def test_a_worker_that_dies_fails_its_command_and_is_started_again(worker, tmp_path):
    log = tmp_path / "log.txt"
    assert worker.execute(["--help"], log) == 0
    first = worker._process.pid
    os.kill(first, signal.SIGSTOP)  # so that it is at work when it is killed
    codes = []
    thread = threading.Thread(target=lambda: codes.append(worker.execute(["--help"], log)))
    thread.start()
    time.sleep(0.1)
    os.kill(first, signal.SIGKILL)
    thread.join(timeout=60)
    assert codes == [-signal.SIGKILL]
    assert worker.execute(["--help"], log) == 0
    assert worker._process.pid != first


def test_workers_share_cores_and_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    found = launchers._environments(3)
    assert [own["CUDA_VISIBLE_DEVICES"] for own in found] == ["4", "6", "4"]
    assert [own["OMP_NUM_THREADS"] for own in found] == ["2", "2", "2"]
    assert "OMP_NUM_THREADS" not in launchers._environments(1)[0]


class FakeJob:
    def __init__(self, function, arguments, broken):
        self.cancelled, self._broken, self._polls = False, broken, 0
        self._value = None if broken else function(*arguments)

    def done(self):
        self._polls += 1
        return self._polls > 2 or self.cancelled

    def exception(self):
        return RuntimeError("slurm said:\nOUT_OF_MEMORY") if self._broken else None

    def result(self):
        return self._value

    def cancel(self):
        self.cancelled = True


@pytest.fixture
def submitit(monkeypatch):
    """A stand-in for the package; `module.broken`: part of a key -> its job is ended by the scheduler."""
    module = types.ModuleType("submitit")
    module.jobs, module.broken = [], "-"

    class AutoExecutor:
        def __init__(self, folder):
            module.folder = folder

        def update_parameters(self, **parameters):
            if "nonsense" in parameters:
                raise NameError("Unknown arguments: nonsense")
            module.parameters = parameters

        def submit(self, function, *arguments):
            module.jobs.append((arguments[0].key, FakeJob(function, arguments, module.broken in arguments[0].key)))
            return module.jobs[-1][1]

    module.AutoExecutor = AutoExecutor
    monkeypatch.setitem(sys.modules, "submitit", module)
    monkeypatch.setattr(SubmititLauncher, "poll_s", 0.0)
    return module


@pytest.fixture
def commands(monkeypatch, plan):
    """Let every job leave what it should; return the plan and the command lines that were run."""
    p, seen = plan("3", rows=("gaga",), seeds=(0,)), []

    def run_process(step, log):
        seen.append(step[0])
        for cell in expand(p):
            if step[step.index("-m") + 1] == str(cell.model):
                finished(cell)
        return 0

    monkeypatch.setattr(launchers, "run_process", run_process)
    return p, seen


def test_every_cell_is_a_job_that_is_submitted_when_its_geometry_is_done(submitit, commands, tmp_path):
    p, seen = commands
    launcher = make_launcher("submitit", out=p.out, jobs=4, parameters={"timeout_min": "60", "slurm_partition": "gpu"})
    run_grid(expand(p), p, launcher, lambda line: None)
    assert submitit.folder == str(p.out / "submitit")
    assert submitit.parameters == {"timeout_min": 60, "slurm_partition": "gpu"}
    assert [key for key, _ in submitit.jobs] == [
        "geometry/a/seed0", "geometry/b/seed0", "detic_instance/a/gaga/seed0", "detic_instance/b/gaga/seed0",
    ]  # fmt: skip
    assert seen == ["train", "train", "train", "eval", "train", "eval"]
    assert {state.status for state in states_of(expand(p), p).values()} == {"done"}


def test_a_job_that_the_scheduler_ends_has_failed_and_the_rest_goes_on(submitit, commands):
    p, _ = commands
    submitit.broken = "geometry/a"
    lines = []
    run_grid(expand(p), p, make_launcher("submitit", out=p.out, jobs=4, parameters={}), lines.append)
    assert any(line.startswith("failed geometry/a/seed0 (OUT_OF_MEMORY;") for line in lines)
    states = states_of(expand(p), p)
    assert states["geometry/a/seed0"].status == "failed"
    assert json.loads(expand(p)[0].record.read_text())["message"] == "OUT_OF_MEMORY"
    assert read_record(expand(p)[3]).status == "done"


def test_stopping_cancels_the_jobs(submitit, commands):
    p, _ = commands
    launcher = make_launcher("submitit", out=p.out, jobs=1, parameters={})
    launcher.start(expand(p)[0], p)
    launcher.interrupt()
    assert submitit.jobs[0][1].cancelled


def test_without_submitit_or_with_a_wrong_parameter_there_is_one_line(submitit, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="--slurm: Unknown arguments: nonsense"):
        make_launcher("submitit", out=tmp_path, jobs=1, parameters={"nonsense": "1"})
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match="pip install submitit"):
        make_launcher("submitit", out=tmp_path, jobs=1, parameters={})
