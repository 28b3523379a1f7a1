"""Random scenes and the comparison of two implementations on them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import diff_gaussian_rasterization as dgr
import torch
from torch import Tensor

from . import tolerances

MAPS = ("image", "features", "alpha", "depth")
INPUTS = ("means", "quats", "scales", "opacities", "colors", "features", "backgrounds", "means2d")
GEOMETRY = {"means", "quats", "scales", "opacities", "means2d"}
SCALES = {"image": 1.5, "features": 4.0, "alpha": 1.5, "depth": 6.0}  # largest values of a map


@dataclass(frozen=True)
class Inputs:
    """Arguments of one render."""

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor
    features: Tensor | None
    viewmats: Tensor
    Ks: Tensor
    backgrounds: Tensor | None
    means2d: Tensor | None
    width: int
    height: int
    sh_degree: int | None
    absolute2d: Tensor | None = None


def random_inputs(
    seed: int, *, num: int = 300, width: int = 37, height: int = 29, dim: int = 5, sh_degree: int | None = None,
    cameras: int = 1, dtype: torch.dtype = torch.float32,
) -> Inputs:  # fmt: skip
    """Gaussians before slightly shifted cameras with an off-centre principal point; some lie behind or outside."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    focal = 1.2 * width
    viewmats = torch.eye(4, dtype=torch.float64).repeat(cameras, 1, 1)
    viewmats[:, :3, 3] = 0.1 * normal(cameras, 3)
    Ks = torch.tensor([[focal, 0, 0.44 * width], [0, 0.9 * focal, 0.55 * height], [0, 0, 1]], dtype=torch.float64)
    spread = torch.tensor([0.9, 0.9, 0.9], dtype=torch.float64)
    offset = torch.tensor([0, 0, 2.5], dtype=torch.float64)
    values = {
        "means": normal(num, 3) * spread + offset,
        "quats": normal(num, 4),
        "scales": torch.exp(0.6 * normal(num, 3) - 2.6),
        "opacities": torch.rand(num, generator=g, dtype=torch.float64),
        "colors": 0.5 + 0.4 * normal(num, 3) if sh_degree is None else 0.4 * normal(num, 16, 3),
        "features": normal(num, dim) if dim else None,
        "viewmats": viewmats,
        "Ks": Ks.repeat(cameras, 1, 1),
        "backgrounds": torch.rand(cameras, 3, generator=g, dtype=torch.float64),
        "means2d": torch.zeros(cameras, num, 2, dtype=torch.float64),
    }
    cast = {name: None if value is None else value.to(dtype) for name, value in values.items()}
    return Inputs(**cast, width=width, height=height, sh_degree=sh_degree)


def render(
    x: Inputs, implementation: str, *, features_move_geometry: bool = False, antialiased: bool = False
) -> dgr.RasterOutput:
    """Render the inputs with one implementation."""
    return dgr.rasterize(
        x.means, x.quats, x.scales, x.opacities, x.colors, x.features, x.viewmats, x.Ks, x.width, x.height,
        sh_degree=x.sh_degree, backgrounds=x.backgrounds, means2d=x.means2d, absolute2d=x.absolute2d,
        features_move_geometry=features_move_geometry, antialiased=antialiased, implementation=implementation,
    )  # fmt: skip


def with_gradients(x: Inputs) -> Inputs:
    """Copy of the inputs whose differentiable tensors are leaves."""
    leaves = {n: getattr(x, n) for n in INPUTS}
    return replace(x, **{n: None if t is None else t.clone().requires_grad_() for n, t in leaves.items()})


def loss_of(out: dgr.RasterOutput, seed: int, maps: tuple[str, ...] = MAPS) -> Tensor:
    """Random linear function of the rendered maps."""
    total = out.image.new_zeros(())
    for name in maps:
        # a generator of its own for each map: the draw for one must not depend on the width of another
        g = torch.Generator().manual_seed(seed + 1000 * (1 + out._fields.index(name)))
        value = getattr(out, name)
        total = total + (value * torch.randn(value.shape, generator=g).to(value)).sum()
    return total


