"""The scenes of the benchmarks: random Gaussians by name, or a trained model with its cameras."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from diff_gaussian_rasterization import RasterOutput, rasterize
from torch import Tensor

MOST_OPAQUE = 0.989  # of trained scenes here: gsplat caps alpha at 0.999, we at 0.99
GEOMETRY = ("means", "quats", "scales", "opacities")


@dataclass(frozen=True)
class Scene:
    """Gaussians, cameras and the gradients that come in from the maps, all on one device."""

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor  # [N, 3], or harmonics [N, K, 3] if `degree` is given
    features: Tensor  # [N, D]; D may be 0
    viewmats: Tensor  # [V, 4, 4]
    Ks: Tensor  # [V, 3, 3]
    width: int
    height: int
    degree: int | None
    grad_maps: Tensor  # [1, H, W, 3 + D]

    @property
    def dim(self) -> int:
        return self.features.shape[1]

    @property
    def num_views(self) -> int:
        return len(self.viewmats)

    def leaves(self, backward: bool) -> dict[str, Tensor]:
        """Return copies of what can be differentiated."""
        names = (*GEOMETRY, "colors", *(["features"] if self.dim else []))
        return {name: getattr(self, name).clone().requires_grad_(backward) for name in names}

    @functools.cached_property
    def _incoming(self) -> dict[tuple[int, ...], tuple[Tensor, ...]]:
        return {}

    def incoming(self, channels: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Return `grad_maps` cut into maps of so many channels, each contiguous as a loss would leave it."""
        if channels not in self._incoming:
            self._incoming[channels] = tuple(part.contiguous() for part in self.grad_maps.split(channels, -1))
        return self._incoming[channels]

    def camera(self, view: int) -> tuple[Tensor, Tensor]:
        """Return viewmats [1, 4, 4] and Ks [1, 3, 3] of a view, counted round and round."""
        index = view % self.num_views
        return self.viewmats[index : index + 1], self.Ks[index : index + 1]

    def render(self, leaves: dict[str, Tensor], view: int, **options: object) -> RasterOutput:
        """Render what `leaves` returned with one of our implementations."""
        return rasterize(
            *(leaves[name] for name in GEOMETRY), leaves["colors"], leaves.get("features"),
            *self.camera(view), self.width, self.height, sh_degree=self.degree, **options,
        )  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Random Gaussians in a frustum: how many, how large, seen how."""

    num: int
    width: int
    height: int
    dim: int = 0  # feature width
    degree: int | None = None  # of the harmonics; None = plain colours
    size: float = 1e-3  # median sigma / depth of a million; with fewer they grow, so that coverage stays
    opacity: tuple[float, float] = (0.1, 0.9)
    depth: tuple[float, float] = (2, 8)
    overscan: float = 1.35  # times the frustum: about 55 % are in view
    views: int = 8


def _small(num: int, width: int, height: int, dim: int = 0, degree: int | None = None) -> Case:
    """One view with nearly all in it: about 27 blends per pixel at 10k and 160x120."""
    return Case(num, width, height, dim, degree, size=0.0118 / 13, depth=(2, 6), overscan=1.1, views=1)


QUICK_CASES = {"500_48x32_rgb": _small(500, 48, 32), "500_48x32_rgb16": _small(500, 48, 32, 16)}
CPU_CASES = {
    f"{num}k_{width}x{height}_rgb{dim or ''}": _small(1000 * num, width, height, dim)
    for num in (10, 50)
    for width, height in ((160, 120), (400, 300))
    for dim in (0, 16)
} | {"60k_256x256_sh3": _small(60_000, 256, 256, 0, 3)}
# The last two have six million (tile, Gaussian) pairs, for which the floors of kernels were counted.
_MANY_PAIRS = functools.partial(Case, 1_000_000, 1296, 840, size=5e-3, opacity=(0.5, 0.95))
GPU_CASES = {
    "140k_rgb": Case(140_000, 1296, 840),
    "140k_rgb16": Case(140_000, 1296, 840, 16),
    "1M_rgb": Case(1_000_000, 1296, 840),
    "1M_rgb16": Case(1_000_000, 1296, 840, 16),
    "1M_sh3": Case(1_000_000, 1296, 840, 0, 3),
    "1M_sh3_16": Case(1_000_000, 1296, 840, 16, 3),
    "3M_rgb": Case(3_000_000, 1296, 840),
    "3M_rgb16": Case(3_000_000, 1296, 840, 16),
    "1M_384x384_rgb": Case(1_000_000, 384, 384),
    "1M_384x384_rgb16": Case(1_000_000, 384, 384, 16),
    "1M_1920x1080_rgb": Case(1_000_000, 1920, 1080),
    "1M_1920x1080_rgb16": Case(1_000_000, 1920, 1080, 16),
    "1M_6M_pairs_rgb": _MANY_PAIRS(),
    "1M_6M_pairs_rgb16": _MANY_PAIRS(dim=16),
}
CASES = QUICK_CASES | CPU_CASES | GPU_CASES


def random_scene(case: Case, device: torch.device, *, seed: int = 0) -> Scene:
    """Draw a case; its views turn by 0.02 radians each, so that no call finds the last one's data in the cache."""
    g = torch.Generator().manual_seed(seed)
    num, (nearest, farthest), (faintest, opaquest) = case.num, case.depth, case.opacity
    depth = nearest + (farthest - nearest) * torch.rand(num, generator=g)
    focal = 0.8 * case.width
    x = (torch.rand(num, generator=g) - 0.5) * case.overscan * case.width / focal * depth
    y = (torch.rand(num, generator=g) - 0.5) * case.overscan * case.height / focal * depth
    spread = torch.exp(0.5 * torch.randn(num, 3, generator=g))
    colors = (num, 3) if case.degree is None else (num, 16, 3)
    angles = 0.02 * torch.arange(case.views)
    viewmats = torch.eye(4).repeat(case.views, 1, 1)
    viewmats[:, 0, 0], viewmats[:, 2, 2] = torch.cos(angles), torch.cos(angles)
    viewmats[:, 0, 2], viewmats[:, 2, 0] = torch.sin(angles), -torch.sin(angles)
    K = torch.tensor([[focal, 0, case.width / 2], [0, focal, case.height / 2], [0, 0, 1.0]])
    values = {
        "means": torch.stack([x, y, depth], -1),
        "quats": torch.randn(num, 4, generator=g),
        "scales": case.size * (1_000_000 / num) ** 0.5 * spread * depth[:, None],
        "opacities": faintest + (opaquest - faintest) * torch.rand(num, generator=g),
        "colors": torch.rand(colors, generator=g) * (1.0 if case.degree is None else 0.3),
        "features": torch.randn(num, case.dim, generator=g),
        "viewmats": viewmats,
        "Ks": K.repeat(case.views, 1, 1),
        "grad_maps": torch.randn(1, case.height, case.width, 3 + case.dim, generator=g),
    }
    moved = {name: value.to(device) for name, value in values.items()}
    return Scene(**moved, width=case.width, height=case.height, degree=case.degree)


