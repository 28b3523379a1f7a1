"""Two commands that write into one folder at once: `python -m tests.pairs FOLDER --count 20 --seed 0`.

One runs, and its model is that of a run that is alone; the other is refused in one line, exit code 2.
"""

import argparse
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from tests.folders import contents
from tests.kills import Kills, differing
from unified_lift.cli.main import COMMANDS
from unified_lift.fileio import LOCK

AUTO, ANEW = ("--resume", "auto"), ("--overwrite",)
KINDS = {  # what is there before, and the flags of the two commands; "edit": of another one
    "two new trainings": (False, (), ()),
    "two that start or go on": (False, AUTO, AUTO),
    "two that replace a run": (True, ANEW, ANEW),
    "one that replaces a run and one that goes on": (True, ANEW, ("--resume",)),
    "a training and an edit in place": (True, ANEW, "edit"),
    "two new trainings and the lock of a dead process": (False, (), ()),
}


class Pairs(Kills):
    """A scene, and the models of undisturbed runs of it with two seeds."""

    def __init__(self, work: Path, *, seed: int = 0) -> None:
        super().__init__(work, seed=seed)
        self.argv = self.argv[: -len(AUTO)]
        self.alone = {"0": self.whole}
        self.wait(self.start(work / "other", "--seed", "1"))
        self.alone["1"] = contents(work / "other")

    def is_held_by(self, process: int, model: Path) -> bool:
        with suppress(OSError):
            return f"process {process})" in (model / LOCK).read_text()
        return False

    def wait(self, child: int) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def pairs(self, count: int) -> Iterator[tuple[str, str]]:
        """Yield the kind of each pair, and what is wrong with how it ended, "" = nothing."""
        for number in range(count):
            kind, model = list(KINDS)[number % len(KINDS)], self.work / "model"
            is_there, *flags = KINDS[kind]
            shutil.rmtree(model, ignore_errors=True)
            if is_there:
                shutil.copytree(self.work / "whole", model)
            if "dead" in kind:
                model.mkdir()
                (model / LOCK).write_text("training (process 4194303)")
            seeds = ["0", "0" if "--resume" in flags[1] and is_there else "1"]  # a run goes on with its own
            printed = [self.work / f"printed_{number}.txt" for number in (0, 1)]
            first = self.start(model, "--seed", "0", *flags[0], printed=printed[0])
            time.sleep(self.rng.choice((0.0, 0.0, 0.2, 0.4)) * self.seconds)
            deadline = time.monotonic() + 60
            while flags[1] == "edit" and not self.is_held_by(first, model) and time.monotonic() < deadline:
                time.sleep(0.001)  # an edit takes no time to start
            if is_held := self.is_held_by(first, model):
                os.kill(first, signal.SIGSTOP)  # on a busy machine it could be through before the other begins
            if flags[1] == "edit":
                argv = ["edit", "-m", str(self.work / "whole"), "--remove", "1", "--out", str(model), "--overwrite"]
                second = self.start(model, printed=printed[1], argv=argv)
            else:
                second = self.start(model, "--seed", seeds[1], *flags[1], printed=printed[1])
            codes = [self.wait(second)] if is_held else []
            os.kill(first, signal.SIGCONT)
            codes = [self.wait(first), *(codes or [self.wait(second)])]
            said = [path.read_text() for path in printed]
            yield kind, self._wrong(codes, said, contents(model), [self.alone[seed] for seed in seeds])

    def _wrong(self, codes: list[int], said: list[str], found: dict[str, Any], alone: list[dict[str, Any]]) -> str:
        if sorted(codes) != [0, 2]:
            return f"exit codes {codes}: {said}"
        winner, refused = codes.index(0), said[codes.index(2)]
        if len(refused.strip().splitlines()) != 1 or "is at work there" not in refused:
            return f"refused with {refused!r}"
        names = differing(found, alone[winner])
        return f"{said[winner]} differs: {names}" if names else ""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="scratch; what is in it goes")
    parser.add_argument("--count", type=int, default=20, help="pairs, %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for module, *_ in COMMANDS.values():  # once, not in every fork
        __import__(module)
    counts, bad = Counter[str](), 0
    for kind, wrong in Pairs(args.folder, seed=args.seed).pairs(args.count):
        counts[kind] += 1
        if wrong:
            bad += 1
            print(f"  {kind}: {wrong.strip()[-600:]}", flush=True)  # noqa: T201
    print("".join(f"{count:5} {kind}\n" for kind, count in counts.items()), end="")  # noqa: T201
    print(f"{counts.total()} pairs, {bad} wrong")  # noqa: T201
    sys.exit(bad > 0)
