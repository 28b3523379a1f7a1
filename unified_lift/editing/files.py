"""An edited scene as a model folder, which render, query, view and export read like a trained one."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from unified_lift.editing import script
from unified_lift.editing.script import Operation
from unified_lift.errors import UserError
from unified_lift.fileio import write_text
from unified_lift.modelfolder import outputs
from unified_lift.modelfolder.inference import TrainedScene

_HEADER = ("config.yaml", "cfg_args", "cameras.json", "input.ply")
_OF_THE_UNEDITED = ("results.json", "per_view.json", "evaluation.json", "oracle.json", "report.html", "manifest.json")


def edits_of(model_path: Path) -> list[Operation]:
    """Return all edits since the model was trained; none where it was not edited.

    Raises:
        UserError: The list is damaged.
    """
    path = model_path / outputs.EDITS_FILE
    return script.parse(path.read_text(), origin=str(path)) if path.exists() else []


def save_model(scene: TrainedScene, out: Path, *, edits: Iterable[Operation], overwrite: bool = False) -> None:
    """Write an edited scene as a model folder: whole, or nothing of it.

    Settings, cameras and iteration number are those of the model it was loaded from; `edits.yaml` holds the edits made
    there and those made since.

    Args:
        scene: The scene after the edits, loaded from the model folder `scene.path`.
        out: Model folder.
        edits: What was done since it was loaded.
        overwrite: Replace a model that is there, as train.py --overwrite does; it may be the one it was loaded from.
    Raises:
        UserError: There is a model and no `overwrite`, or something else; or the scene cannot read ids off features.
    """
    base = scene.path
    _require_free(out, overwrite=overwrite)
    if scene.method is None:
        raise UserError(f"{base}: labels without a trained model; export it instead: unified-lift export")
    every_edit = [*edits_of(base), *edits]
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        outputs.write_geometry(partial, scene.iteration, scene.gaussians)
        outputs.write_objects(
            partial,
            scene.iteration,
            scene.gaussians,
            scene.method,
            scene.require_labels(),
            names=scene.names,
            num_views=scene.num_views,
        )
        for name in _HEADER:
            if (base / name).exists():
                shutil.copyfile(base / name, partial / name)
        title = f"# All edits since training, in order; iteration {scene.iteration}."
        title += " Done again by: unified-lift edit --script\n"
        write_text(partial / outputs.EDITS_FILE, title + script.dump(every_edit))
        _put_in_place(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _require_free(out: Path, *, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not outputs.holds_run(out):
        raise UserError(f"--out {out}: is there and no model; name a new folder")
    if not overwrite:
        raise UserError(f"--out {out}: holds a model; name another folder, or add --overwrite to replace it")


def _put_in_place(partial: Path, out: Path) -> None:
    """Move the finished folder to `out`, replacing the run that is there and what was measured on it."""
    if not out.exists():
        partial.rename(out)
        return
    outputs.forget_earlier_run(out)
    for name in _OF_THE_UNEDITED:
        (out / name).unlink(missing_ok=True)
    for path in partial.iterdir():
        path.replace(out / path.name)
