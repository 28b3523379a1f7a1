"""Trainings that are ended at random moments and go on: `python -m tests.kills FOLDER --count 100 --seed 0`.

Each is started with `--resume auto`, ended by SIGKILL, SIGTERM or SIGINT once to three times, then left to finish. Its
model folder must then hold what that of an undisturbed run holds, bit for bit and nothing else; only times, the command
line, what was free, and which rolling checkpoint of the last stage is left may differ. No run prints a traceback.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.cli.test_train import SHORT
from tests.data.fixtures import write_dataset
from tests.folders import contents
from unified_lift import fileio
from unified_lift.cli.main import COMMANDS, main
from unified_lift.modelfolder.checkpoint import checkpoints

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
STEPS = {"--iterations": 60, "--lift-iterations": 40, "--sharpen-steps": 20, "--checkpoint-interval": 15}
SMALL = ["--max-gaussians", "2000"]
ENDS = {signal.SIGKILL: {-9}, signal.SIGTERM: {130, -15}, signal.SIGINT: {130, -2}}  # -N: before anybody listened


class Kill(NamedTuple):
    number: int  # of the training
    signal: signal.Signals
    after_s: float
    checkpoint: int  # the last one that was there then, 0 = none
    status: int  # exit code; 0: it was through


class Kills:
    """A scene, and the model of an undisturbed run of it."""

    def __init__(self, work: Path, *, seed: int = 0, flags: tuple[str, ...] = ()) -> None:
        shutil.rmtree(work, ignore_errors=True)
        write_dataset("transforms", work / "scene")
        self.work, self.rng = work, random.Random(seed)
        steps = [str(word) for pair in STEPS.items() for word in pair]
        self.argv = ["train", "-s", str(work / "scene"), *SHORT, *SMALL, *steps, "--resume", "auto", *flags]
        self._finish(work / "whole")  # what is loaded and compiled the first time is so from now on
        shutil.rmtree(work / "whole")
        began = time.monotonic()
        self._finish(work / "whole")
        self.seconds = time.monotonic() - began
        self.whole = contents(work / "whole")

    def start(self, model: Path, *words: str, printed: Path | None = None, argv: Sequence[str] | None = None) -> int:
        """Begin or go on with the training, or another command, in a process of its own; return its id."""
        if child := os.fork():
            return child
        code = 99
        try:
            handle = os.open(printed or self.work / "printed.txt", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
            for number in SIGNALS[1:]:
                signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
            fileio._tidied.clear()
            code = main(list(argv or [*self.argv, *words, "-m", str(model)]))
        except BaseException:  # noqa: BLE001 - whatever it is, this process must not go on as the test
            traceback.print_exc()
        finally:
            os._exit(code)

    def _finish(self, model: Path) -> str:
        status = os.waitstatus_to_exitcode(os.waitpid(self.start(model), 0)[1])
        return "" if status == 0 else f"exit code {status}: {self.said()}"

    def said(self) -> str:
        return (self.work / "printed.txt").read_text()

    def trainings(self, count: int) -> Iterator[tuple[list[Kill], str]]:
        """Yield the kills of each training, `count` in all, and what is wrong with how it ended, "" = nothing."""
        number = 0
        while count > 0:
            number, model = number + 1, self.work / "model"
            shutil.rmtree(model, ignore_errors=True)
            kills, wrong = list[Kill](), ""
            for _ in range(min(self.rng.choice((1, 1, 2, 3)), count)):
                after, which = self.rng.uniform(0, 1.1 * self.seconds), self.rng.choice(SIGNALS)
                child = self.start(model)
                time.sleep(after)
                os.kill(child, which)
                status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                kills.append(Kill(number, which, after, max(checkpoints(model), default=0), status))
                if status and status not in ENDS[which]:
                    wrong = f"exit code {status} after {which.name}"
                if "Traceback" in self.said() and status != -2:
                    wrong = self.said()
            count -= len(kills)
            yield kills, wrong or self._finish(model) or self.differences(model)

    def differences(self, model: Path) -> str:
        """Return how a model folder differs from that of the undisturbed run, "" if it does not."""
        names = differing(contents(model), self.whole)
        return f"differs: {names}" if names else ""


def differing(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Return the names of files that only one of two model folders has, or that differ."""
    return sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="scratch; what is in it goes")
    parser.add_argument("--count", type=int, default=100, help="kills, %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    args, further = parser.parse_known_args()
    torch.set_num_threads(1)
    for module, *_ in COMMANDS.values():  # once, not in every fork
        __import__(module)
    trial = Kills(args.folder, seed=args.seed, flags=tuple(further))
    print(f"an undisturbed run: {trial.seconds:.1f} s", flush=True)  # noqa: T201
    counts, trainings, bad = Counter[str](), 0, 0
    for kills, wrong in trial.trainings(args.count):
        trainings += 1
        for kill in kills:
            when = "through" if kill.status == 0 else "no checkpoint" if not kill.checkpoint else "later"
            counts[f"{kill.signal.name}, {when}"] += 1
        if wrong:
            bad += 1
            told = ", ".join(f"{kill.signal.name} after {kill.after_s:.2f} s ({kill.checkpoint})" for kill in kills)
            print(f"  training {trainings}: {told}: {wrong.strip()[-600:]}", flush=True)  # noqa: T201
    print("".join(f"{count:5} {what}\n" for what, count in sorted(counts.items())), end="")  # noqa: T201
    print(f"{counts.total()} kills of {trainings} trainings, {bad} wrong")  # noqa: T201
    sys.exit(bad > 0)
