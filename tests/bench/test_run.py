"""Jobs: their records are true at every moment; several at a time, failures, Ctrl-C, submitit through a stand-in."""

import json
import os
import shutil
import signal
import sys
import time
import types
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import pytest

from tests.bench.conftest import finish, job_named, run_all
from unified_lift.bench.grid import expand
from unified_lift.bench.run import (
    LocalPool,
    SubmititPool,
    environments,
    read_record,
    read_records,
    run_grid,
    run_job,
)
from unified_lift.bench.tables import Row
from unified_lift.errors import UserError
from unified_lift.fileio import locked


@pytest.fixture
def job(grid):
    return expand(grid("3", rows=("gaga",), scenes=("a",), seeds=(0,)))[1]


def statuses(jobs):
    return {key: record.status for key, record in read_records(jobs).items()}


def test_a_job_that_ends_well(job):
    seen = []

    def execute(command, log):
        seen.append((command[0], json.loads(job.record.read_text())["status"], read_record(job).finished_steps))
        finish(job)
        (job.model / "results.json").write_text('{"ours_0": {"PQ_scene": 0.5}}')
        (job.model / "chkpnt5.pth").write_text("")
        return 0

    record = run_job(job, execute)
    assert seen == [("train", "running", 0), ("eval", "running", 1)]
    assert (record.status, record.exit_code, record.finished_steps) == ("done", 0, 2)
    assert record.figures["scores"] == {"PQ_scene": 0.5}
    assert read_record(job) == record
    logged = [line.split()[:5] for line in job.log.read_text().splitlines()]
    assert logged == [["$", "python", "-m", "unified_lift", name] for name in ("train", "eval")]
    assert not list(job.model.glob("chkpnt*"))


@pytest.mark.parametrize(
    ("code", "printed", "message"),
    [
        (2, "loading\nerror: no such thing\n\n", "error: no such thing"),
        (2, "╭─ Unrecognized ─╮\n│ --itertions    │\n╰────────────────╯\n", "--itertions"),
        (2, "", "exit code 2 without a word"),
        (-11, "half a li", "ended by signal 11"),
        (0, "", "it left no results.json, manifest.json"),
    ],
)
def test_a_failure_is_told_by_the_last_line_of_the_log(job, code, printed, message):
    def execute(command, log):
        log.write_text(log.read_text() + printed)
        return code

    record = run_job(job, execute)
    assert (record.status, record.exit_code, record.message) == ("failed", code, message)


def test_the_time_of_an_interrupted_attempt_counts_and_it_goes_on_from_its_checkpoint(job, monkeypatch):
    ticks = iter([0.0, 10.0, 100.0, 105.0])
    monkeypatch.setattr("unified_lift.bench.run.time.perf_counter", lambda: next(ticks))

    def stop(command, log):
        (job.model / "chkpnt5.pth").write_text("")
        return 130

    assert [run_job(job, stop).seconds for _ in range(2)] == [10, 15]
    assert [("--resume" in line) for line in job.log.read_text().splitlines()] == [False, True]


@pytest.mark.parametrize(("code", "extra"), [(2, ()), (130, ("--sh_degree=1",))])
def test_a_job_that_failed_or_has_other_flags_begins_anew(grid, job, code, extra):
    run_job(job, lambda command, log: code)
    (job.model / "chkpnt7.pth").write_text("")
    changed, seen = expand(grid("3", rows=("gaga",), scenes=("a",), seeds=(0,), extra=extra))[1], []
    run_job(changed, lambda command, log: seen.append(command) or 1)
    assert "--overwrite" in seen[0]


def test_a_job_interrupted_while_scoring_does_not_train_again(job):
    assert run_job(job, lambda command, log: 0 if command[0] == "train" else 130).status == "interrupted"
    seen = []
    assert run_job(job, lambda command, log: seen.append(command[0]) or finish(job) or 0).status == "done"
    assert seen == ["eval"]


def test_a_job_is_done_with_its_commands_and_artefacts_only(grid):
    jobs = run_all(grid(scenes=("a",), seeds=(0,)))
    assert set(statuses(jobs).values()) == {"done"}
    jobs[1].artefacts[0].unlink()
    jobs[2].record.write_text('{"commands": [')
    jobs[3].record.write_text(jobs[3].record.read_text().replace('"done"', '"running"'))
    assert list(statuses(jobs).values()) == ["done", "new", "new", "interrupted", "done"]
    for content in (
        "3",
        "[" * 100_000,
        '{"a": ' + "9" * 5_000 + "}",
        '{"seconds": "x"}',
        '{"status": []}',
        '{"a": null}',
    ):
        jobs[2].record.write_text(content)
        assert list(statuses(jobs).values())[2] == "new"


