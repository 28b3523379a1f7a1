"""The flags that name a model, for every command that opens one."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import torch
import tyro

from unified_lift.cli import flags
from unified_lift.device import chosen_device
from unified_lift.model.files import SUFFIXES, read_splat
from unified_lift.modelfolder.inference import TrainedScene, load_model, views_of
from unified_lift.modelfolder.outputs import iteration_dir, saved_iterations
from unified_lift.modelfolder.settings import GeometrySettings, TrainSettings
from unified_lift.ops.similarity import similarity_for
from unified_lift.provenance import Provenance
from unified_lift.settings.limits import check_ranges
from unified_lift.types import Scene

_DEVICE_HELP = "Where to render; `auto`: a CUDA device if there is one and the rasterizer was built for it."
Command = TypeVar("Command", bound="ModelFlags")
Device = Annotated[Literal["auto", "cpu", "cuda"], tyro.conf.arg(help=_DEVICE_HELP)]
SourcePath = Annotated[Path | None, tyro.conf.arg(help="Scene folder (-s), if it has moved since training.")]


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """Which model."""

    model_path: Path
    """Model folder (-m) [3DGS]; for view, edit and export also a splat: .ply, .spz, .splat, .sog, .glb, .usda."""
    iteration: int = -1
    """Saved iteration; -1 = the last [3DGS]."""
    provenance: Provenance | None = None
    """How what is written names places: `relative` or `full` (train.py --help); the default is that of the training."""

    @classmethod
    def parsed(cls: type[Command], argv: list[str], *, command: str, keep: tuple[str, ...] = ()) -> Command:
        """Return the flags of a command; a UserError where a number is out of its range. `keep` as in `canonical`."""
        given = flags.parsed(cls, argv, command=command, keep=keep)
        check_ranges(given)
        return given


@dataclass(frozen=True, kw_only=True)
class ObjectFlags(ModelFlags):
    """Which objects of which model."""

    level: str = ""
    """Name of a further level of objects (train.py --levels); the default is the model's own."""

    def load(self, **options: Any) -> TrainedScene:
        """Return what `opened` does."""
        scene = opened(self.model_path, level=self.level, iteration=self.iteration, **options)
        return naming(scene, self.provenance)


def naming(scene: TrainedScene, provenance: Provenance | None) -> TrainedScene:
    """Return a scene whose files are to name places so; None: as those of its training."""
    run = scene.settings.run
    return replace(scene, settings=replace(scene.settings, run=replace(run, provenance=provenance or run.provenance)))


def opened(path: Path, *, device: torch.device | None = None, **options: Any) -> TrainedScene:
    """Return the model in a folder, as `load_model`, and tell what was found.

    A splat file, and the model of another 3DGS trainer, know no objects.
    A UserError: as `load_model` or `read_splat`.
    """
    device, wanted, splat = device or torch.device("cpu"), options.get("iteration", -1), path
    if not (path / "config.yaml").exists() and (saved := saved_iterations(path)):
        splat = iteration_dir(path, saved[-1] if wanted == -1 else wanted) / "point_cloud.ply"
    is_splat = splat.is_file() or (path.suffix.lower() in SUFFIXES and not path.exists())
    if not is_splat or options.get("level"):
        return load_model(path, device=device, **options)
    gaussians, notes = read_splat(splat)
    means = gaussians.means.detach().double().numpy()
    distance = float(np.median(np.linalg.norm(means - np.median(means, axis=0), axis=1)))
    frame = similarity_for(np.median(means, axis=0), distance or 1.0)
    if not frame.is_identity:
        gaussians = read_splat(splat, frame)[0]
    gaussians.set("features", gaussians.features[:, :0])
    for note in notes:
        print(f"note: {splat}: {note}")
    settings: TrainSettings = TrainSettings(geometry=GeometrySettings(antialiased=gaussians.antialiased))
    return TrainedScene(gaussians=gaussians.to(device), frame=frame, settings=settings, path=path)


def with_objects(scene: TrainedScene) -> TrainedScene:
    """Return a scene that knows no objects as a single one, and say so; any other as it is."""
    if scene.labels is None:
        print(f"note: {scene.path}: knows no objects; the whole scene is object 0")
    return scene.as_one_object()


@dataclass(frozen=True, kw_only=True)
class SceneFlags(ModelFlags):
    """Which model, and the scene it was trained on."""

    source_path: SourcePath = None
    device: Device = "auto"
    quiet: bool = False
    """No progress bars [3DGS]."""

    def open(self) -> tuple[TrainedScene, Scene]:
        """Return what `load_model` and `views_of` do."""
        path, device = self.source_path, chosen_device(self.device)
        model = load_model(self.model_path, iteration=self.iteration, source_path=path, device=device)
        return naming(model, self.provenance), views_of(model)
