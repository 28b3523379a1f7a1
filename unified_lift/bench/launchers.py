"""Where cells run: worker processes of this machine, or jobs of a cluster through submitit."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch

from unified_lift.bench.cells import INTERRUPTED, run_cell
from unified_lift.bench.grid import Cell, Plan, Record, recorded_commands, write_record
from unified_lift.errors import UserError

_WORKER = ("-m", "unified_lift.cli.worker")


class Run(Protocol):
    """A cell on its way."""

    def done(self) -> bool:
        """Return whether it has ended."""

    def result(self) -> Record:
        """Return how it ended."""


class Launcher(Protocol):
    """Starts cells.

    Attributes:
        capacity: How many run at the same time.
        poll_s: Seconds between two looks at them.
    """

    capacity: int
    poll_s: float

    def start(self, cell: Cell, plan: Plan) -> Run:
        """Start a cell; never more than `capacity` at a time."""

    def interrupt(self) -> None:
        """Ask everything that runs to save what it has and end."""

    def kill(self) -> None:
        """End everything now."""

    def close(self) -> None:
        """Wait for what runs and give everything back."""


class Worker:
    """A process that runs one command line after another, started when it is needed and again when it has died."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Remember what the process is to find in its environment."""
        self._environment = dict(environment)
        self._process: subprocess.Popen[str] | None = None

    def execute(self, step: list[str], log: Path) -> int:
        """Run a command line, its output appended to `log`; return its exit code, negative if a signal ended it."""
        if self._process is None or self._process.poll() is not None:
            # A session of its own: Ctrl-C in the terminal reaches us alone, and we pass it on once.
            self._process = subprocess.Popen(
                [sys.executable, *_WORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
                env=self._environment,
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"argv": step, "log": str(log)}) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        return int(json.loads(answer)["code"]) if answer.endswith("\n") else (process.wait() or 1)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and everything it has started."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, number)

    def close(self) -> None:
        """Let the process end."""
        if self._process is not None:
            process, self._process = self._process, None
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                stream.close()
            process.wait()


class LocalLauncher:
    """Runs cells in `jobs` worker processes of this machine, spread over its GPUs."""

    poll_s = 0.1

    def __init__(self, *, jobs: int) -> None:
        """Make ready; processes start with the first cell."""
        self.capacity = jobs
        self._workers = [Worker(environment) for environment in _environments(jobs)]
        self._free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._free.put(worker)
        self._pool = ThreadPoolExecutor(jobs)
        self._stopping = False

    def start(self, cell: Cell, plan: Plan) -> Future[Record]:
        """Start a cell in a free worker."""
        return self._pool.submit(self._run, cell, plan)

    def interrupt(self) -> None:
        """Ask everything that runs to save what it has and end."""
        self._stopping = True
        for worker in self._workers:
            worker.signal(signal.SIGINT)

    def kill(self) -> None:
        """End everything now."""
        self._stopping = True
        for worker in self._workers:
            worker.signal(signal.SIGKILL)

    def close(self) -> None:
        """Wait for what runs and end the processes."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for worker in self._workers:
            worker.close()

    def _run(self, cell: Cell, plan: Plan) -> Record:
        worker = self._free.get()

        def execute(step: list[str], log: Path) -> int:
            if self._stopping:
                return INTERRUPTED
            code = worker.execute(step, log)
            # A worker that had not begun, or was killed by us, has not failed.
            return INTERRUPTED if self._stopping and code != 0 else code

        try:
            return run_cell(cell, plan, execute)
        finally:
            self._free.put(worker)


class SubmititLauncher:
    """Submits every cell as a job of its own, once the cell it needs is done."""

    poll_s = 2.0

    def __init__(self, *, folder: Path, jobs: int, parameters: Mapping[str, str]) -> None:
        """Make the executor.

        Args:
            folder: Takes submitit's own files; all nodes must see it.
            jobs: Most jobs at a time.
            parameters: For `AutoExecutor.update_parameters`, such as timeout_min or slurm_partition.
        Raises:
            UserError: submitit is not installed, or does not know a parameter.
        """
        try:
            import submitit
        except ImportError:
            raise UserError("--launcher submitit: the package is not installed; pip install submitit") from None
        self.capacity = jobs
        self._executor = submitit.AutoExecutor(folder=str(folder))
        try:
            self._executor.update_parameters(**{name: _number(value) for name, value in parameters.items()})
        except (NameError, TypeError, ValueError) as error:
            raise UserError(f"--slurm: {str(error).splitlines()[0]}; correct the key or its value") from None
        self._jobs: list[Any] = []

    def start(self, cell: Cell, plan: Plan) -> Run:
        """Submit a cell."""
        job = self._executor.submit(run_cell, cell, plan, run_process)
        self._jobs.append(job)
        return _JobRun(job, cell, plan)

    def interrupt(self) -> None:
        """Cancel what is submitted; the scheduler ends jobs with a signal, and they go on from their checkpoints."""
        self.kill()

    def kill(self) -> None:
        """Cancel what is submitted."""
        for job in self._jobs:
            if not job.done():
                job.cancel()

    def close(self) -> None:
        """Nothing is held."""


class _JobRun:
    """A job as a run: one that the scheduler ended has failed, with the scheduler's own last words."""

    def __init__(self, job: Any, cell: Cell, plan: Plan) -> None:
        self._job, self._cell, self._plan = job, cell, plan

    def done(self) -> bool:
        return bool(self._job.done())

    def result(self) -> Record:
        problem = self._job.exception()
        if problem is None:
            return self._job.result()
        commands = recorded_commands(self._cell, self._plan)
        record = Record(commands=commands, status="failed", message=_last_line(str(problem)))
        write_record(self._cell, record)
        return record


def run_process(step: list[str], log: Path) -> int:
    """Run a command line in a process of its own, its output appended to `log`; return its exit code."""
    with open(log, "ab") as file:
        command = [sys.executable, "-m", "unified_lift", *step]
        return subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode


def make_launcher(
    name: str, *, out: Path, jobs: int, parameters: Mapping[str, str]
) -> LocalLauncher | SubmititLauncher:
    """Return the launcher `local` or `submitit`."""
    if name == "submitit":
        return SubmititLauncher(folder=out / "submitit", jobs=jobs, parameters=parameters)
    return LocalLauncher(jobs=jobs)


def _environments(jobs: int) -> list[dict[str, str]]:
    """Return each worker's environment: one GPU after the other, and the cores shared out."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    environments = []
    for index in range(jobs):
        own = dict(os.environ)
        if jobs > 1:
            own.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
        if len(devices) > 1:
            own["CUDA_VISIBLE_DEVICES"] = devices[index % len(devices)]
        environments.append(own)
    return environments


def _number(value: str) -> int | str:
    return int(value) if value.isdecimal() else value


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "the job left no message"
