"""The grid: order, failures, several at a time, Ctrl-C."""

from concurrent.futures import Future

import pytest

from tests.bench.cells_of import finished, run_all
from unified_lift.bench.cells import run_cell
from unified_lift.bench.grid import expand, read_record
from unified_lift.bench.schedule import locked, run_grid, states_of
from unified_lift.errors import UserError


class FakeLauncher:
    """Runs a cell at once; `codes`: part of a key -> exit code of its cell."""

    poll_s = 0.0

    def __init__(self, *, capacity=1, codes=None, interrupt_at=None):
        self.capacity, self.codes, self.interrupt_at = capacity, codes or {}, interrupt_at
        self.started, self.running, self.most, self.calls = [], 0, 0, []

    def start(self, cell, plan):
        self.started.append(cell.key)
        self.running += 1
        self.most = max(self.most, self.running)

        def execute(step, log):
            finished(cell)
            return next((code for part, code in self.codes.items() if part in cell.key), 0)

        launcher, future = self, Future()
        future.set_result(run_cell(cell, plan, execute))

        class Run:
            def done(self):
                if cell.key == launcher.interrupt_at:
                    raise KeyboardInterrupt
                return True

            def result(self):
                launcher.running -= 1
                return future.result()

        return Run()

    def interrupt(self):
        self.calls.append("interrupt")

    def kill(self):
        self.calls.append("kill")

    def close(self):
        self.calls.append("close")


def run(plan, launcher):
    lines = []
    run_grid(expand(plan), plan, launcher, lines.append)
    return lines


def test_every_cell_runs_once_after_the_one_it_needs(plan):
    p, launcher = plan(rows=("omniseg3d_gs", "omniseg3d_gs_oracle")), FakeLauncher()
    run(p, launcher)
    assert launcher.started == [cell.key for cell in expand(p)]
    assert launcher.most == 1
    assert launcher.calls == ["close"]


def test_as_many_run_as_there_is_room_for(plan):
    launcher = FakeLauncher(capacity=3)
    run(plan(seeds=(0, 1, 2)), launcher)
    assert launcher.most == 3


def test_a_second_call_runs_only_what_is_missing(plan):
    p = plan()
    run(p, FakeLauncher(codes={"b/gaga/seed1": 2}))
    again = FakeLauncher()
    lines = run(p, again)
    assert again.started == ["detic_instance/b/gaga/seed1", "object_mask/b/gaga/seed1"]
    assert lines[0] == "18 of 20 cells are done"
    third = FakeLauncher()
    assert run(p, third) == ["20 of 20 cells are done"]
    assert third.started == []


def test_a_failure_stops_only_what_rests_on_it(plan):
    p = plan()
    launcher = FakeLauncher(codes={"geometry/a/seed0": 1})
    lines = run(p, launcher)
    assert len(launcher.started) == 20 - 4
    states = states_of(expand(p), p)
    assert states["geometry/a/seed0"].status == "failed"
    assert {key for key, state in states.items() if state.status == "blocked"} == {
        f"{masks}/a/{row}/seed0" for masks in ("detic_instance", "object_mask") for row in ("unified_lift", "gaga")
    }
    assert "15 of 20 done, 1 failed, 4 blocked" in lines[-1]
    assert any(line.startswith("failed geometry/a/seed0 (exit code 1 without a word; ") for line in lines)


def test_what_fails_because_training_failed_is_blocked_down_to_the_oracle(plan):
    p = plan("3", rows=("omniseg3d_gs", "omniseg3d_gs_oracle"), scenes=("a",), seeds=(0,))
    run(p, FakeLauncher(codes={"geometry": 1}))
    assert [state.status for state in states_of(expand(p), p).values()] == ["failed", "blocked", "blocked"]


def test_lines_tell_what_is_left(plan, monkeypatch):
    p = plan("3", rows=("gaga",), scenes=("a",), seeds=(0, 1))
    ticks = iter(range(0, 1000, 10))
    monkeypatch.setattr("unified_lift.bench.cells.time.perf_counter", lambda: float(next(ticks)))
    lines = [line for line in run(p, FakeLauncher()) if not line.startswith("start")]
    # Geometry is one step of 10 s, a method two; until one has run, the time of geometry stands in for it.
    assert [line.partition("seed")[2] for line in lines] == [
        "0 in 10 s; 1 of 4 done; about 30 s left",
        "0 in 20 s; 2 of 4 done; about 30 s left",
        "1 in 10 s; 3 of 4 done; about 20 s left",
        "1 in 20 s; 4 of 4 done",
    ]


def test_ctrl_c_asks_everything_to_save_and_waits(plan):
    p = plan()
    launcher = FakeLauncher(interrupt_at="geometry/a/seed1")
    lines = []
    with pytest.raises(KeyboardInterrupt):
        run_grid(expand(p), p, launcher, lines.append)
    assert launcher.calls[:2] == ["interrupt", "close"]
    assert "running cells save what they have" in lines[-1]
    assert "geometry/b/seed0" not in launcher.started


def test_states_come_from_the_files(plan):
    p = plan("3", rows=("gaga",), scenes=("a",), seeds=(0, 1))
    assert {state.status for state in states_of(expand(p), p).values()} == {"new"}
    cells = run_all(p)
    cells[1].products[0].unlink()
    record = read_record(cells[3])
    cells[3].record.write_text(cells[3].record.read_text().replace('"done"', '"running"'))
    states = states_of(cells, p)
    assert [states[cell.key].status for cell in cells] == ["done", "new", "done", "interrupted"]
    assert states[cells[0].key].seconds == read_record(cells[0]).seconds
    assert record.status == "done"


def test_two_benchmarks_do_not_share_a_folder(tmp_path):
    with locked(tmp_path / "out"), pytest.raises(UserError, match="another bench is at work"), locked(tmp_path / "out"):
        pass
    with locked(tmp_path / "out"):
        pass
