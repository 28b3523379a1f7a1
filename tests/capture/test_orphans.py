"""No process of ours outlives its parent by more than a second, whatever ends that."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

WORKERS = """
import time
from unified_lift.capture.mask_runs import _in_processes
if __name__ == "__main__":
    print(flush=True)
    list(_in_processes(time.sleep, [60, 60], 2))
"""
COUNTER = """
import time
from pathlib import Path
from unified_lift.capture.sfm import watched
print(flush=True)
with watched(Path("none.db"), "keypoints", 5, lambda done, total: None):  # a table that never comes
    time.sleep(60)
"""


def children(process):
    found = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/stat") if parent_of(path) == process]
    return found + [below for child in found for below in children(child)]


def parent_of(stat):
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except OSError:
        return -1


def ticks(process):
    """Processor time of the processes below this one."""
    found = 0
    for child in children(process):
        with contextlib.suppress(OSError):
            found += sum(map(int, Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return found


def runs(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")
@pytest.mark.parametrize(("code", "count"), [(WORKERS, 2), (COUNTER, 1)], ids=["masks", "sfm"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_children_end_with_their_parent(code, count, number, tmp_path):
    script = tmp_path / "work.py"
    script.write_text(code)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=environment, cwd=tmp_path)
    assert parent.stdout.readline()
    deadline = time.monotonic() + 60
    while len(children(parent.pid)) < count and time.monotonic() < deadline:
        time.sleep(0.1)
    before = -1
    while ticks(parent.pid) != before and time.monotonic() < deadline:  # workers import what they need
        before = ticks(parent.pid)
        time.sleep(2)
    ours = children(parent.pid)
    assert len(ours) >= count
    parent.send_signal(number)
    parent.wait(timeout=10)
    deadline = time.monotonic() + 3
    while any(map(runs, ours)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(runs, ours))
