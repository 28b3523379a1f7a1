"""Jobs are run: several at a time, on this machine or through submitit, each with a log and a record."""

import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from unified_lift.bench.grid import Job, shell_line
from unified_lift.bench.records import Record, figures_of, read_record
from unified_lift.errors import UserError
from unified_lift.evaluation.report import duration_text
from unified_lift.fileio import write_json, write_text
from unified_lift.provenance import told_text

INTERRUPTED = 130  # exit code of a command that was asked to stop and can go on


def read_records(jobs: Sequence[Job], *, of_any: bool = False) -> dict[str, Record]:
    """Return key -> record; the jobs in the order in which they run. `of_any`: as in `read_record`."""
    records: dict[str, Record] = {}
    for job in jobs:
        record = read_record(job, of_any=of_any)
        failed = [other.key for other in job.depends_on if records[other.key].status in ("failed", "blocked")]
        if failed and record.status != "done":
            record = Record(status="blocked", message=f"{failed[0]} failed: {records[failed[0]].message}")
        records[job.key] = record
    return records


def start_process(command: list[str], log: Path, **options: Any) -> subprocess.Popen:
    """Start a command as a process, its output appended to `log`; `options`: of Popen."""
    with open(log, "ab") as file:
        return subprocess.Popen([sys.executable, "-m", "unified_lift", *command], stdout=file, stderr=file, **options)


