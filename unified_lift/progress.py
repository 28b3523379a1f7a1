"""A progress bar for work that reports (done, total)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


@contextmanager
def progress_bar(label: str, *, quiet: bool, **looks: Any) -> Iterator[Callable[[int, int], None]]:
    """Show a bar, and give the function that moves it: called with (done, total). `looks` are options of tqdm."""
    with tqdm(desc=label, disable=quiet, dynamic_ncols=True, **looks) as bar:

        def move(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield move
