"""Progress: a bar on a terminal; elsewhere, as in a file or a pipe, whole lines, one in ten seconds."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from tqdm import tqdm

_EVERY_S = 10.0
_LINE = "{desc}: {percentage:.0f} % ({n_fmt} of {total_fmt}), {elapsed} gone, {remaining} left, {rate_fmt}{postfix}"


class _Lines:
    """A stream that takes whole lines: nothing blank, nothing that returns to the start of a line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        if line := re.sub(r"\r|\x1b\[A", "", text).strip():
            self._stream.write(line + "\n")

    def flush(self) -> None:
        self._stream.flush()


class Bar(tqdm):
    """tqdm, as wide as the terminal on one; elsewhere lines: every ten seconds, and in the end if it stays."""

    def __init__(self, *args: Any, **looks: Any) -> None:
        self.in_lines = not sys.stderr.isatty() or os.environ.get("TERM") == "dumb"
        looks |= {"dynamic_ncols": True}
        if self.in_lines:
            often = {"mininterval": _EVERY_S, "maxinterval": _EVERY_S, "delay": _EVERY_S, "miniters": 1}
            looks |= {"file": _Lines(sys.stderr), "bar_format": _LINE, "dynamic_ncols": False, **often}
        super().__init__(*args, **looks)
        if self.in_lines:
            self.delay = 0.0  # it was only for the line of the first moment


@contextmanager
def progress_bar(label: str, *, quiet: bool, then: str = "", **looks: Any) -> Iterator[Callable[[int, int], None]]:
    """Show a bar with options of tqdm, labelled `then` in the end; give what moves it, called with (done, total)."""
    with Bar(desc=label, disable=quiet, **looks) as bar:

        def move(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if then and done == total:
                bar.set_description_str(then, refresh=not bar.in_lines)

        yield move


def silence_transformers(library: Any) -> None:
    """Keep `transformers` from printing bars and warnings, which no pipe can take; what matters is raised as errors."""
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
