"""How far two implementations of the rasterizer are apart on a trained scene: maps, and gradients of every input.

    python scripts/compare_implementations.py -m output/MODEL                  # the CPU's and the GPU's kernels
    python scripts/compare_implementations.py -m output/MODEL --second reference

A pixel may differ by more than rounding where one alpha falls on the other side of 1/255, or the transmittance on the
other side of 1e-4, in one program alone. Such pixels are counted and checked: the Gaussians that make them up must
differ between the two, or when all opacities change by a ten thousandth. They carry no loss when gradients are
compared. A gradient may differ by a thousandth; that of the rotations, ill-conditioned where Gaussians are needles,
also by five times what the last bit of the inputs changes in the first program. Exit code 1: another pixel differs,
or a gradient by more.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import diff_gaussian_rasterization as dgr
import torch
from bench_scenes import GEOMETRY, Scene, trained_scene
from torch import Tensor

from unified_lift.modelfolder.outputs import iteration_dir, saved_iterations

MAP_ERROR, GRADIENT_ERROR = 1e-4, 1e-3
NEAR_A_CUT = 1e-4  # of an opacity
ROUNDINGS, LAST_BIT, TIMES_ROUNDING = 3, 2.0**-23, 5


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model_path", type=Path, required=True)
    parser.add_argument("--first", default="cpu")
    parser.add_argument("--second", default="cuda", help="an implementation of diff_gaussian_rasterization")
    parser.add_argument("--channels", type=int, default=16, help="random features of each Gaussian")
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    iterations = saved_iterations(args.model_path)
    if not iterations:
        parser.error(f"{args.model_path}: no point_cloud/iteration_<N> there; train the scene first")
    ply = iteration_dir(args.model_path, iterations[-1]) / "point_cloud.ply"
    cameras = args.model_path / "cameras.json"
    pair = []
    for name in (args.first, args.second):
        device = torch.device("cuda" if name == "cuda" else "cpu")
        pair.append((name, trained_scene(ply, cameras, args.channels, device, views=args.views)))
    rows = [compare(pair, view) for view in range(pair[0][1].num_views)]
    print(f"{ply}: {len(pair[0][1].means)} Gaussians, {args.first} against {args.second}")
    for row in rows:
        print(
            f"view {row['view']}: maps differ by {row['map_error']:.1e}, apart from {row['cut_pixels']} of "
            f"{row['pixels']} pixels at a cut (by {row['cut_error']:.1e}) and "
            f"{row['unexplained']} unexplained; gradients by "
            + ", ".join(f"{name} {error:.1e}" for name, error in row["gradient_errors"].items())
            + f"; the last bit of the inputs changes quats by {row['quats_by_rounding']:.1e}"
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    return int(not all(map(agrees, rows)))


def agrees(row: dict[str, object]) -> bool:
    """Return whether nothing in a row of `compare` is beyond its bound."""
    bounds = dict.fromkeys(row["gradient_errors"], GRADIENT_ERROR)
    bounds["quats"] = max(GRADIENT_ERROR, TIMES_ROUNDING * row["quats_by_rounding"])
    return not row["unexplained"] and all(error < bounds[n] for n, error in row["gradient_errors"].items())


def compare(pair: list[tuple[str, Scene]], view: int) -> dict[str, object]:
    """Compare one view of the same scene, given for each implementation on the device where it runs."""
    leaves = [scene.leaves(True) for _, scene in pair]
    outs = [scene.render(own, view, implementation=name) for (name, scene), own in zip(pair, leaves)]
    error = torch.zeros(outs[0].image.shape[:3])
    for name in ("image", "features", "alpha", "depth"):
        first, second = (getattr(out, name).detach().cpu() for out in outs)
        if first.numel():
            apart = (first - second).abs() / max(1.0, float(first.abs().max()))
            error = torch.maximum(error, apart if apart.ndim == 3 else apart.amax(-1))
    cut = (error > MAP_ERROR)[0]
    grads = [gradients(scene, out, own, cut) for (_, scene), out, own in zip(pair, outs, leaves)]
    explained = is_at_a_cut(pair, view, cut.nonzero())
    return {
        "view": view, "pixels": cut.numel(), "map_error": float(error[0][~cut].max()),
        "cut_pixels": int(explained.sum()), "cut_error": float(error[0][cut].max()) if cut.any() else 0.0,
        "unexplained": int((~explained).sum()),
        "gradient_errors": relative_errors(*grads),
        "quats_by_rounding": quats_by_rounding(pair[0], view, cut, grads[0]),
    }  # fmt: skip


def relative_errors(right: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, float]:
    return {name: float((right[name] - other[name]).norm() / right[name].norm()) for name in right}


def quats_by_rounding(which: tuple[str, Scene], view: int, cut: Tensor, right: dict[str, Tensor]) -> float:
    """Return how far their gradient moves when every number of the geometry changes by its last bit; the worst try."""
    (name, scene), worst = which, 0.0
    for seed in range(ROUNDINGS):
        generator = torch.Generator().manual_seed(seed)
        leaves = scene.leaves(True)
        with torch.no_grad():
            for key in GEOMETRY:
                signs = 2 * torch.randint(2, leaves[key].shape, generator=generator) - 1
                leaves[key] *= 1 + LAST_BIT * signs.to(leaves[key].device)
        moved = gradients(scene, scene.render(leaves, view, implementation=name), leaves, cut)
        worst = max(worst, relative_errors(right, moved)["quats"])
    return worst


def gradients(scene: Scene, out: dgr.RasterOutput, leaves: dict[str, Tensor], cut: Tensor) -> dict[str, Tensor]:
    """Return the gradients of all inputs for one random loss of the maps, in which cut pixels have no part."""
    maps = (out.image, out.features) if scene.dim else (out.image,)
    kept = (~cut).to(out.image.device)[None, ..., None]
    incoming = [part * kept for part in scene.incoming(tuple(m.shape[-1] for m in maps))]
    found = torch.autograd.grad(maps, list(leaves.values()), incoming)
    return {name: gradient.cpu() for name, gradient in zip(leaves, found)}


def is_at_a_cut(pair: list[tuple[str, Scene]], view: int, rows: Tensor) -> Tensor:
    """Return for pixels [P, 2] (row, column) whether a rounding can change which Gaussians make them up, bool [P]."""
    fainter, denser = (contributors(*pair[0], view, rows, 1 + change) for change in (-NEAR_A_CUT, NEAR_A_CUT))
    first, second = (contributors(name, scene, view, rows, 1) for name, scene in pair)
    return torch.tensor([a != b or c != d for a, b, c, d in zip(first, second, fainter, denser)], dtype=torch.bool)


def contributors(name: str, scene: Scene, view: int, rows: Tensor, factor: float) -> list[list[int]]:
    """Return the Gaussians of each pixel, front to back, with all opacities times `factor`."""
    viewmat, K = (t[0] for t in scene.camera(view))
    geometry, pixels = (scene.means, scene.quats, scene.scales, scene.opacities * factor), rows.flip(1)
    weights = dgr.pixel_weights(
        *geometry, viewmat, K, scene.width, scene.height, pixels.to(scene.means.device), implementation=name
    )
    ids, ends = weights.gaussian_ids.tolist(), weights.offsets.tolist()
    return [ids[begin:end] for begin, end in zip(ends, ends[1:])]


if __name__ == "__main__":
    sys.exit(main())
