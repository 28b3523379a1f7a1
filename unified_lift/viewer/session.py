"""What the viewer knows and can do, without the viewer: selection, hidden objects, edits with undo and redo, saving."""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import transform

from unified_lift.editing import script
from unified_lift.editing.formats import BACKGROUND_ID
from unified_lift.editing.operations import (
    Duplicate,
    Move,
    Operation,
    Rename,
    Rotation,
    Vector,
    next_ids,
)
from unified_lift.errors import UserError
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.modelfolder.labels import segment_by_labels
from unified_lift.types import Camera
from unified_lift.viewer.journal import Journal
from unified_lift.viewer.thinning import thinned

_DIGITS = 6  # of numbers in the script: more than a hand can place, few enough to read
_MAX_SIDE = 256  # pixels of the picture in which objects are looked for
_EXTENT = (0.05, 0.95)  # quantiles between which an object counts as wide: outliers are left out


class Session:
    """An open scene. Safe to use from several threads; all windows share it.

    Hiding changes only what is shown. Everything else is an edit: an operation of the script, applied to the scene as
    it was opened, so that undoing is leaving out the last one and a saved script replays exactly. `scene` is `original`
    after all `operations`, oldest first, hidden objects included: what is saved. `journal` keeps what is not.
    """

    def __init__(self, original: TrainedScene, edits: Sequence[Operation] = (), journal: Journal | None = None) -> None:
        self._lock = threading.RLock()
        self.journal = journal or Journal(None)
        self.original, self.scene = original, script.apply(original, edits)
        self.operations = self._saved = self._history = tuple(edits)  # the history goes on with what was undone
        self.selection: tuple[int, ...] = ()  # in the order in which they were chosen
        self.hidden: frozenset[int] = frozenset()
        self._preview: Operation | None = None
        self._made: dict[str, tuple[object, TrainedScene]] = {}  # of what is on the screen: what from, and the scene
        self._chosen: tuple[object, int, torch.Tensor, torch.Tensor] | None = None  # by labels, number: few for all

    # ---- what is shown ----

    @property
    def is_dirty(self) -> bool:
        """Return whether there are edits that are not saved."""
        return self.operations != self._saved

    @property
    def selected(self) -> int | None:
        """Return the object that was selected last; None where none is."""
        return self.selection[-1] if self.selection else None

    @property
    def shown(self) -> TrainedScene:
        """Return what is on the screen: edits and the one being tried, without hidden objects."""
        with self._lock:
            if (preview := self._preview) is None:
                self._made.pop("tried", None)  # as large as the scene
                return self._visible()
            made_from = (self.scene, self.hidden, preview)
            return self._kept("tried", made_from, lambda: self._without_hidden(_tried(self.scene, preview)))

    def shown_by(self, most: int) -> TrainedScene:
        """Return what is on the screen with at most so many Gaussians, which stand for all; 0 = all.

        An edit that is being tried is done to these alone. As long as labels stay, as in a move, the same are taken.
        """
        with self._lock:
            whole, preview = self._visible(), self._preview
            if not 0 < most < len(whole):
                return self.shown
            few = self._kept("few", (whole, most), lambda: self._standing_for(whole, most))
            return few if preview is None else self._kept("few tried", (few, preview), lambda: _tried(few, preview))

    def _kept(self, name: str, made_from: object, make: Callable[[], TrainedScene]) -> TrainedScene:
        """Return a scene that is made only if it was made from something else."""
        if name not in self._made or self._made[name][0] != made_from:
            self._made[name] = (made_from, make())
        return self._made[name][1]

    def _visible(self) -> TrainedScene:
        return self._kept("visible", (self.scene, self.hidden), lambda: self._without_hidden(self.scene))

    def _without_hidden(self, scene: TrainedScene) -> TrainedScene:
        return scene.subset(~scene.mask(sorted(self.hidden))) if self.hidden else scene

    def _standing_for(self, scene: TrainedScene, most: int) -> TrainedScene:
        if self._chosen is None or self._chosen[0] is not scene.labels or self._chosen[1] != most:
            self._chosen = (scene.labels, most, *thinned(scene.gaussians, most))
        *_, rows, growth = self._chosen
        few = scene.subset(rows)
        few.gaussians.set("log_scales", few.gaussians.log_scales.detach() + growth.log()[:, None])
        return few

    def label(self, object_id: int) -> str:
        """Return the name of an object, with its id where the name does not tell it; no two labels are equal."""
        name = self.scene.name_of(object_id)
        if object_id == BACKGROUND_ID and object_id not in self.scene.names and len(self.scene.objects) > 1:
            return f"{name} (background)"
        return name if name == f"object {object_id}" else f"{name} ({object_id})"

    def found(self, search: str) -> list[int]:
        """Return the objects whose labels have all words of a text, in any case, rising ids."""
        words = search.casefold().split()
        return [one for one in self.scene.objects if all(word in self.label(one).casefold() for word in words)]

    def in_view(self, camera: Camera) -> list[int]:
        """Return the objects that a camera sees of what is shown, those of the largest area first."""
        side = min(1.0, _MAX_SIDE / max(camera.width, camera.height))
        small = camera.resized(max(1, round(side * camera.width)), max(1, round(side * camera.height)))
        shown = self.shown
        with torch.no_grad():
            seen = segment_by_labels(shown.gaussians, shown.object_ids, small)
        ids, areas = seen.object_ids[seen.confidence > 0].unique(return_counts=True)
        return ids[areas.argsort(descending=True, stable=True)].tolist()

    def select(self, *object_ids: int | None, add: bool = False) -> None:
        """Select objects, or none; `add`: beside those that are selected, or no more where one is."""
        with self._holding(*object_ids):
            kept = [one for one in self.selection if add and one not in object_ids]
            fresh = [one for one in object_ids if one is not None and not (add and one in self.selection)]
            self.selection, self._preview = tuple(dict.fromkeys((*kept, *fresh))), None

    def select_all(self) -> None:
        """Select every object that is shown; the last selected one stays the last."""
        last = [] if self.selected is None or self.selected in self.hidden else [self.selected]
        self.select(*(one for one in self.scene.objects if one not in self.hidden and one not in last), *last)

    def hide(self, *object_ids: int) -> None:
        """Hide objects, or show them again if all are hidden."""
        with self._holding(*object_ids):
            given = frozenset(object_ids)
            self.hidden = self.hidden - given if self.hidden >= given else self.hidden | given

    def isolate(self, *object_ids: int | None) -> None:
        """Show these objects only; None, or none: all."""
        with self._holding(*object_ids):
            kept = set(object_ids) - {None}
            self.hidden = frozenset(self.scene.objects if kept else ()) - kept

    # ---- edits ----

    def preview(self, operation: Operation | None) -> None:
        """Show what an edit would do, without doing it; None ends it. Never waits for a lock."""
        self._preview = operation

    def apply(self, operation: Operation, *, seen: TrainedScene | None = None) -> None:
        """Do an edit; a UserError where it cannot be done, or is of a scene that is no more: nothing changes."""
        with self._lock:
            if seen not in (None, self.scene):
                raise UserError("another window has changed the scene meanwhile; do it again")
            self._preview = None
            self._become(operation.apply(self.scene), (*self.operations, operation))
            self._history = self.operations

    def split(self, object_ids: Sequence[int], operation: Operation) -> None:
        """Do an edit that makes objects of parts of others; select them and their parts."""
        with self._lock:
            before = set(self.scene.objects)
            self.apply(operation)
            self.select(*object_ids, *(one for one in self.scene.objects if one not in before))

    def rename(self, object_id: int, name: str) -> None:
        """Give an object a name; nothing happens if it has that name."""
        if name.strip() != self.scene.name_of(object_id):
            self.apply(Rename(names=((object_id, name.strip()),)))

    def move(self, *object_ids: int, wxyz: Sequence[float], translation: Sequence[float]) -> Move:
        """Return the edit that turns objects about their centroid and shifts them, ready for `preview` or `apply`."""
        turn = transform.Rotation.from_quat(np.roll(wxyz, -1)).as_rotvec(degrees=True)
        degrees = round(float(np.linalg.norm(turn)), _DIGITS - 3)
        rotate = Rotation(rounded(turn / np.linalg.norm(turn)), degrees) if degrees else Rotation()
        return Move(objects=object_ids, rotate=rotate, translate=self._in_units(translation))

    def duplicate(self, *object_ids: int, along: Sequence[float]) -> int:
        """Put copies of objects beside them in the direction `along`, of any length; select them, return the first."""
        with self._holding(*object_ids):
            direction = torch.as_tensor(along, dtype=torch.float64)
            direction = direction / direction.norm()
            means = self.scene.gaussians.means.detach()[self.scene.mask(object_ids)].double().cpu() @ direction
            low, high = np.quantile(means.numpy(), _EXTENT).tolist()  # torch's takes 16 million numbers at most
            fresh = next_ids(self.scene, len(object_ids))
            step = self._in_units((1.1 * (high - low) * direction).tolist())
            self.apply(Duplicate(objects=object_ids, translate=step))
            self.select(*fresh)
            return fresh[0]

    def undo(self) -> None:
        """Take the last edit back; nothing happens where there is none."""
        self._replay(-1)

    def redo(self) -> None:
        """Do the last edit again that was taken back."""
        self._replay(1)

    def go_on(self, path: Path) -> None:
        """Do the edits that an earlier viewer left in a file; a UserError if it is wrong, or others are not saved."""
        edits = tuple(script.read_script(path, flag="unsaved edits"))
        with self._lock:
            if self.is_dirty:
                raise UserError("there are edits that are not saved; save or undo them first")
            scene = script.apply(self.original, edits)
            self.journal.take(path)
            self._preview, self._history, self._saved = None, edits, ()
            self._become(scene, edits)

    def save(self, folder: Path, *, overwrite: bool = False) -> None:
        """Write the edited scene and its edits as a model folder; then nothing is unsaved. A UserError if it fails."""
        with self._lock:
            scene, operations = self.scene, self.operations
        script.save_model(scene, folder, edits=operations, overwrite=overwrite)  # the picture goes on meanwhile
        with self._lock:
            self._saved = operations
            self.journal.keep(self.operations, are_saved=not self.is_dirty)

    @contextlib.contextmanager
    def _holding(self, *object_ids: int | None) -> Iterator[None]:
        """Hold the lock while something happens to objects, which must exist."""
        with self._lock:
            for object_id in object_ids:
                if object_id is not None and object_id not in self.scene.objects:
                    raise UserError(f"object {object_id} is not there any more; select another")
            yield

    def _replay(self, step: int) -> None:
        """Go so many edits on in the history, where it has them."""
        with self._lock:
            count = len(self.operations) + step
            if 0 <= count <= len(self._history):
                self._preview = None
                self._become(script.apply(self.original, self._history[:count]), self._history[:count])

    def _become(self, scene: TrainedScene, operations: tuple[Operation, ...]) -> None:
        """Take an edited scene; objects that are gone are neither hidden nor selected."""
        self.scene, self.operations = scene, operations
        self.journal.keep(self.operations, are_saved=not self.is_dirty)
        self.hidden &= set(scene.objects)
        self.selection = tuple(one for one in self.selection if one in scene.objects)

    def _in_units(self, translation: Sequence[float]) -> Vector:
        """Return a shift of the picture in the user's units, rounded."""
        return rounded([float(value) / self.scene.frame.scale for value in translation])


def _tried(scene: TrainedScene, preview: Operation) -> TrainedScene:
    with contextlib.suppress(UserError):  # another window may have removed the object since
        return preview.apply(scene)
    return scene


def rounded(vector: Sequence[float]) -> Vector:
    """Return the vector with so many digits of its largest entry."""
    largest = max(abs(float(value)) for value in vector)
    decimals = _DIGITS - 1 - math.floor(math.log10(largest)) if largest > 0 else 0
    x, y, z = (round(float(value), decimals) + 0.0 for value in vector)  # + 0.0 makes -0.0 plain
    return x, y, z
