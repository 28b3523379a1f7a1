"""A progress bar for work that reports (done, total)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


@contextmanager
def progress_bar(label: str, *, quiet: bool, then: str = "", **looks: Any) -> Iterator[Callable[[int, int], None]]:
    """Show a bar with options of tqdm, labelled `then` in the end; give what moves it, called with (done, total)."""
    with tqdm(desc=label, disable=quiet, dynamic_ncols=True, **looks) as bar:

        def move(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if then and done == total:
                bar.set_description(then)

        yield move