def trained_scene(ply: Path, cameras: Path, dim: int, device: torch.device, *, views: int = 8) -> Scene:
    """Read a 3DGS .ply and up to `views` cameras of one size, spread over its cameras.json.

    Features are random: their values change no timing. The file holds no principal point, so the image centre is it.
    """
    from unified_lift.model.ply import read_gaussians

    gaussians = read_gaussians(ply)
    entries = json.loads(cameras.read_text())
    width, height = entries[0]["width"], entries[0]["height"]
    entries = [e for e in entries if (e["width"], e["height"]) == (width, height)]
    entries = [entries[i * len(entries) // views] for i in range(views)] if len(entries) > views else entries
    viewmats, Ks = torch.eye(4).repeat(len(entries), 1, 1), torch.eye(3).repeat(len(entries), 1, 1)
    for i, entry in enumerate(entries):
        rotation = torch.tensor(entry["rotation"], dtype=torch.float64).T
        viewmats[i, :3, :3] = rotation
        viewmats[i, :3, 3] = -rotation @ torch.tensor(entry["position"], dtype=torch.float64)
        Ks[i] = torch.tensor([[entry["fx"], 0, width / 2], [0, entry["fy"], height / 2], [0, 0, 1]])
    g = torch.Generator().manual_seed(0)
    values = {
        "means": gaussians.means,
        "quats": gaussians.quats,
        "scales": gaussians.scales,
        "opacities": gaussians.opacities.clamp(max=MOST_OPAQUE),
        "colors": gaussians.sh,
        "features": torch.randn(len(gaussians), dim, generator=g),
        "viewmats": viewmats,
        "Ks": Ks,
        "grad_maps": torch.randn(1, height, width, 3 + dim, generator=g),
    }
    moved = {name: value.detach().contiguous().to(device) for name, value in values.items()}
    return Scene(**moved, width=width, height=height, degree=gaussians.sh_degree)
