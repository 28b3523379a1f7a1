"""Full-state checkpoints: written atomically, read with weights_only."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from unified_lift.types import UserError

_FORMAT = 1
_KEYS = {"format", "stage", "step", "total_steps", "gaussians", "stage_state", "method", "settings"}


def checkpoint_path(model_path: Path, total_steps: int) -> Path:
    """Return `<model>/chkpnt<N>.pth`, N counting the steps of all stages."""
    return model_path / f"chkpnt{total_steps}.pth"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` so that `path` always holds a whole checkpoint: to a neighbour, synced, then renamed.

    Raises:
        UserError: The disk is full or not writable; an older checkpoint stays as it was.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            torch.save({"format": _FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{path}: could not be written ({error}); free disk space, then go on with --resume") from None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return what `save_checkpoint` wrote.

    Raises:
        UserError: No such file, cut short, or written by another program.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, OSError, KeyError) as error:
        reason = str(error).partition("\n")[0] or "empty file"
        raise UserError(f"{path}: not a readable checkpoint ({reason}); give a chkpnt<N>.pth of this program") from None
    if not isinstance(state, dict) or not _KEYS <= set(state):
        raise UserError(f"{path}: not a checkpoint of this program; splats of other trainers come in by --init_ply")
    if state["format"] != _FORMAT:
        raise UserError(f"{path}: checkpoint format {state['format']}, this version reads {_FORMAT}; train again")
    return state


def checkpoints(model_path: Path) -> dict[int, Path]:
    """Return the checkpoints of a model folder by total step, in rising order."""
    found = {}
    for path in model_path.glob("chkpnt*.pth"):
        match = re.fullmatch(r"chkpnt(\d+)\.pth", path.name)
        if match:
            found[int(match.group(1))] = path
    return dict(sorted(found.items()))
