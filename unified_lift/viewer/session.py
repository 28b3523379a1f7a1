"""What the viewer knows and can do, without the viewer: selection, hidden objects, edits with undo and redo, saving."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from unified_lift.editing import script
from unified_lift.editing.operations import (
    CENTROID,
    Duplicate,
    Move,
    Operation,
    Recolour,
    Remove,
    Rename,
    Rotation,
    Vector,
    next_ids,
)
from unified_lift.errors import UserError
from unified_lift.modelfolder.inference import TrainedScene

_DIGITS = 6  # of numbers in the script: more than a hand can place, few enough to read
_EXTENT = (0.05, 0.95)  # quantiles between which an object counts as wide: strays are left out


class ObjectEntry(NamedTuple):
    """A line of the object list."""

    object_id: int
    label: str
    count: int
    hidden: bool
    selected: bool


@dataclass(eq=False)
class _Level:
    """One labelling of the scene and what was done to it."""

    original: TrainedScene
    edited: TrainedScene
    done: list[Operation] = field(default_factory=list)
    undone: list[Operation] = field(default_factory=list)
    saved: list[Operation] = field(default_factory=list)
    hidden: set[int] = field(default_factory=set)
    selected: int | None = None


class _Shown(NamedTuple):
    edited: TrainedScene
    preview: Operation | None
    hidden: frozenset[int]
    scene: TrainedScene


class Session:
    """An open scene. Safe to use from several threads; all windows share it.

    Hiding and isolating change only what is shown. Everything else is an edit: an operation of the script, applied to
    the scene as it was opened, so that undoing is leaving out the last one and a saved script replays exactly.
    """

    def __init__(self, levels: Sequence[TrainedScene], *, level: int = 0, edits: Sequence[Operation] = ()) -> None:
        """Open a scene.

        Args:
            levels: The same Gaussians labelled at one or more granularities, fine to coarse; each has edits of its own.
            level: The one to begin with.
            edits: Done to that level on opening.
        Raises:
            UserError: An edit cannot be done.
        """
        if not levels:
            raise ValueError("a session needs a scene")
        self._lock = threading.RLock()
        self._levels = [_Level(scene, scene) for scene in levels]
        self._index = level
        self._preview: Operation | None = None
        self._shown: _Shown | None = None
        first = self._level
        first.edited = script.apply(first.original, edits)
        first.done, first.saved = list(edits), list(edits)

    # ---- what there is ----

    @property
    def scene(self) -> TrainedScene:
        """Return the scene after all edits, hidden objects included: what is saved."""
        return self._level.edited

    @property
    def original(self) -> TrainedScene:
        """Return the scene as it was opened."""
        return self._level.original

    @property
    def originals(self) -> tuple[TrainedScene, ...]:
        """Return the scene as it was opened, at every level."""
        return tuple(level.original for level in self._levels)

    @property
    def shown(self) -> TrainedScene:
        """Return what is on the screen: edits and the one being tried, without hidden objects."""
        with self._lock:
            level = self._level
            wanted = (level.edited, self._preview, frozenset(level.hidden))
            kept = self._shown
            if kept is None or kept.edited is not wanted[0] or kept[1:3] != wanted[1:]:
                scene = self._tried(wanted[1])
                if level.hidden:
                    scene = scene.rows(~scene.mask(sorted(level.hidden)))
                self._shown = kept = _Shown(*wanted, scene)
            return kept.scene

    @property
    def operations(self) -> tuple[Operation, ...]:
        """Return the edits, oldest first."""
        return tuple(self._level.done)

    @property
    def selected(self) -> int | None:
        """Return the selected object."""
        return self._level.selected

    @property
    def hidden(self) -> frozenset[int]:
        """Return the hidden objects."""
        return frozenset(self._level.hidden)

    @property
    def can_undo(self) -> bool:
        """Return whether there is an edit to take back."""
        return bool(self._level.done)

    @property
    def can_redo(self) -> bool:
        """Return whether there is an edit to do again."""
        return bool(self._level.undone)

    @property
    def is_dirty(self) -> bool:
        """Return whether there are edits that are not saved."""
        return bool(self.unsaved())

    def unsaved(self) -> list[tuple[TrainedScene, tuple[Operation, ...]]]:
        """Return the scene, as it was opened, and the edits of every level whose edits are not saved."""
        return [(level.original, tuple(level.done)) for level in self._levels if level.done != level.saved]

    def label(self, object_id: int) -> str:
        """Return the name of an object, with its id where the name does not tell it; no two labels are equal."""
        name = self.scene.name_of(object_id)
        return name if name == f"object {object_id}" else f"{name} ({object_id})"

    def entries(self) -> list[ObjectEntry]:
        """Return the object list."""
        with self._lock:
            level = self._level
            return [
                ObjectEntry(key, self.label(key), count, key in level.hidden, key == level.selected)
                for key, count in self.scene.objects.items()
            ]

    # ---- what is shown ----

    @property
    def num_levels(self) -> int:
        """Return how many granularities there are."""
        return len(self._levels)

    @property
    def level(self) -> int:
        """Return the granularity in use."""
        return self._index

    def use_level(self, index: int) -> None:
        """Choose the granularity; each keeps its edits, selection and hidden objects."""
        with self._lock:
            if not 0 <= index < len(self._levels):
                raise ValueError(f"there are {len(self._levels)} levels, received {index}")
            self._index, self._preview = index, None

    def select(self, object_id: int | None) -> None:
        """Select an object, or none."""
        with self._lock:
            self._require(object_id)
            self._level.selected, self._preview = object_id, None

    def hide(self, object_id: int) -> None:
        """Hide an object, or show it again if it is hidden."""
        with self._lock:
            self._require(object_id)
            self._level.hidden ^= {object_id}

    def isolate(self, object_id: int) -> None:
        """Show one object only."""
        with self._lock:
            self._require(object_id)
            self._level.hidden = set(self.scene.objects) - {object_id}

    def show_all(self) -> None:
        """Hide nothing."""
        with self._lock:
            self._level.hidden = set()

    # ---- edits ----

    def preview(self, operation: Operation | None) -> None:
        """Show what an edit would do, without doing it; None ends it. Never waits, as it is called for every twitch."""
        self._preview = operation

    def apply(self, operation: Operation) -> None:
        """Do an edit.

        Raises:
            UserError: It cannot be done; nothing changes.
        """
        with self._lock:
            level = self._level
            self._preview = None
            level.edited = operation.apply(level.edited)
            level.done.append(operation)
            level.undone.clear()
            self._forget_gone()

    def remove(self, object_id: int) -> None:
        """Take an object away."""
        self.apply(Remove(objects=(object_id,)))

    def rename(self, object_id: int, name: str) -> None:
        """Give an object a name; nothing happens if it has that name."""
        if name.strip() != self.scene.name_of(object_id):
            self.apply(Rename(names=((object_id, name.strip()),)))

    def recolour(self, object_id: int, rgb: tuple[int, int, int]) -> None:
        """Paint an object; `rgb` in 0..255."""
        self.apply(Recolour(objects=(object_id,), color="#{:02x}{:02x}{:02x}".format(*rgb)))

    def move(self, object_id: int, *, wxyz: Sequence[float], translation: Sequence[float]) -> Move:
        """Return the edit that turns an object about its centroid and shifts it, ready for `preview` or `apply`."""
        turn = Rotation.of_quaternion(wxyz)
        degrees = round(turn.degrees, _DIGITS - 3)
        rotate = Rotation(_rounded(turn.axis), degrees) if degrees else Rotation()
        return Move(objects=(object_id,), rotate=rotate, translate=_rounded(translation))

    def duplicate(self, object_id: int, *, along: Sequence[float]) -> int:
        """Put a copy of an object beside it, select it, and return its id.

        Args:
            object_id: What to copy.
            along: Direction of the copy from the original, any length but zero: where the user sees "right", say.
        """
        with self._lock:
            self._require(object_id)
            direction = torch.as_tensor(along, dtype=torch.float64)
            direction = direction / direction.norm()
            means = self._means(object_id) @ direction
            low, high = torch.quantile(means, torch.tensor(_EXTENT, dtype=torch.float64)).tolist()
            (fresh,) = next_ids(self.scene, 1)
            offset = _rounded((1.1 * (high - low) * direction).tolist())
            self.apply(Duplicate(objects=(object_id,), translate=offset, about=CENTROID))
            self._level.selected = fresh
            return fresh

    def centroid(self, object_id: int) -> Vector:
        """Return the mean centre of an object's Gaussians: what it turns about."""
        x, y, z = self._means(object_id).mean(dim=0).tolist()
        return x, y, z

    def undo(self) -> None:
        """Take the last edit back; nothing happens where there is none."""
        with self._lock:
            level = self._level
            if level.done:
                level.undone.append(level.done.pop())
                self._replay()

    def redo(self) -> None:
        """Do the last edit again that was taken back."""
        with self._lock:
            level = self._level
            if level.undone:
                level.done.append(level.undone.pop())
                self._replay()

    def save(self, write: Callable[[TrainedScene, Sequence[Operation]], Path]) -> Path:
        """Let `write` store the edited scene and its edits; return where it did. From then on nothing is unsaved.

        Raises:
            UserError: It cannot be written there; the edits stay unsaved.
        """
        with self._lock:
            level = self._level
            edited, done = level.edited, list(level.done)
        place = write(edited, tuple(done))  # may take long; the picture goes on meanwhile
        with self._lock:
            level.saved = done
        return place

    # ---- inside ----

    @property
    def _level(self) -> _Level:
        return self._levels[self._index]

    def _means(self, object_id: int) -> torch.Tensor:
        return self.scene.gaussians.means.detach()[self.scene.mask([object_id])].double().cpu()

    def _tried(self, preview: Operation | None) -> TrainedScene:
        edited = self._level.edited
        try:
            return edited if preview is None else preview.apply(edited)
        except UserError:  # another window has removed the object since
            return edited

    def _require(self, object_id: int | None) -> None:
        if object_id is not None and object_id not in self.scene.objects:
            raise UserError(f"object {object_id} is not there any more; select another")

    def _replay(self) -> None:
        level = self._level
        self._preview = None
        level.edited = script.apply(level.original, level.done)
        self._forget_gone()

    def _forget_gone(self) -> None:
        known = set(self.scene.objects)
        self._level.hidden &= known
        if self._level.selected not in known:
            self._level.selected = None


def _rounded(vector: Sequence[float]) -> Vector:
    """Return the vector with so many digits of its largest entry."""
    largest = max(abs(float(value)) for value in vector)
    decimals = _DIGITS - 1 - math.floor(math.log10(largest)) if largest > 0 else 0
    x, y, z = (round(float(value), decimals) + 0.0 for value in vector)  # + 0.0 makes -0.0 plain
    return x, y, z
