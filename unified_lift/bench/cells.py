"""How one cell runs: its command lines in order, a log, and a record that is true at every moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from unified_lift.bench.grid import (
    Cell,
    Plan,
    Record,
    read_record,
    recorded_commands,
    shell_line,
    steps_to_run,
    write_record,
)

INTERRUPTED = 130
"""Exit code of a command line that was asked to stop and can go on."""
Execute = Callable[[list[str], Path], int]
"""Runs a command line with its output appended to a file, and returns its exit code."""


def run_cell(cell: Cell, plan: Plan, execute: Execute) -> Record:
    """Run what is still to do of a cell and return its record, which is also in cell.json.

    The record says `running` until the end, so a cell that was killed is known as such and goes on in the next call.
    """
    cell.folder.mkdir(parents=True, exist_ok=True)
    steps, finished = steps_to_run(cell, plan)
    goes_on = finished > 0 or "--resume" in steps[0]
    spent = read_record(cell).seconds if goes_on else 0.0
    began = time.perf_counter()
    record = Record(commands=recorded_commands(cell, plan), status="running", finished_steps=finished, seconds=spent)
    write_record(cell, record)
    if not goes_on:
        cell.log.write_text("")
    for step in steps:
        with open(cell.log, "a") as log:
            log.write(f"$ {shell_line(step)}\n")
        code = execute(step, cell.log)
        record = replace(record, exit_code=code, seconds=round(spent + time.perf_counter() - began, 2))
        if code:
            status = "interrupted" if code == INTERRUPTED else "failed"
            record = replace(record, status=status, message=_why(cell, code))
            break
        record = replace(record, finished_steps=record.finished_steps + 1)
        write_record(cell, record)
    else:
        missing = [path.name for path in cell.products if not path.exists()]
        done = replace(record, status="done")
        record = done if not missing else replace(done, status="failed", message=f"it left no {', '.join(missing)}")
        for path in cell.model.glob("chkpnt*.pth"):  # a finished cell needs none, and a grid of them fills the disk
            path.unlink()
    write_record(cell, record)
    return record


def _why(cell: Cell, code: int) -> str:
    """Return the last line of the log, or what ended the process where it could say nothing."""
    if code < 0:
        return f"ended by signal {-code}"
    lines = [line for line in cell.log.read_text(errors="replace").splitlines() if line.strip()]
    is_silent = not lines or lines[-1].startswith("$ ")
    return f"exit code {code} without a word" if is_silent else lines[-1].strip()
