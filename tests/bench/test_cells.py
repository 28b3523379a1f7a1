"""One cell: its record is true at every moment, and its log tells why it failed."""

import pytest

from tests.bench.cells_of import finished
from unified_lift.bench.cells import run_cell
from unified_lift.bench.grid import expand, read_record


@pytest.fixture
def the_plan(plan):
    return plan("3", rows=("gaga",), scenes=("a",), seeds=(0,))


@pytest.fixture
def cell(the_plan):
    return expand(the_plan)[1]


def test_a_cell_that_ends_well(the_plan, cell):
    seen = []

    def execute(step, log):
        seen.append((step[0], read_record(cell).status, read_record(cell).finished_steps))
        finished(cell)
        (cell.model / "chkpnt5.pth").write_text("")
        return 0

    record = run_cell(cell, the_plan, execute)
    assert seen == [("train", "running", 0), ("eval", "running", 1)]
    assert (record.status, record.exit_code, record.finished_steps) == ("done", 0, 2)
    assert read_record(cell) == record
    assert [line[:33] for line in cell.log.read_text().splitlines()] == [
        "$ python -m unified_lift train -s", "$ python -m unified_lift eval -m ",
    ]  # fmt: skip
    assert not list(cell.model.glob("chkpnt*"))


@pytest.mark.parametrize(
    ("code", "printed", "message"),
    [
        (2, "loading\nerror: no such thing\n\n", "error: no such thing"),
        (2, "", "exit code 2 without a word"),
        (-11, "half a li", "ended by signal 11"),
    ],
)
def test_a_failure_is_told_by_the_last_line_of_the_log(the_plan, cell, code, printed, message):
    def execute(step, log):
        with open(log, "a") as file:
            file.write(printed)
        return code

    record = run_cell(cell, the_plan, execute)
    assert (record.status, record.exit_code, record.message, record.finished_steps) == ("failed", code, message, 0)


def test_a_command_that_leaves_nothing_has_failed(the_plan, cell):
    record = run_cell(cell, the_plan, lambda step, log: 0)
    assert (record.status, record.message) == ("failed", "it left no results.json, manifest.json")


def test_the_time_of_an_interrupted_attempt_counts_and_its_log_stays(the_plan, cell, monkeypatch):
    ticks = iter([0.0, 10.0, 100.0, 105.0])
    monkeypatch.setattr("unified_lift.bench.cells.time.perf_counter", lambda: next(ticks))

    def stop(step, log):
        (cell.model / "chkpnt5.pth").write_text("")
        return 130

    assert run_cell(cell, the_plan, stop).seconds == 10
    assert run_cell(cell, the_plan, stop).seconds == 15
    assert [("--resume" in line) for line in cell.log.read_text().splitlines()] == [False, True]
