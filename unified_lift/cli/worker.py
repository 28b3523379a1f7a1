"""Runs many command lines in one process, so that importing torch is paid once: what `bench` starts.

Each line of standard input is JSON: {"argv": ["train", "-s", ...], "log": "file"}. Everything the command prints, also
from compiled code, is appended to the file; the answer on standard output is {"code": exit code}. It ends when the
input does.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from pathlib import Path

from unified_lift.cli.main import main

_CRASHED = 70  # sysexits.h: internal error


def worker_main() -> int:
    """Answer command lines until there are no more. Return the exit code."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    try:
        for line in sys.stdin:
            task = json.loads(line)
            code = run_logged(task["argv"], Path(task["log"]))
            answers.write(json.dumps({"code": code}) + "\n")
    except KeyboardInterrupt:  # between two commands there is nothing to save
        return 130
    return 0


def run_logged(argv: list[str], log: Path) -> int:
    """Run one command line with its output appended to `log`; return its exit code, whatever happens to it."""
    kept = [(number, os.dup(number)) for number in (1, 2)]
    _flush()
    with open(log, "ab") as file:
        for number, _ in kept:
            os.dup2(file.fileno(), number)
    own, sys.argv = sys.argv, ["unified-lift", *argv]  # the manifest tells how the run was called
    try:
        return main(argv)
    except SystemExit as ended:  # flags that do not exist
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except KeyboardInterrupt:
        return 130
    except BaseException:  # noqa: BLE001 (a defect of one cell must not end the others; the log has it in full)
        traceback.print_exc()
        return _CRASHED
    finally:
        sys.argv = own
        _flush()
        for number, copy in kept:
            os.dup2(copy, number)
            os.close(copy)
        _free_memory()


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def _free_memory() -> None:
    """Leave the next command the memory of this one."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(worker_main())
