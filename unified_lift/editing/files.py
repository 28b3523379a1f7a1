"""An edited scene as a model folder, which render, query, view and export read like a trained one."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from unified_lift.editing import script
from unified_lift.editing.operations import Operation
from unified_lift.errors import UserError
from unified_lift.fileio import replacing_folder, write_text
from unified_lift.modelfolder import outputs
from unified_lift.modelfolder.inference import TrainedScene

_HEADER = ("config.yaml", "cfg_args", "cameras.json", "input.ply")
_OF_THE_UNEDITED = ("results.json", "per_view.json", "evaluation.json", "oracle.json", "report.html", "manifest.json")


def edits_of(model_path: Path) -> list[Operation]:
    """Return all edits since the model was trained; none where it was not edited."""
    path = model_path / outputs.EDITS_FILE
    return script.parse(path.read_text(), origin=str(path)) if path.exists() else []


def save_model(scene: TrainedScene, out: Path, *, edits: Iterable[Operation], overwrite: bool = False) -> None:
    """Write an edited scene as a model folder: whole, or nothing of it.

    Settings, cameras and iteration number are those of the model in `scene.path`.

    Args:
        edits: What was done since it was loaded; `edits.yaml` holds these and those made before.
        overwrite: Replace an existing model; it may be the one it was loaded from.
    Raises:
        UserError: There is a model and no `overwrite`, or something else; or the scene cannot read ids off features.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        if not outputs.holds_run(out):
            raise UserError(f"--out {out}: is there and no model; name a new folder")
        if not overwrite:
            raise UserError(f"--out {out}: holds a model; name another folder, or add --overwrite to replace it")
    if scene.method is None:
        raise UserError(f"{scene.path}: labels without a trained model; export it instead: unified-lift export")
    title = f"# All edits since training, in order; iteration {scene.iteration}."
    text = f"{title} Done again by: unified-lift edit --script\n{script.dump([*edits_of(scene.path), *edits])}"
    with replacing_folder(out, outdated=(*outputs.FILES_OF_RUN, *_OF_THE_UNEDITED)) as folder:
        outputs.write_geometry(folder, scene.iteration, scene.gaussians)
        outputs.write_objects(
            outputs.iteration_dir(folder, scene.iteration),
            scene.gaussians,
            scene.require_labels(),
            method=scene.method,
            names=scene.names,
            num_views=scene.num_views,
        )
        for name in _HEADER:
            if (scene.path / name).exists():
                shutil.copyfile(scene.path / name, folder / name)
        write_text(folder / outputs.EDITS_FILE, text)
