"""Edits that are not saved, in a file beside the model from edit to edit: no signal can lose them."""

import glob
from collections.abc import Iterable
from itertools import count
from pathlib import Path

from unified_lift.editing import script
from unified_lift.editing.operations import Operation
from unified_lift.fileio import write_text


class Journal:
    """The file `<model>_unsaved_edits.yaml` of one session, or with a number; `found` are those of earlier viewers."""

    def __init__(self, model: Path | None) -> None:
        """Keep edits beside a model, while they are not saved; None keeps none."""
        self.path: Path | None = None  # where edits are now
        self.problem = ""  # why they are not
        self._names = [] if model is None else [beside(model, "_unsaved_edits.yaml")]
        patterns = [glob.escape(name.stem) + end for name in self._names for end in (".yaml", "_[0-9]*.yaml")]
        found = [path for pattern in patterns for path in self._names[0].parent.glob(pattern)]
        self.found = sorted(found, key=lambda path: -path.stat().st_mtime)

    def keep(self, edits: Iterable[Operation], *, are_saved: bool) -> None:
        """Write the edits, or remove the file if they are saved; `problem` tells what went wrong."""
        self.problem = ""
        try:
            if are_saved and self.path is not None:
                self.path.unlink(missing_ok=True)
                self.path = None
            for first in [] if are_saved else self._names:
                names = (first.with_stem(first.stem + f"_{number}" * (number > 1)) for number in count(1))
                self.path = self.path or next(name for name in names if not name.exists())
                write_text(self.path, script.dump(edits))
        except OSError as error:
            self.problem = f"{self.path}: {error.strerror or error}"

    def drop(self, path: Path, *, take_over: bool = False) -> None:
        """Delete a file that was found, or go on with it."""
        self.found = [other for other in self.found if other != path]
        self.path = path if take_over else self.path
        if not take_over:
            path.unlink(missing_ok=True)


def beside(model: Path, ending: str) -> Path:
    """Return the path beside a model that is called like it, with an ending; `.` and `..` have no name of their own."""
    return (model.resolve() if model.name in ("", "..") else model).with_name(model.resolve().name + ending)
