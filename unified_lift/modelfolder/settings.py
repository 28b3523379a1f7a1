"""The settings tree of a training run and of its stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from unified_lift.data.settings import DataSettings
from unified_lift.density.default import DensitySettings
from unified_lift.errors import UserError
from unified_lift.methods import method_entry
from unified_lift.methods.base import Method, MethodSettings
from unified_lift.methods.unified_lift import UnifiedLiftSettings
from unified_lift.settings.presets import preset_chain
from unified_lift.settings.yaml import merged
from unified_lift.types import ZeroId

M = TypeVar("M", bound=MethodSettings)


@dataclass(frozen=True, kw_only=True)
class GeometrySettings:
    """The 3D-GS recipe."""

    iterations: int = 30_000
    """Geometry iterations, one view each [3DGS]; 0 = none (with --init_ply)."""
    sh_degree: int = 3
    """Highest SH degree of colour, 0 to 3 [3DGS]."""
    sh_interval: int = 1_000
    """Iterations between two SH degrees [3DGS]."""
    white_background: bool = False
    """White instead of black behind everything (-w) [3DGS]."""
    lambda_dssim: float = 0.2
    """Share of D-SSIM in the photometric loss [3DGS]."""
    position_lr_init: float = 1.6e-4
    """First rate of positions, times the scene radius [3DGS]."""
    position_lr_final: float = 1.6e-6
    """Last rate of positions, times the scene radius [3DGS]."""
    position_lr_max_steps: int = 0
    """Iteration of the last rate; 0 = `iterations`. [ours] 3DGS: 30,000 however short the run."""
    sh_lr: float = 2.5e-3
    """Rate of SH degree 0; higher degrees take a 20th of it [3DGS]."""
    opacity_lr: float = 0.05
    """Rate of logit opacities [3DGS of 2023, released]; newer 3DGS: 0.025."""
    scaling_lr: float = 5e-3
    """Rate of log scales [3DGS]."""
    rotation_lr: float = 1e-3
    """Rate of quaternions [3DGS]."""
    rasterizer: Literal["ours", "gsplat"] = "ours"
    """What renders in geometry steps; gsplat: that package (needs a GPU), to check images and gradients against it."""


@dataclass(frozen=True, kw_only=True)
class LiftSettings:
    """The lift stage: features and codebook on frozen geometry."""

    lift_iterations: int = -1
    """Steps of the lift stage; 0 = no lift, -1 = as many as draw each pixel of the labelled views three times, but at
    least 2,000. [ours] experiments.md"""
    lift_pixels: int = 8_192
    """Pixels drawn per step. [ours] released: 32,768 for Eq. 1, the whole image for the rest."""
    lift_pool: int = 0
    """Pixels of each view that steps draw from until each was drawn about twice; then others take their place. Their
    weights are kept. 0 = as many as fit. [ours] experiments.md"""
    lift_min_samples: int = 8
    """Pixels of every segment that a step draws at least, or all it has; 0 = its share of the area [released].
    [ours] experiments.md"""
    lift_min_weight: float = 1e-3
    """Blending weights below this are left out of the lift. [ours]"""
    lift_cache_mb: int = 1_536
    """MiB for the weights of the pools; where that is too little for one step's pixels of each view, every step
    computes its own. [ours] With it a room of 150 views of 384x384 trains in less than 3 GiB of GPU memory."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """When a run writes what."""

    save_iterations: tuple[int, ...] = ()
    """Geometry iterations after which the scene is also saved; the end always is [3DGS]."""
    test_iterations: tuple[int, ...] = (7_000, 30_000)
    """Geometry iterations after which held-out views are scored to the log [3DGS]."""
    checkpoint_iterations: tuple[int, ...] = ()
    """Steps, geometry and lift counted through, after which a checkpoint is kept [3DGS]."""
    checkpoint_minutes: float = 1.0
    """Minutes between two rolling checkpoints, of which only the last is kept; 0 = none. [ours]"""
    checkpoint_interval: int = 0
    """Steps between two rolling checkpoints, besides those by time; 0 = none. [ours]"""
    log_interval: int = 50
    """Steps between two log lines. [ours]"""
    logger: Literal["tensorboard", "none"] = "tensorboard"
    """Where scalars and images go, besides metrics.jsonl."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; `auto`: a CUDA device if there is one and the rasterizer was built for it."""
    data_device: Literal["auto", "cuda", "cpu", "disk"] = "auto"
    """Where photos and masks are kept; `auto`: on the GPU or in memory if they fill only a part of it, else on disk."""
    profile: bool = False
    """Measure where the time of a step goes: a table at the end, and profile.json."""
    quiet: bool = False
    """No progress bars [3DGS]."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings(Generic[M]):
    """Everything a run needs to be repeated. M: the settings of its method."""

    model_path: Path = Path()
    """Output folder (-m) [3DGS]."""
    preset: str = "unified_lift"
    """`unified_lift` (ours), `released` (the public code), `paper` (the text), a method's name, or a YAML file."""
    method_name: str = "unified_lift"
    """How objects are lifted (--method), a file of unified_lift/methods; its preset applies unless one is chosen."""
    schedule: Literal["staged", "joint"] = "staged"
    """Geometry first, then lift [ours]; or everything in one loop [paper, released]."""
    seed: int = 0
    """Seed of every random draw."""
    init_ply: Path | None = None
    """Start from this trained 3D Gaussian .ply of any trainer instead of points."""
    data: DataSettings = field(default_factory=DataSettings)
    geometry: GeometrySettings = field(default_factory=GeometrySettings)
    density: DensitySettings = field(default_factory=DensitySettings)
    lift: LiftSettings = field(default_factory=LiftSettings)
    method: M = field(default_factory=UnifiedLiftSettings)
    run: RunSettings = field(default_factory=RunSettings)

    def build_method(self, *, zero_id: ZeroId) -> Method:
        """Return the method of this run, not trained, for data in which id 0 means `zero_id`."""
        return method_entry(self.method_name).build(self.method, zero_id=zero_id, seed=self.seed)


def changed(settings: TrainSettings, changes: Mapping[str, Any], *, origin: str) -> TrainSettings:
    """Return `settings` with differences applied; another `method_name` among them brings that method's settings.

    Raises:
        UserError: As `merged`; no such method; `origin` is named.
    """
    name = changes.get("method_name", settings.method_name)
    if name != settings.method_name:
        try:
            settings = replace(settings, method_name=name, method=method_entry(name).settings())
        except UserError as error:
            raise UserError(f"{origin}: {error}") from None
    return merged(settings, changes, origin=origin)


def with_preset(settings: TrainSettings, preset: str) -> TrainSettings:
    """Return `settings` with the differences of a preset (a shipped name or a YAML file).

    A preset may begin with `extends: another`, whose differences come first.

    Raises:
        UserError: No such preset.
    """
    for path, content in reversed(list(preset_chain(preset))):
        settings = changed(settings, content, origin=str(path))
    return changed(settings, {"preset": preset}, origin=preset)
