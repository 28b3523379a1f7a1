"""Edits that are not saved, in a file beside the model from edit to edit: no signal can lose them."""

import glob
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import IO

from unified_lift.editing import script
from unified_lift.editing.operations import Operation
from unified_lift.errors import UserError
from unified_lift.fileio import is_held, write_held


class Journal:
    """The file `<model>_unsaved_edits.yaml` of one session, or with a number, held while the session is open."""

    def __init__(self, model: Path | None) -> None:
        """Keep edits beside a model, while they are not saved; None keeps none."""
        self.path: Path | None = None  # where edits are now
        self.problem = ""  # why they are not
        self._held: IO[str] | None = None
        self._names = [] if model is None else [beside(model, "_unsaved_edits.yaml")]
        patterns = [glob.escape(name.stem) + end for name in self._names for end in (".yaml", "_[0-9]*.yaml")]
        found = [path for pattern in patterns for path in self._names[0].parent.glob(pattern)]
        self._found = sorted((path for path in found if not is_held(path)), key=lambda path: -path.stat().st_mtime)

    @property
    def found(self) -> list[Path]:
        """Return what earlier viewers left, the newest first, without what another one has taken up since."""
        self._found = [path for path in self._found if path.exists() and not is_held(path)]
        return list(self._found)

    def keep(self, edits: Iterable[Operation], *, are_saved: bool) -> None:
        """Write the edits, or remove the file if they are saved; `problem` tells what went wrong."""
        self.problem = ""
        try:
            if are_saved and self.path is not None:
                self.path.unlink(missing_ok=True)
                self.path = None
                self.close()
            for first in [] if are_saved else self._names:
                names = (first.with_stem(first.stem + f"_{number}" * (number > 1)) for number in count(1))
                self.path = self.path or next(name for name in names if not name.exists())
                held = write_held(self.path, script.dump(edits))
                self.close()
                self._held = held
        except (OSError, UserError) as error:
            self.problem = str(error) if isinstance(error, UserError) else f"{self.path}: {error.strerror or error}"

    def take(self, path: Path) -> None:
        """Go on with a file that was found; a UserError: another viewer does."""
        self._give_up(path)
        self.path = path

    def drop(self, path: Path) -> None:
        """Delete a file that was found; a UserError: another viewer goes on with it."""
        self._give_up(path)
        path.unlink(missing_ok=True)

    def close(self) -> None:
        """Leave the file to the next viewer."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def _give_up(self, path: Path) -> None:
        """Offer the file no more."""
        self._found = [other for other in self._found if other != path]
        if is_held(path):
            raise UserError(f"{path}: another viewer has these edits open; use that one, or end it first")


def beside(model: Path, ending: str) -> Path:
    """Return the path beside a model that is called like it, with an ending; `.` and `..` have no name of their own."""
    return (model.resolve() if model.name in ("", "..") else model).with_name(model.resolve().name + ending)
