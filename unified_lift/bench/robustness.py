"""The rooms of the robustness table: synthetic, with one kind of noise in the masks, or with fewer training views.

The other kinds stay at the defaults of SyntheticSettings. Photos and cameras of a seed don't depend on its masks.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from unified_lift.bench.tables import KINDS, VIEWS, SceneFolder
from unified_lift.errors import UserError
from unified_lift.fileio import replacing_folder
from unified_lift.synthetic.scene import SyntheticSettings, write_synthetic

BASE = SyntheticSettings(num_objects=12, width=160, height=120)


def noisy_scene(kind: str, amount: float) -> SceneFolder:
    """Return the scene with one kind of noise; jobs make its rooms, one for each seed."""
    return SceneFolder(name=f"{kind}_{amount:g}", path=Path(), kind=kind, amount=amount)


def write_room(root: Path, kind: str, amount: str, *, seed: int) -> None:
    """Write the room of a seed with one kind of noise, or with only so many training views; whole or not at all.

    Raises:
        UserError: No such kind, or an amount that it cannot have.
    """
    if kind not in KINDS:
        raise UserError(f"--room {kind}: no such kind of noise; there are {', '.join(KINDS)}")
    try:
        changes: dict[str, Any] = {} if kind == VIEWS else {kind: float(amount)}
        settings = replace(BASE, seed=seed, **changes)
        with replacing_folder(root) as room:
            write_synthetic(room, settings, train_views=int(amount) if kind == VIEWS else None)
    except ValueError as error:
        raise UserError(f"--room {kind} {amount}: {error}") from None