def run_job(job: Job, execute: Callable[[list[str], Path], int] | None = None) -> Record:
    """Run what is still to do of a job and return its record, which says `running` until the end.

    A job that was interrupted goes on, from its last checkpoint if it has one; any other begins anew.
    """
    job.log.parent.mkdir(parents=True, exist_ok=True)
    record, began = read_record(job), time.perf_counter()
    resumes = record.status == "interrupted" and not record.finished_steps and any(job.model.glob("chkpnt*.pth"))
    if record.status != "interrupted" or not (record.finished_steps or resumes):
        record = Record()
        job.log.write_text("")
    record = replace(record, commands=job.recorded, status="running", exit_code=None, message="")
    spent = record.seconds
    for command in job.commands[record.finished_steps :]:
        _write(job, record)
        words = ["--resume" if resumes and word == "--overwrite" else word for word in command]
        with open(job.log, "a") as log:
            log.write(f"$ {shell_line(words)}\n")
        code = execute(words, job.log) if execute else start_process(words, job.log).wait()
        record = replace(record, exit_code=code, seconds=round(spent + time.perf_counter() - began, 2))
        if code:
            status = "interrupted" if code == INTERRUPTED else "failed"
            return _write(job, record, status=status, message=_reason(job, code))
        record = replace(record, finished_steps=record.finished_steps + 1)
    if missing := [path.name for path in job.artefacts if not path.exists()]:
        return _write(job, record, status="failed", message=f"it left no {', '.join(missing)}")
    try:
        figures = figures_of(job)
    except UserError as error:
        return _write(job, record, status="failed", message=str(error))
    for path in [path for pattern in job.discard for path in job.model.glob(pattern)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return _write(job, record, status="done", figures=figures)


def _write(job: Job, record: Record, **changes: Any) -> Record:
    record = replace(record, **changes)
    if record.status != "running" and job.provenance == "relative":
        record = replace(record, message=told_text(record.message, job.out))
        if job.log.exists():
            write_text(job.log, told_text(job.log.read_text(errors="replace"), job.out))
    write_json(job.record, vars(record))
    return record


class LocalPool:
    """Runs `jobs` at a time in processes of `threads` (None = the cores shared out), spread over the GPUs here."""

    poll_s = 0.1

    def __init__(self, jobs: int, *, threads: int | None = None) -> None:
        self.capacity, self.executor = jobs, ThreadPoolExecutor(jobs)
        self._environments = deque(environments(jobs, threads=threads))
        self._children: list[subprocess.Popen] = []
        self._lock, self._stopping = threading.Lock(), False

    def submit(self, job: Job) -> Any:
        """Start a job and return its future."""
        return self.executor.submit(run_job, job, self.execute)

    def execute(self, command: list[str], log: Path) -> int:
        """Run a command on the next free GPU; what a signal of ours ended was interrupted."""
        environment = self._environments.popleft()
        try:
            with self._lock:
                if self._stopping:
                    return INTERRUPTED
                # In a session of its own: Ctrl-C in the terminal reaches us alone, and we pass it on once.
                child = start_process(command, log, env=environment, start_new_session=True)
                self._children.append(child)
            code = child.wait()
        finally:
            self._environments.append(environment)
        return INTERRUPTED if self._stopping and code else code

    def stop(self, number: int) -> None:
        """Send a signal to everything that runs, and start nothing more."""
        with self._lock:
            self._stopping = True
            for child in self._children:
                if child.poll() is None:
                    os.killpg(child.pid, number)


class SubmititPool(LocalPool):
    """Submits every job to a cluster; `folder` takes submitit's own files, and all nodes must see it.

    A UserError: submitit is not installed, or does not know a parameter.
    """

    poll_s = 2.0

    def __init__(self, jobs: int, *, folder: Path, parameters: Mapping[str, str]) -> None:
        super().__init__(jobs)
        try:
            import submitit

            self._cluster = submitit.AutoExecutor(folder=str(folder))
            values = {name: int(value) if value.isdecimal() else value for name, value in parameters.items()}
            self._cluster.update_parameters(**values)
        except ImportError:
            raise UserError("--launcher submitit: the package is not installed; pip install submitit") from None
        except (NameError, TypeError, ValueError) as error:
            raise UserError(f"--slurm: {str(error).splitlines()[0]}; correct the key or its value") from None

    def submit(self, job: Job) -> Any:
        """Submit a job and return its future."""
        return self._cluster.submit(run_job, job)


def run_grid(jobs: Sequence[Job], pool: LocalPool, report: Callable[[str], None]) -> None:
    """Run every job that is not done, each after those it depends on; a failure ends only what depends on it.

    `report` takes a line whenever a job starts or ends. A KeyboardInterrupt goes on once all that ran has saved itself.
    """
    found = read_records(jobs)
    records = {key: record for key, record in found.items() if record.status == "done"}
    running: dict[str, tuple[Job, Any]] = {}
    for key, record in found.items():
        if record.status == "new" and record.message:
            report(f"note: {key} is done again: {record.message}")
    if records:
        report(f"{len(records)} of {len(jobs)} jobs are done")
    try:
        while len(records) < len(jobs):
            ended = [(job, _result(job, future)) for job, future in running.values() if future.done()]
            for job in [job for job in jobs if job.key not in records and job.key not in running]:
                states = {records[other.key].status if other.key in records else "new" for other in job.depends_on}
                if states & {"failed", "blocked", "interrupted"}:
                    ended.append((job, Record(status="blocked", message="what it depends on failed")))
                elif len(running) < pool.capacity and states <= {"done"}:
                    running[job.key] = (job, pool.submit(job))
                    report(f"start  {job.key}")
            for job, record in ended:
                records[job.key] = record
                running.pop(job.key, None)
                report(_line(job, jobs, records, pool.capacity))
            if running and not ended:
                time.sleep(pool.poll_s)
    except KeyboardInterrupt:
        report(f"stopping: {len(running)} running jobs save what they have (Ctrl-C again: at once)")
        for _, future in running.values():
            future.cancel()  # ends what is on a cluster with a signal, and nothing that runs here
        try:
            pool.stop(signal.SIGINT)
            pool.executor.shutdown(cancel_futures=True)
        except KeyboardInterrupt:
            pool.stop(signal.SIGKILL)
        raise
    finally:
        pool.executor.shutdown(cancel_futures=True)


def environments(jobs: int, *, threads: int | None = None) -> list[dict[str, str]]:
    """Return the environment of each process: one GPU after the other, and the cores shared out."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    devices = visible.split(",")
    shared = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} if jobs > 1 else {}
    shared |= os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    return [shared | {"CUDA_VISIBLE_DEVICES": devices[n % len(devices)]} for n in range(jobs)]


def _result(job: Job, future: Any) -> Record:
    """Return how a job ended; one that the scheduler or a defect ended has failed, with its last words."""
    if (problem := future.exception()) is None:
        return future.result()
    last = (str(problem).strip() or "the job left no message").splitlines()[-1]
    return _write(job, Record(commands=job.recorded), status="failed", message=last)


def _reason(job: Job, code: int) -> str:
    """Return the last line of the log, or what ended the process where it could say nothing."""
    if code < 0:
        return f"ended by signal {-code}"
    lines = [line.strip(" │") for line in job.log.read_text(errors="replace").splitlines()]
    said = [line for line in lines if re.search(r"\w", line)]  # flags that don't exist are told in a frame
    return f"exit code {code} without a word" if not said or said[-1].startswith("$ ") else said[-1]


def _line(job: Job, jobs: Sequence[Job], records: Mapping[str, Record], capacity: int) -> str:
    """Return how a job ended, how many have, and the time left, guessed from jobs of the same row."""
    record, states = records[job.key], [record.status for record in records.values()]
    how = f"in {duration_text(record.seconds)}" if record.status == "done" else f"({record.message}; {job.log})"
    text = f"{record.status:<6} {job.key} {how}; {states.count('done')} of {len(jobs)} done"
    text += "".join(f", {states.count(s)} {s}" for s in ("failed", "blocked", "interrupted") if s in states)
    left, spent = [other.row for other in jobs if other.key not in records], defaultdict[str, list[float]](list)
    for other in [other for other in jobs if other.key in records and records[other.key].status == "done"]:
        spent[other.row].append(records[other.key].seconds)
    if not spent or not left:
        return text
    seconds = sum(statistics.mean(spent.get(row) or sum(spent.values(), [])) for row in left)
    return f"{text}; about {duration_text(seconds / min(capacity, len(left)))} left"
