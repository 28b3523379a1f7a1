"""The whole grid: in order, several cells at a time, going on after failures."""

from __future__ import annotations

import fcntl
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from unified_lift.bench.grid import Cell, Plan, Record, Status, is_current, is_done, read_record
from unified_lift.bench.launchers import Launcher, Run
from unified_lift.errors import UserError
from unified_lift.evaluation.report import duration_text

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class State:
    """What is known of a cell: `blocked` is one whose geometry or training failed."""

    status: Status
    message: str = ""
    seconds: float = 0.0


def states_of(cells: Sequence[Cell], plan: Plan) -> dict[str, State]:
    """Return the state of every cell, as the files tell; records of other commands do not count."""
    states: dict[str, State] = {}
    for cell in cells:
        record = read_record(cell)
        if not is_current(cell, record, plan):
            record = Record()
        state = State(status=record.status, message=record.message, seconds=record.seconds)
        if record.status == "done" and not is_done(cell, plan):
            state = State(status="new", message="its files are gone")
        if record.status == "running":
            state = replace(state, status="interrupted", message="broken off")
        needed = states.get(cell.needs)
        if state.status != "done" and needed is not None and needed.status in ("failed", "blocked"):
            state = State(status="blocked", message=f"{cell.needs} failed: {needed.message}")
        states[cell.key] = state
    return states


def run_grid(cells: Sequence[Cell], plan: Plan, launcher: Launcher, report: Report) -> None:
    """Run every cell that is not done; a failure ends only the cells that rest on it.

    Args:
        cells: In the order in which they are to start, each after the one it needs.
        plan: What they belong to.
        launcher: Runs them.
        report: Takes a line whenever a cell starts or ends.
    Raises:
        KeyboardInterrupt: Once everything that ran has saved what it had.
    """
    states = {key: state for key, state in states_of(cells, plan).items() if state.status == "done"}
    waiting = [cell for cell in cells if cell.key not in states]
    progress = _Progress(cells, states, launcher.capacity)
    if states:
        report(f"{len(states)} of {len(cells)} cells are done")
    running: dict[str, tuple[Cell, Run]] = {}
    try:
        while waiting or running:
            for cell in _startable(waiting, states, room=launcher.capacity - len(running)):
                waiting.remove(cell)
                running[cell.key] = (cell, launcher.start(cell, plan))
                progress.started[cell.key] = time.monotonic()
                report(f"start  {cell.key}")
            for key, (cell, run) in [item for item in running.items() if item[1][1].done()]:
                del running[key]
                record = run.result()
                states[key] = State(status=record.status, message=record.message, seconds=record.seconds)
                report(progress.ended(cell, states[key]))
            for cell in [cell for cell in waiting if _is_hopeless(cell, states)]:
                waiting.remove(cell)
                states[cell.key] = State(status="blocked", message=f"{cell.needs} failed")
                report(progress.ended(cell, states[cell.key]))
            if running:
                time.sleep(launcher.poll_s)
    except KeyboardInterrupt:
        report(f"stopping: {len(running)} running cells save what they have (Ctrl-C again: at once)")
        _stop(launcher)
        raise
    finally:
        launcher.close()


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep a second benchmark from writing into the same folder.

    Raises:
        UserError: One is at work there.
    """
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out}: another bench is at work there; wait for it or choose another --out") from None
        yield


def _startable(waiting: Sequence[Cell], states: Mapping[str, State], *, room: int) -> list[Cell]:
    ready = [cell for cell in waiting if not cell.needs or _status(states, cell.needs) == "done"]
    return ready[: max(room, 0)]


def _is_hopeless(cell: Cell, states: Mapping[str, State]) -> bool:
    return bool(cell.needs) and _status(states, cell.needs) in ("failed", "blocked", "interrupted")


def _status(states: Mapping[str, State], key: str) -> Status:
    return states[key].status if key in states else "new"


def _stop(launcher: Launcher) -> None:
    try:
        launcher.interrupt()
        launcher.close()
    except KeyboardInterrupt:
        launcher.kill()
        launcher.close()


class _Progress:
    """Counts cells and guesses the time left from those of the same row, else of the same kind."""

    def __init__(self, cells: Sequence[Cell], done: Mapping[str, State], capacity: int) -> None:
        self._cells, self._left = len(cells), {cell.key: cell for cell in cells if cell.key not in done}
        self._capacity = capacity
        self._seconds: dict[tuple[str, str], list[float]] = {}
        self._num = {"done": len(done), "failed": 0, "blocked": 0, "interrupted": 0}
        self.started: dict[str, float] = {}
        for cell in cells:
            if cell.key in done:
                self._note(cell, done[cell.key].seconds)

    def ended(self, cell: Cell, state: State) -> str:
        """Return the line about a cell that has ended."""
        del self._left[cell.key]
        self.started.pop(cell.key, None)
        self._num[state.status] += 1
        if state.status == "done":
            self._note(cell, state.seconds)
        how = f"{state.status:<6} {cell.key} " + (
            f"in {duration_text(state.seconds)}" if state.status == "done" else f"({state.message}; {cell.log})"
        )
        counted = [f"{self._num['done']} of {self._cells} done"]
        counted += [f"{number} {name}" for name, number in self._num.items() if number and name != "done"]
        left = self._time_left()
        return "; ".join([how, ", ".join(counted), *([f"about {duration_text(left)} left"] if left else [])])

    def _note(self, cell: Cell, seconds: float) -> None:
        for key in ((cell.kind, cell.row), (cell.kind, "")):
            self._seconds.setdefault(key, []).append(seconds)

    def _time_left(self) -> float:
        """Return seconds; 0 where nothing is left or nothing is known."""
        total, now = 0.0, time.monotonic()
        for cell in self._left.values():
            known = self._seconds.get((cell.kind, cell.row)) or self._seconds.get((cell.kind, ""))
            known = known or [seconds for values in self._seconds.values() for seconds in values]
            guess = statistics.mean(known) if known else 0.0
            total += max(0.0, guess - (now - self.started[cell.key] if cell.key in self.started else 0.0))
        return total / max(1, min(self._capacity, len(self._left)))