def test_other_flags_or_geometry_make_a_job_run_again_and_moved_folders_do_not(grid, tmp_path):
    made = grid(scenes=("a",), seeds=(0,), rows=("gaga",))
    run_all(made)
    for extra in ("--sh_degree=1", "geometry:--sh_degree=1"):
        assert set(statuses(expand(replace(made, extra=(extra,)))).values()) == {"new"}
    assert list(statuses(expand(replace(made, extra=("gaga:--feature_dim=8",)))).values()) == ["done", "new", "new"]
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    (tmp_path / "data/a").rename(tmp_path / "a")
    moved = replace(made, out=tmp_path / "elsewhere", scenes=(replace(made.scenes[0], path=tmp_path / "a"),))
    assert set(statuses(expand(moved)).values()) == {"done"}
    assert str(tmp_path) not in json.dumps(expand(moved)[1].recorded)


class FakePool(LocalPool):
    """Leaves the files of a job instead of running its commands; `codes`: part of a key -> their exit code."""

    poll_s = 0.001

    def __init__(self, grid, *, jobs=1, codes=None):
        super().__init__(jobs)
        self.by_log, self.codes = {job.log: job for job in expand(grid)}, codes or {}
        self.started, self.running, self.most, self.signals = [], [], 0, []

    def submit(self, job):
        self.started.append(job.key)
        return super().submit(job)

    def execute(self, command, log):
        job = self.by_log[log]
        self.running.append(job.key)
        self.most = max(self.most, len(self.running))
        time.sleep(0.005)
        finish(job)
        self.running.remove(job.key)
        return next((code for part, code in self.codes.items() if part in job.key), 0)

    def stop(self, number):
        self.signals.append(number)


def run(grid, pool):
    lines = []
    run_grid(expand(grid), pool, lines.append)
    return lines


def test_every_job_runs_once_and_as_many_at_a_time_as_there_is_room_for(grid):
    made = grid(rows=("omniseg3d_gs", "omniseg3d_gs_oracle"))
    pool, wide = FakePool(made), FakePool(made, jobs=3)
    run(made, pool)
    assert pool.started == [job.key for job in expand(made)]
    assert pool.most == 1
    shutil.rmtree(made.out)
    run(made, wide)
    assert 1 < wide.most <= 3


def test_a_second_call_runs_only_what_is_missing(grid):
    made = grid()
    run(made, FakePool(made, codes={"b/gaga/seed1": 2}))
    again = FakePool(made)
    assert run(made, again)[0] == "18 of 20 jobs are done"
    assert again.started == ["detic_instance/b/gaga/seed1", "object_mask/b/gaga/seed1"]
    assert run(made, FakePool(made)) == ["20 of 20 jobs are done"]


def test_a_failure_stops_only_what_depends_on_it_down_to_the_oracle(grid):
    made = grid("3", rows=("omniseg3d_gs", "omniseg3d_gs_oracle"), seeds=(0,))
    lines = run(made, FakePool(made, codes={"geometry/a/seed0": 1}))
    key = "detic_instance/a/omniseg3d_gs/seed0"
    assert {key: status for key, status in statuses(expand(made)).items() if status != "done"} == {
        "geometry/a/seed0": "failed", key: "blocked", f"{key}/oracle": "blocked",
    }  # fmt: skip
    assert "3 of 6 done, 1 failed, 2 blocked" in lines[-1]
    assert any(line.startswith("failed geometry/a/seed0 (exit code 1 without a word; ") for line in lines)


def test_lines_tell_what_is_left(grid, monkeypatch):
    ticks = iter(range(0, 1000, 10))
    monkeypatch.setattr("unified_lift.bench.run.time.perf_counter", lambda: float(next(ticks)))
    made = grid("3", rows=("gaga",), scenes=("a",), seeds=(0, 1))
    # Geometry is one command of 10 s, a method two; until one has run, the time of geometry is taken for it.
    assert [line.partition("seed")[2] for line in run(made, FakePool(made)) if not line.startswith("start")] == [
        "0 in 10 s; 1 of 4 done; about 30 s left",
        "0 in 20 s; 2 of 4 done; about 30 s left",
        "1 in 10 s; 3 of 4 done; about 20 s left",
        "1 in 20 s; 4 of 4 done",
    ]


def test_ctrl_c_asks_everything_to_save_and_waits(grid):
    made, lines = grid(), []
    pool = FakePool(made)

    def interrupt(line):
        lines.append(line)
        if line == "start  geometry/a/seed1":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_grid(expand(made), pool, interrupt)
    assert (pool.signals, pool.running) == ([signal.SIGINT], [])
    assert "running jobs save what they have" in lines[-1]
    assert "geometry/b/seed0" not in pool.started


def test_a_process_that_dies_fails_its_job_and_one_that_we_stop_was_interrupted(tmp_path):
    pool, log = LocalPool(1), tmp_path / "log.txt"
    assert pool.execute(["--help"], log) == 0
    assert "usage: unified-lift" in log.read_text()
    assert pool.execute(["eval", "-m", str(tmp_path / "gone")], log) == 2
    stopped = pool.executor.submit(pool.execute, ["doctor"], log)
    time.sleep(0.3)
    pool.stop(signal.SIGKILL)
    assert [stopped.result(timeout=60), pool.execute(["--help"], log)] == [130, 130]


