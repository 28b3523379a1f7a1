"""Processes that find each other as torchrun's do, forked from the test: torch is loaded already."""

import os
import signal
import socket
import sys
import traceback

import torch

from unified_lift import ranks


def environment(rank, count, port):
    """What torchrun tells a process of itself."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    return {name: str(number) for name, number in numbers.items()} | {"MASTER_ADDR": "localhost"}


def free_port():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def start(work, count, folder):
    """Fork `count` processes that call `work`; return their ids. What they print goes to `folder`/printed<rank>.txt."""
    port, children = free_port(), []
    for rank in range(count):
        if child := os.fork():
            children.append(child)
            continue
        code = 99
        try:
            handle = os.open(folder / f"printed{rank}.txt", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.environ.update(environment(rank, count, port))
            torch.set_num_threads(1)
            code = work() or 0
            ranks.leave()
        except BaseException:  # noqa: BLE001 - whatever it is, this process must not go on as the test
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return children


def finish(children):
    """Wait for processes; return their exit codes."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def said(folder, count=2):
    """Return what all of them printed, one after another."""
    return "".join((folder / f"printed{rank}.txt").read_text() for rank in range(count))