def gradients(
    x: Inputs, implementation: str, seed: int, *, maps: tuple[str, ...] = MAPS, **options: object
) -> tuple[dgr.RasterOutput, dict[str, Tensor]]:
    """Render and differentiate a random loss by every input."""
    x = with_gradients(x)
    out = render(x, implementation, **options)
    loss_of(out, seed, maps).backward()
    return out, {n: getattr(x, n).grad for n in INPUTS if getattr(x, n) is not None}


def assert_same_map(name: str, expected: Tensor, actual: Tensor, *, scale: float, seed: int) -> None:
    """Compare a rendered map, allowing rare flips at the alpha cut; refuse a comparison of zeros."""
    assert bool((expected != 0).any()), f"seed {seed}: {name} is all zeros, the comparison says nothing"
    error = (expected - actual).detach().abs()
    assert float(error.max()) <= tolerances.CUT_ABSOLUTE * scale, f"seed {seed}: {name} differs by {float(error.max())}"
    flipped = float((error > tolerances.MAP_ABSOLUTE * max(scale, 1.0)).double().mean())
    assert flipped <= tolerances.CUT_FRACTION, f"seed {seed}: {name} differs in a share of {flipped}"


def assert_same_gradient(name: str, expected: Tensor, actual: Tensor, *, seed: int) -> None:
    """Compare gradient tensors by relative 2-norm; refuse a comparison of zeros."""
    size = expected.norm().item()
    assert size > 0, f"seed {seed}: gradient of {name} is all zeros, the comparison says nothing"
    error = (expected - actual).norm().item() / size
    assert error <= tolerances.GRADIENT_RELATIVE, f"seed {seed}: gradient of {name} differs by {error} of its norm"


def assert_same_result(
    expected: tuple[dgr.RasterOutput, dict[str, Tensor]],
    actual: tuple[dgr.RasterOutput, dict[str, Tensor]],
    seed: int,
    *,
    maps: tuple[str, ...] = MAPS,
    features_move_geometry: bool = False,
    saturated: bool = False,
    other_radii: float = 1,
) -> None:
    """Compare all maps, the gradients of a loss on `maps`, and radii; inputs that the loss can't reach get no gradient.

    `saturated`: too little transmittance is left to compare gradients of the background and of positions.
    """
    reached = {"features"} if "features" in maps else set()
    if maps != ("features",) or features_move_geometry:
        reached |= GEOMETRY
    if "image" in maps:
        reached |= {"colors", "backgrounds"}
    for name in MAPS:
        value = getattr(expected[0], name)
        if value.numel():
            assert_same_map(name, value, getattr(actual[0], name).cpu(), scale=SCALES[name], seed=seed)
    for name, gradient in expected[1].items():
        if name not in reached:
            for other in (gradient, actual[1][name]):
                assert other is None or not bool((other != 0).any()), f"seed {seed}: {name} has a gradient"
        elif not saturated or name not in ("backgrounds", "means2d"):
            assert_same_gradient(name, gradient, actual[1][name].cpu(), seed=seed)
    assert int((expected[0].meta.radii != actual[0].meta.radii.cpu()).sum()) <= other_radii


def assert_agrees(
    x: Inputs,
    implementation: str,
    seed: int,
    *,
    maps: tuple[str, ...] = MAPS,
    features_move_geometry: bool = False,
    antialiased: bool = False,
    **options: bool | float,
) -> tuple[dgr.RasterOutput, dgr.RasterOutput]:
    """Compare an implementation with the definition, values and gradients; return the outputs of both."""
    both = {"maps": maps, "features_move_geometry": features_move_geometry}
    expected, actual = (
        gradients(x, name, seed, **both, antialiased=antialiased) for name in ("reference", implementation)
    )
    assert_same_result(expected, actual, seed, **both, **options)
    return expected[0], actual[0]
