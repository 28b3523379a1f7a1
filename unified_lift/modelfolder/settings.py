"""The settings tree of a training run and of its stages."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from unified_lift.data.settings import DataSettings
from unified_lift.density import STRATEGIES, strategy_entry
from unified_lift.density.base import StrategySettings
from unified_lift.density.default import DefaultStrategySettings
from unified_lift.errors import UserError
from unified_lift.methods import method_entry
from unified_lift.methods.base import Method, MethodSettings
from unified_lift.methods.unified_lift import UnifiedLiftSettings
from unified_lift.provenance import Provenance, found, spelled_out, told
from unified_lift.reading import shown
from unified_lift.settings.limits import Range, check_ranges, leaves
from unified_lift.settings.yaml import merged, preset_chain, replaced, to_dict
from unified_lift.types import ZeroId

REPLACED = "replaced"  # an earlier run, until the one that replaces it is done; a model folder of its own
M = TypeVar("M", bound=MethodSettings)
D = TypeVar("D", bound=StrategySettings)


@dataclass(frozen=True, kw_only=True)
class GeometrySettings:
    """The 3D-GS recipe."""

    iterations: Annotated[int, Range(-1)] = -1
    """Geometry iterations, one view each; 0 = none (with --init_ply), -1 = chosen by number and size of the photos,
    with a bound on N: `gpu_visits` of each on a GPU, what `cpu_minutes` allow on a CPU. [ours] 3DGS: 30,000."""
    gpu_iterations: Annotated[int, Range(1)] = 30_000
    """Most geometry iterations where a GPU trains and none are given [3DGS]."""
    gpu_visits: Annotated[int, Range(0)] = 0
    """Visits of each training view that are chosen on a GPU, from 3,000 to `gpu_iterations` in all; 0 = these [3DGS].
    [ours]"""
    megapixel_gaussians: Annotated[int, Range(0)] = 0
    """Upper bound on N: so many for one million pixels of all photos together, and with the square root of their
    number; 0 = only `max_gaussians`, which takes precedence if given. [ours]"""
    cpu_minutes: Annotated[float, Range(0, 10_000)] = 2.5
    """Minutes of geometry by which iterations are chosen on a CPU: of two idle cores, by a formula, so that every
    machine takes the same number. [ours]"""
    cpu_gaussians: Annotated[int, Range(-1)] = -1
    """The same where iterations are chosen on a CPU, in all; -1 = by number and size of the photos. [ours]"""
    sh_degree: Annotated[int, Range(0, 3)] = 3
    """Highest SH degree of colour, 0 to 3 [3DGS]."""
    sh_interval: Annotated[int, Range(1)] = 1_000
    """Iterations between two SH degrees [3DGS]."""
    white_background: bool = False
    """White instead of black behind everything (-w) [3DGS]."""
    antialiased: bool = False
    """Compensate the low-pass of the renderer in the opacities [Mip-Splatting, with the 0.3 px^2 of gsplat]: views from
    farther away or of fewer pixels than the photos keep thin things as thin and as bright. The model is always rendered
    the way it was trained."""
    random_background: bool = False
    """Another colour behind everything in each step, also behind photos that are transparent [gsplat]: nothing that is
    seen through can be made of the background's colour. Pictures and scores keep black, or white."""
    lambda_dssim: Annotated[float, Range(0, 1)] = 0.2
    """Share of D-SSIM in the photometric loss [3DGS]."""
    loss_weights: tuple[str, ...] = ()
    """Further losses on the rendered view or the Gaussians, NAME=WEIGHT each: files of unified_lift/train/losses."""
    position_lr_init: Annotated[float, Range(above=0)] = 1.6e-4
    """First rate of positions, times the scene radius [3DGS]."""
    position_lr_final: Annotated[float, Range(above=0)] = 1.6e-6
    """Last rate of positions, times the scene radius [3DGS]."""
    position_lr_max_steps: Annotated[int, Range(0)] = 0
    """Iteration of the last rate; 0 = `iterations`. [ours] 3DGS: 30,000 however short the run."""
    sh_lr: Annotated[float, Range(0)] = 2.5e-3
    """Rate of SH degree 0; higher degrees take a 20th of it [3DGS]."""
    opacity_lr: Annotated[float, Range(0)] = 0.05
    """Rate of logit opacities [3DGS of 2023, released]; newer 3DGS: 0.025."""
    scaling_lr: Annotated[float, Range(0)] = 5e-3
    """Rate of log scales [3DGS]."""
    rotation_lr: Annotated[float, Range(0)] = 1e-3
    """Rate of quaternions [3DGS]."""
    max_scale: Annotated[float, Range(0)] = 0.0
    """Longest standard deviation of a Gaussian, as a share of the scene radius, after every step; 0 = any. [ours]"""
    cooldown: Annotated[float, Range(0, 1)] = 0.0
    """Share of the iterations, at the end, over which the rates of all but the positions fall too; 0 = none [3DGS]."""
    final_rates: Annotated[float, Range(1e-6, 1)] = 0.1
    """What they fall to, as a share of themselves. [ours]"""
    settled_after: Annotated[int, Range(0)] = 0
    """Visits of each view after which rates are at their last and no Gaussian is added or moved, however many
    iterations are to come: more of few photos would learn these by heart. 0 = the end [3DGS]. [ours]"""
    exposure: str = "none"
    """What is learnt of each training photo's colours, so that the scene need not change with them: `affine`, a colour
    matrix [3DGS]; `bilateral`, a grid of them [Wang 2024]; `none`. A file of unified_lift/train/exposure."""
    exposure_lr: Annotated[float, Range(0)] = 0.0
    """First rate of the photos' colours; 0 = the kind's own, 0.01 [3DGS]."""
    exposure_grid: Annotated[tuple[int, int, int], Range(1, 256)] = (16, 16, 8)
    """Cells of a bilateral grid across, down and along brightness [Wang 2024]; none is below 32 pixels wide."""
    weight_exposure: Annotated[float, Range(0)] = 10.0
    """Weight of what keeps a photo's colours plain: of `bilateral` the total variation of its grid [Wang 2024]."""
    rasterizer: Literal["ours", "gsplat"] = "ours"
    """What renders in geometry steps; gsplat: that package (needs a GPU), to check images and gradients against it."""


