"""Full-state checkpoints: copied in the loop, written by a thread, atomically; read with weights_only."""

import math
import re
import zipfile
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unified_lift.errors import UserError
from unified_lift.fileio import replacing
from unified_lift.reading import reading

_FORMAT = 2
_STAGES = ("geometry", "lift", "refine")
_KEYS = {"format", "stage", "step", "total_steps", "gaussians", "stage_state", "method", "settings"}


def checkpoint_path(model_path: Path, total_steps: int) -> Path:
    """Return `<model>/chkpnt<N>.pth`, N counting the steps of all stages."""
    return model_path / f"chkpnt{total_steps}.pth"


def named_tensors(tree: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield dotted name and value of every tensor in a tree of dictionaries, lists and tuples."""
    if isinstance(tree, Tensor):
        yield prefix.removeprefix("."), tree
    elif isinstance(tree, dict | list | tuple):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from named_tensors(value, f"{prefix}.{key}")


def snapshot(tree: Any) -> Any:
    """Return a copy of a tree of tensors in main memory: what trains goes on changing while the copy is written."""
    if isinstance(tree, Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        return {key: snapshot(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(snapshot(value) for value in tree)
    return tree


class CheckpointWriter(ThreadPoolExecutor):
    """Writes checkpoints in a thread, one at a time. An error of it, a UserError, is raised by the next call."""

    def __init__(self) -> None:
        super().__init__(1, thread_name_prefix="checkpoint")
        self._running: Future[None] | None = None

    def is_busy(self) -> bool:
        """Return whether a checkpoint is being written."""
        if self._running is not None and self._running.done():
            self.wait()
        return self._running is not None

    def write(self, path: Path, state: dict[str, Any], *, kept: Collection[int]) -> None:
        """Wait for the one before, then let the thread do `save_checkpoint`; `state` must not change any more."""
        self.wait()
        self._running = self.submit(save_checkpoint, path, state, kept=kept)

    def wait(self) -> None:
        """Wait until everything is on disk."""
        running, self._running = self._running, None
        if running is not None:
            running.result()


def save_checkpoint(path: Path, state: dict[str, Any], *, kept: Collection[int]) -> None:
    """Write `state` whole and synced, then remove older ones except steps `kept`; a UserError: not writable, full."""
    try:  # through Python's file the training thread runs on: the GIL is given back
        with replacing(path) as partial, open(partial, "wb") as file:
            torch.save({"format": _FORMAT, **state}, file)
    except UserError as error:
        raise UserError(f"{error}, then go on with --resume") from None
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: could not be written ({error}); free disk space, then go on with --resume") from None
    for number, old in checkpoints(path.parent).items():
        if number not in kept and number < state["total_steps"]:
            with suppress(OSError):
                old.unlink()


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return what `save_checkpoint` wrote, tensors mapped from the file.

    A UserError: it is missing, cut short, damaged (by the checksums that torch wrote) or foreign.
    """
    with reading(path, "checkpoint", fix="give a chkpnt<N>.pth of this program", missing="no such checkpoint"):
        with zipfile.ZipFile(path) as file:
            if (part := file.testzip()) is not None:
                raise UserError(f"{path}: damaged: the checksum of {part} is wrong; go on from another chkpnt<N>.pth")
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(state, dict) or not _KEYS <= set(state):
        raise UserError(f"{path}: not a checkpoint of this program; splats of other trainers come in by --init_ply")
    if state["format"] != _FORMAT:
        raise UserError(f"{path}: checkpoint format {state['format']}, this version reads {_FORMAT}; train again")
    state = state | {"path": path, "frame": state.get("frame", {})}  # older ones were never moved
    with reading_checkpoint(state):
        step, total, settings = state["step"], state["total_steps"], state["settings"]
        if state["stage"] not in _STAGES or type(step) is not int or type(total) is not int or not 0 <= step <= total:
            raise ValueError(f"step {step} of stage {state['stage']!r}, step {total} of all")
        offset, scale = (*state["frame"].get("offset", ()), 0.0), state["frame"].get("scale", 1.0)
        if not math.isfinite(sum(offset)) or not 0 < scale < math.inf:
            raise ValueError(f"frame {state['frame']}")
        if not all(isinstance(settings[group], dict) for group in ("geometry", "lift")):
            raise ValueError("its settings are no groups")
    return state


def reading_checkpoint(state: dict[str, Any]) -> AbstractContextManager[None]:
    """Return a context in which whatever goes wrong is a UserError about the file that `load_checkpoint` read."""
    return reading(state["path"], "checkpoint", fix="go on from another chkpnt<N>.pth, or start a new -m folder")


def checkpoints(model_path: Path) -> dict[int, Path]:
    """Return the checkpoints of a model folder by total step, in rising order."""
    found = ((re.fullmatch(r"chkpnt(\d+)\.pth", path.name), path) for path in model_path.glob("chkpnt*.pth"))
    return dict(sorted((int(match[1]), path) for match, path in found if match))