def test_processes_share_cores_and_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    found = [(own["CUDA_VISIBLE_DEVICES"], own["OMP_NUM_THREADS"]) for own in environments(3)]
    assert found == [("4", "2"), ("6", "2"), ("4", "2")]
    assert "OMP_NUM_THREADS" not in environments(1)[0]
    assert environments(1, threads=1)[0]["OMP_NUM_THREADS"] == "1"


def test_two_benchmarks_do_not_share_a_folder(tmp_path):
    for _ in range(2):  # and it is free again afterwards
        with locked(tmp_path / "o", "a bench"), ThreadPoolExecutor(1) as pool:  # a thread may lock it again
            other = pool.submit(locked(tmp_path / "o", "a bench").__enter__)
            with pytest.raises(UserError, match=r"a bench \(process \d+\) is at work"):
                other.result()


@pytest.fixture
def submitit(monkeypatch):
    """A stand-in for the package; `module.broken`: part of a key -> its job is ended by the scheduler."""
    module = types.ModuleType("submitit")
    module.submitted, module.broken = {}, "-"

    class AutoExecutor:
        def __init__(self, folder):
            module.folder = folder

        def update_parameters(self, **parameters):
            if "nonsense" in parameters:
                raise NameError("Unknown arguments: nonsense")
            module.parameters = parameters

        def submit(self, function, job):
            module.submitted[job.key] = future = Future()
            if module.broken in job.key:
                future.set_exception(RuntimeError("slurm said:\nOUT_OF_MEMORY"))
            elif module.broken != "nothing ends":
                future.set_result(function(job, lambda command, log: finish(job) or 0))
            return future

    module.AutoExecutor = AutoExecutor
    monkeypatch.setitem(sys.modules, "submitit", module)
    monkeypatch.setattr(SubmititPool, "poll_s", 0.0)
    return module


def test_jobs_are_submitted_when_their_geometry_is_done_and_one_that_the_scheduler_ends_has_failed(submitit, grid):
    made, parameters = grid("3", rows=("gaga",), seeds=(0,)), {"timeout_min": "60", "slurm_partition": "gpu"}
    submitit.broken = "geometry/a"
    lines = run(made, SubmititPool(4, folder=made.out / "submitit", parameters=parameters))
    assert submitit.folder == str(made.out / "submitit")
    assert submitit.parameters == {"timeout_min": 60, "slurm_partition": "gpu"}
    assert list(submitit.submitted) == ["geometry/a/seed0", "geometry/b/seed0", "detic_instance/b/gaga/seed0"]
    assert any(line.startswith("failed geometry/a/seed0 (OUT_OF_MEMORY;") for line in lines)
    assert read_record(job_named(made, "geometry/a/seed0")).message == "OUT_OF_MEMORY"
    assert read_record(job_named(made, "detic_instance/b/gaga/seed0")).status == "done"


def test_stopping_cancels_what_is_submitted(submitit, grid, tmp_path, monkeypatch):
    submitit.broken = "nothing ends"
    monkeypatch.setattr("unified_lift.bench.run.time.sleep", lambda seconds: signal.raise_signal(signal.SIGINT))
    made = grid("3", rows=("gaga",), seeds=(0,))
    with pytest.raises(KeyboardInterrupt):
        run(made, SubmititPool(1, folder=tmp_path, parameters={}))
    (submitted,) = submitit.submitted.values()
    assert submitted.cancelled()


def test_without_submitit_or_with_a_wrong_parameter_there_is_one_line(submitit, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="--slurm: Unknown arguments: nonsense"):
        SubmititPool(1, folder=tmp_path, parameters={"nonsense": "1"})
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match="pip install submitit"):
        SubmititPool(1, folder=tmp_path, parameters={})


def test_records_and_logs_tell_no_places(grid, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    yaml = tmp_path / "my.yaml"
    rows = (Row(key="my", name="my", train=("--preset", str(yaml))),)
    made = grid("3", rows=(), scenes=("a",), seeds=(0,), grounding=f"dino:{tmp_path}/d,sam:{tmp_path}/s")
    made = replace(made, rows=rows, extra=("--exclude", str(tmp_path / "left_out")))
    job = expand(made)[1]

    def fail(command, log):
        log.write_text(log.read_text() + f"{tmp_path}/data/a: read\nerror: {tmp_path}/left out/x: gone\n")
        return 2

    assert run_job(job, fail).message == "error: ../left out/x: gone"
    for path in (job.log, job.record):
        assert str(tmp_path) not in path.read_text()
    old = json.loads(job.record.read_text())
    assert "--preset ~/my.yaml --exclude ~/left_out" in " ".join(old["commands"][1])
    old["commands"] = [[word.replace("~", str(tmp_path)) for word in command] for command in old["commands"]]
    job.record.write_text(json.dumps(old))
    assert read_record(job).status == "failed"  # absolute, as older versions wrote them
    full = expand(replace(made, provenance="full"))[1]
    assert f"{tmp_path}/left out/x" in run_job(full, fail).message
    assert all("--provenance=full" in command for command in full.commands)
    assert str(tmp_path / "left_out") in full.log.read_text()