@dataclass(frozen=True, kw_only=True)
class LiftSettings:
    """The lift stage: features and codebook on frozen geometry."""

    lift_iterations: Annotated[int, Range(-1)] = -1
    """Steps of the lift stage; 0 = no lift, -1 = as many as draw each pixel of the labelled views `lift_draws` times
    (three, of a view at most 442,368 draws), and at least `lift_min_steps` (2,000). [ours] experiments.md"""
    lift_draws: Annotated[float, Range(0, 1_000)] = 3.0
    """Draws of each pixel that -1 means: fewer lose small objects of large scenes. [ours] experiments.md"""
    lift_min_steps: Annotated[int, Range(1)] = 2_000
    """Steps of the lift that -1 means at least. [ours]"""
    lift_pixels: Annotated[int, Range(1)] = 8_192
    """Pixels drawn per step. [ours] released: 32,768 for Eq. 1, the whole image for the rest."""
    lift_pool: Annotated[int, Range(0)] = 0
    """Pixels of each view that steps draw from until each was drawn about twice; then others take their place. Their
    weights are kept. 0 = as many as fit. [ours] experiments.md"""
    lift_min_samples: Annotated[int, Range(0)] = 8
    """Pixels of every segment that a step draws at least, or all it has; 0 = its share of the area [released].
    [ours] experiments.md"""
    lift_min_weight: Annotated[float, Range(0, 1)] = 1e-3
    """Blending weights below this are left out of the lift. [ours]"""
    lift_cache_mb: Annotated[int, Range(0)] = 1_536
    """MiB for the weights of the pools; where that is too little for one step's pixels of each view, every step
    computes its own. [ours] With it a room of 150 views of 384x384 trains in less than 3 GiB of GPU memory."""


