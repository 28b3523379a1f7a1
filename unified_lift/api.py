"""The public functions of `unified_lift`, with the arguments a script would give them. See docs/api.md."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unified_lift import data
from unified_lift.data.settings import DataSettings
from unified_lift.device import training_device
from unified_lift.editing import script
from unified_lift.editing.formats import FORMATS
from unified_lift.errors import UserError
from unified_lift.evaluation import evaluate as scoring
from unified_lift.evaluation.evaluate import Result
from unified_lift.evaluation.video import video_path
from unified_lift.fileio import replacing_folder
from unified_lift.modelfolder import inference
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.modelfolder.outputs import holds_run
from unified_lift.modelfolder.settings import TrainSettings, changed, with_preset
from unified_lift.train.run import run
from unified_lift.train.schedule import OWN_BOUND, gives_bound
from unified_lift.types import Camera, Scene

__all__ = ["UserError", "camera_path", "edit", "evaluate", "export", "load_model", "load_scene"]
__all__ += ["object_at", "render", "segment", "train_scene"]


def load_scene(path: str | Path, *, images: str = "images", resolution: int = -1) -> Scene:
    """Return the scene in a folder of any layout that training reads: photos, cameras, masks and points.

    `images` is the image folder of a COLMAP scene. Resolutions of 1, 2, 4 and 8 divide the size of the photos, another
    number is their width in pixels, -1 shrinks those wider than 1600 px. A UserError names the file and the cure.
    """
    return data.load_scene(DataSettings(source_path=Path(path), images=images, resolution=resolution))


def train_scene(
    scene: str | Path, out: str | Path, *, preset: str = "unified_lift", overwrite: bool = False, **settings: Any
) -> TrainedScene:
    """Train a scene folder into a model folder, as train.py does, and return what was trained.

    Args:
        preset: A preset's or method's name, or a YAML file.
        overwrite: Replace a run that the model folder holds.
        settings: What differs from the preset, called like the flags of train.py: iterations=7000, eval=True.
    Raises:
        UserError: A setting or the data make no sense, the folder holds a run, or the disk is full.
        FloatingPointError: A loss or a parameter became NaN or infinite.
    """
    if holds_run(Path(out)) and not overwrite:
        raise UserError(f"{out}: already holds a run; overwrite=True replaces it")
    given = {"source_path": str(scene), "model_path": str(out), **settings}
    given = OWN_BOUND | given if gives_bound(given) else given
    device = training_device(given)
    chosen = changed(with_preset(TrainSettings(), preset, device=device), given, origin="train_scene")
    chosen.check()
    run(chosen)
    return inference.load_model(Path(out))


def load_model(path: str | Path, *, iteration: int = -1, device: str | torch.device = "cpu") -> TrainedScene:
    """Return the trained scene in a model folder (`-m` of train.py), ready to be rendered on a device.

    `iteration` -1 is the last saved one. A UserError: the folder holds no run, nothing is saved, or not that iteration.
    """
    return inference.load_model(Path(path), iteration=iteration, device=torch.device(device))


def render(model: TrainedScene, camera: Camera) -> Tensor:
    """Return the picture a camera takes of a trained scene, float32 in [0, 1], [H, W, 3], on the CPU."""
    return inference.render_view(model, camera).image.clamp(0, 1)


def segment(model: TrainedScene, camera: Camera) -> Tensor:
    """Return the object id of every pixel, int64 [H, W], on the CPU.

    An object has the same id in every view and in everything that is saved of the model. Ids are keys of
    `model.objects`; every pixel gets one, and 0 is the largest object of a trained scene, usually the background.
    A UserError: the scene was trained without a lift, so that it knows no objects.
    """
    model.require_labels()
    ids = inference.render_view(model, camera).object_ids
    assert ids is not None
    return ids


def camera_path(model: TrainedScene, *, count: int = 48) -> list[Camera]:
    """Return `count` cameras of a smooth path around a trained scene or along its training cameras, as of its video.

    A UserError: the scene folder it was trained on is gone.
    """
    return video_path([view.camera for view in inference.views_of(model).train], count=count)


def object_at(model: TrainedScene, camera: Camera, u: float, v: float) -> int | None:
    """Return the id of the object at a pixel of a camera, (0.5, 0.5) being the centre of the first; None: none there.

    A UserError: the scene knows no objects, or the pixel lies outside of the picture.
    """
    return inference.object_at(model, camera, u, v)


def edit(model: TrainedScene, edits: Sequence[Mapping[str, Any]]) -> TrainedScene:
    """Return a trained scene after edits, in their order; `model` stays as it is.

    Each is an entry of a script (docs/edit.md): {"remove": [3]}, {"recolour": {"objects": [5], "color": "#ff0000"}}.
    A UserError names the entry that is not understood or cannot be done.
    """
    operations = [script.read_operation(entry, f"edit {number}") for number, entry in enumerate(edits, 1)]
    return script.apply(model, operations)


def evaluate(model: TrainedScene, *, scene: str | Path | None = None, protocol: str = "auto") -> Result:
    """Return the scores of a trained scene on its held-out views: `result.scores` is a dictionary.

    `scene` is the scene folder if it has moved since training; `protocol` a name in docs/protocols.md, `auto`: as the
    reader says. A UserError: no such protocol, no view was held out, or the scene folder or its ground truth is gone.
    """
    if scene is not None:
        moved = replace(model.settings.data, source_path=Path(scene))
        model = replace(model, settings=replace(model.settings, data=moved))
    return scoring.evaluate(model, inference.views_of(model), protocol)


def export(model: TrainedScene, path: str | Path, *, objects: Sequence[int] | None = None) -> None:
    """Write a scene, or objects of it with these ids, to one file, which is replaced: .ply, .spz, .glb, .html ...

    A UserError: no such object, or no format (unified-lift export --help) of one file that is called like the suffix.
    """
    path = Path(path)
    part = model if objects is None else model.subset(model.mask(objects))
    write = FORMATS.get(path.suffix[1:])
    with replacing_folder(path.parent) as folder:
        if write is not None:
            write(folder, path.stem, part)
        if not (folder / path.name).is_file():
            suffixes = ".ply, .splat, .spz, .sog, .glb, .usda, .obj or .html"
            raise UserError(f"{path}: no format of one file has this suffix; use {suffixes}")