@dataclass(frozen=True, kw_only=True)
class RefineSettings:
    """The refine stage. More steps, more draws of each pixel and higher rates fit the errors of the masks. [ours]

    Its length is the method's (`sharpen_steps`); what -1 means there is said here. experiments.md
    """

    refine_pixels: Annotated[int, Range(1)] = 16_384
    """Pixels drawn per step. [ours]"""
    refine_min_steps: Annotated[int, Range(0)] = 300
    """Steps, at least. [ours]"""
    refine_visits: Annotated[int, Range(0)] = 2
    """Steps of each labelled view. [ours]"""
    refine_max_draws: Annotated[float, Range(0)] = 1.5
    """Draws of each pixel of the labelled views, at most; overrides the two above. [ours]"""
    refine_lr: Annotated[float, Range(0)] = 0.005
    """First rate of the features. [ours]"""
    refine_lr_final: Annotated[float, Range(0)] = 0.001
    """Last rate of the features. [ours]"""
    refine_lr_final_share: Annotated[float, Range(0, 1)] = 1 / 3
    """Share of the steps that have the last rate. [ours]"""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """When a run writes what."""

    save_iterations: Annotated[tuple[int, ...], Range(0)] = ()
    """Geometry iterations after which the scene is also saved; the end always is [3DGS]."""
    test_iterations: Annotated[tuple[int, ...], Range(0)] = (7_000, 30_000)
    """Geometry iterations after which held-out views are scored to the log [3DGS]."""
    checkpoint_iterations: Annotated[tuple[int, ...], Range(0)] = ()
    """Steps, counted through all stages, after which a checkpoint is kept [3DGS]."""
    checkpoint_minutes: Annotated[float, Range(0)] = 1.0
    """Minutes between two rolling checkpoints, of which only the last is kept; 0 = none. [ours]"""
    checkpoint_interval: Annotated[int, Range(0)] = 0
    """Steps between two rolling checkpoints, besides those by time; 0 = none. [ours]"""
    log_interval: Annotated[int, Range(1)] = 50
    """Steps between two log lines. [ours]"""
    logger: Literal["tensorboard", "none"] = "tensorboard"
    """Where scalars and images go, besides metrics.jsonl."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; `auto`: a CUDA device if there is one and the rasterizer was built for it."""
    data_device: Literal["auto", "cuda", "cpu", "disk"] = "auto"
    """Where photos and masks are kept; `auto`: on the GPU or in memory if they fill only a part of it, else on disk."""
    shard_gaussians: bool = False
    """Of several processes (torchrun), each keeps and updates only its part of the Gaussians while the geometry trains:
    less memory, less to send. [Grendel-GS]"""
    profile: bool = False
    """Measure where the time of a step goes: a table at the end, and profile.json."""
    quiet: bool = False
    """No progress bars [3DGS]."""
    provenance: Provenance = "relative"
    """How files name places: `relative` to the model folder or as ~/..., without the names of user and machine; `full`:
    absolute paths and the name of the machine."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings(Generic[M, D]):
    """Everything a run needs to be repeated. M, D: the settings of its method and of its density strategy."""

    model_path: Path = Path()
    """Output folder (-m) [3DGS]."""
    preset: str = "unified_lift"
    """`unified_lift` (ours), `fast` (ours, shorter), `released` (the public code), `paper` (the text), a method's name,
    or a YAML file."""
    method_name: str = "unified_lift"
    """How objects are lifted (--method), a file of unified_lift/methods; its preset applies unless one is chosen."""
    strategy: str = "default"
    """When and where Gaussians are added and removed: a file of unified_lift/density."""
    schedule: Literal["staged", "joint"] = "staged"
    """Geometry first, then lift [ours]; or everything in one loop [paper, released]."""
    seed: Annotated[int, Range(-(2**53), 2**53)] = 0
    """Seed of every random draw."""
    init_ply: Path | None = None
    """Start from this trained splat of any trainer instead of points, in any format that is read
    (docs/datasets.md)."""
    data: DataSettings = field(default_factory=DataSettings)
    geometry: GeometrySettings = field(default_factory=GeometrySettings)
    density: D = field(default_factory=DefaultStrategySettings)  # type: ignore[assignment]  # the default of a type variable
    lift: LiftSettings = field(default_factory=LiftSettings)
    refine: RefineSettings = field(default_factory=RefineSettings)
    method: M = field(default_factory=UnifiedLiftSettings)  # type: ignore[assignment]  # likewise
    run: RunSettings = field(default_factory=RunSettings)

    def check(self) -> None:
        """Raise a UserError naming the flag whose value makes no sense."""
        if self.geometry.iterations == 0 and self.init_ply is None:
            raise UserError(f"--iterations must be at least 1, received {self.geometry.iterations}")
        check_ranges(self)
        self.method.check()

    def build_method(self, *, zero_id: ZeroId) -> Method:
        """Return the method of this run, not trained, for data in which id 0 means `zero_id`."""
        return method_entry(self.method_name).build(self.method, zero_id=zero_id, seed=self.seed)


def changed(settings: TrainSettings, changes: Mapping[str, Any], *, origin: str) -> TrainSettings:
    """Return `settings` with differences applied; another `method_name` or `strategy` brings settings of its own.

    A strategy is chosen by its settings too (`implied_strategy`). A UserError, which names `origin`: as `merged`; no
    such method or strategy.
    """
    if "strategy" not in changes:
        group = changes.get("density")
        implied = implied_strategy(settings, [*changes, *(group if isinstance(group, Mapping) else ())])
        changes = {"strategy": implied, **changes} if implied else changes
    try:
        for key, group, entry_of in (("method_name", "method", method_entry), ("strategy", "density", strategy_entry)):
            name = changes.get(key, getattr(settings, key))
            if type(name) is not str:
                raise UserError(f"{key} must be a name, received {shown(name)}")
            if name != getattr(settings, key):
                fresh: dict[str, Any] = {key: name, group: entry_of(name).settings()}
                settings = replace(settings, **fresh)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None
    return merged(settings, changes, origin=origin)


def implied_strategy(settings: TrainSettings, names: Iterable[str]) -> str | None:
    """Return the density strategy that has a setting of these names which that of `settings` lacks; None: no other.

    So flags and files of 3D-GS, such as `densify_until_iter`, choose its strategy whatever the preset has.
    """
    wanted = set(names) - {name.rpartition(".")[2] for name in leaves(settings)}
    others = [name for name, entry in STRATEGIES.items() if wanted & set(leaves(entry.settings()))]
    return others[0] if len(others) == 1 else None


def with_preset(settings: TrainSettings, preset: str, *, device: str = "cpu") -> TrainSettings:
    """Return `settings` with a preset (shipped name or YAML file) and what it `extends`; a UserError lists all.

    What stands below `on_gpu` counts only where a device of type `cuda` trains.
    """
    for path, content in reversed(list(preset_chain(preset))):
        on_gpu = content.pop("on_gpu", {})
        if not isinstance(on_gpu, Mapping):
            raise UserError(f"{path}: on_gpu is a group; write its settings below it, indented")
        for part in (content, on_gpu if device == "cuda" else {}):
            settings = with_file(settings, part, path)
    return changed(settings, {"preset": preset}, origin=preset)


def recorded(settings: TrainSettings, folder: Path) -> dict[str, Any]:
    """Return settings as the files of a model folder hold them, for `with_file`: paths as `told` writes them."""
    content, how = to_dict(settings), settings.run.provenance
    for name, (value, _) in leaves(settings).items():
        if isinstance(value, Path):
            text = told(value, folder, how)
        elif _is_path(name, value) and how == "relative":
            place, base = Path(value), folder
            if name.startswith("data."):  # readers look there from the scene, and the system follows links first
                place, base = place.resolve(), settings.data.source_path.resolve()
            text = told(place, base)
        else:
            continue
        *groups, last = name.split(".")
        tree = content
        for group in groups:
            tree = tree[group]
        tree[last] = os.path.join(os.pardir, Path(os.path.abspath(folder)).name) if text == os.curdir else text
    return content | {"model_path": os.curdir if how == "relative" else os.path.abspath(folder)}


def with_file(settings: TrainSettings, content: Mapping[str, Any], path: Path) -> TrainSettings:
    """Return `settings` with the content of a settings file applied, as `changed`.

    Where `recorded` wrote it, the paths in it are found from its folder, wherever that is now; they are absolute then.
    In files of users, and in models of older versions, paths are as they were given.
    """
    settings = changed(settings, content, origin=str(path))
    if content.get("model_path") != os.curdir:
        return settings
    folder, given = path.parent, {*_keys(content)} - {"model_path"}
    above = Path(os.path.abspath(folder))
    above = Path(*(part for part in above.parts[:-3]), *(part for part in above.parts[-3:] if part != REPLACED))
    for name, (value, _) in leaves(settings).items():
        if name.rpartition(".")[2] not in given:
            continue
        if isinstance(value, Path) and value != Path():
            settings = replaced(settings, name, found(str(value), folder, above))
        elif isinstance(value, str) and name.startswith("data."):
            settings = replaced(settings, name, spelled_out(value))
        elif _is_path(name, value):
            settings = replaced(settings, name, str(found(value, folder, above)))
    return settings


def absolute(settings: TrainSettings) -> TrainSettings:
    """Return settings with equal words for equal places: absolute, or from the scene for those in it."""
    source = settings.data.source_path
    for name, (value, _) in leaves(settings).items():
        if isinstance(value, Path):
            settings = replaced(settings, name, Path(os.path.abspath(value)))
        elif isinstance(value, str) and name.startswith("data.") and os.sep in value:
            settings = replaced(settings, name, os.path.relpath((source / value).resolve(), source.resolve()))
        elif _is_path(name, value):
            settings = replaced(settings, name, os.path.abspath(value))
    return settings


def _is_path(name: str, value: Any) -> bool:
    """Return whether a setting that may be a word is a path: a file of settings, or outside of the scene."""
    return isinstance(value, str) and (os.path.isabs(value) or (name == "preset" and value.endswith((".yaml", ".yml"))))


def _keys(tree: Mapping[str, Any]) -> Iterator[str]:
    for key, value in tree.items():
        yield from _keys(value) if isinstance(value, Mapping) else (key,)
