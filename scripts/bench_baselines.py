"""What bench_rasterizer.py lets compete: our rasterizer, gsplat and Mitsuba, each as a step on the same scene."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from bench_scenes import GEOMETRY, Scene
from diff_gaussian_rasterization.types import LOW_PASS, NEAR
from torch import Tensor


class Outcome(NamedTuple):
    """What a call gave.

    Attributes:
        maps: Rendered maps [1, H, W, .], colour first, then features.
        pairs: (tile, Gaussian) pairs, by its own tiles.
        gradients: Of every input, if asked.
    """

    maps: tuple[Tensor, ...]
    pairs: int
    gradients: dict[str, Tensor]


Step = Callable[[int], Outcome]  # of the view number


def outcome(scene: Scene, maps: tuple[Tensor, ...], pairs: int, inputs: dict[str, Tensor]) -> Outcome:
    """Return what a call gave, differentiated by the inputs, if there are any."""
    if not inputs:
        return Outcome(maps, pairs, {})
    incoming = scene.incoming(tuple(m.shape[-1] for m in maps))
    return Outcome(maps, pairs, dict(zip(inputs, torch.autograd.grad(maps, list(inputs.values()), incoming))))


def our_step(
    scene: Scene, backward: bool, *, implementation: str = "auto", moves: bool = False, antialiased: bool = False,
    absolute: bool = False,
) -> Step:  # fmt: skip
    """Return a step of one of our implementations; features move geometry only if `moves`.

    With `absolute` the statistic of density control is that of absolute gradients.
    """
    leaves, statistic = scene.leaves(backward), "absolute2d" if absolute else "means2d"

    def step(view: int) -> Outcome:
        watched = {statistic: scene.means.new_zeros(1, len(scene.means), 2).requires_grad_()} if backward else {}
        options = {"implementation": implementation, "features_move_geometry": moves, "antialiased": antialiased}
        out = scene.render(leaves, view, **watched, **options)
        maps = (out.image, out.features) if scene.dim else (out.image,)
        return outcome(scene, maps, out.meta.num_pairs, leaves | watched if backward else {})

    return step


def _gsplat_colors(sh: Tensor, means: Tensor, viewmat: Tensor, degree: int, visible: Tensor | None) -> Tensor:
    """Return the colours that harmonics show a camera, [1, N, 3]."""
    gsplat = importlib.import_module("gsplat")
    eye = torch.linalg.inv(viewmat)[:, None, :3, 3]
    return (gsplat.spherical_harmonics(degree, means - eye, sh[None], masks=visible) + 0.5).clamp(min=0)


def gsplat_step(scene: Scene, backward: bool, *, packed: bool) -> Step:
    """Return a step of gsplat that blends all channels in one call, so that features move geometry too."""
    gsplat = importlib.import_module("gsplat")
    leaves = scene.leaves(False)
    joined = scene.degree is None and scene.dim
    if joined:  # one table beforehand, so that no time is spent on joining
        leaves["colors"] = torch.cat([leaves.pop("colors"), leaves.pop("features")], -1)
    leaves = {name: value.requires_grad_(backward) for name, value in leaves.items()}

    def step(view: int) -> Outcome:
        viewmat, K = scene.camera(view)
        colors, degree = leaves["colors"], scene.degree
        if degree is not None and scene.dim:
            seen = _gsplat_colors(colors, leaves["means"], viewmat, degree, None)
            colors, degree = torch.cat([seen, leaves["features"][None]], -1), None
        image, _, meta = gsplat.rasterization(
            *(leaves[name] for name in GEOMETRY), colors, viewmat, K, scene.width, scene.height,
            near_plane=NEAR, packed=packed, sh_degree=degree,
        )  # fmt: skip
        inputs = leaves | {"means2d": meta["means2d"]} if backward else {}
        result = outcome(scene, (image,), meta["flatten_ids"].numel(), inputs)
        if joined and backward:
            table = result.gradients["colors"]
            result.gradients.update(colors=table[:, :3], features=table[:, 3:])
        return result

    return step


def gsplat_lists_step(scene: Scene, backward: bool) -> Step:
    """Return a step of gsplat that blends colour and features in two passes over one tile list; geometry stays."""
    gsplat = importlib.import_module("gsplat")
    leaves, num = scene.leaves(backward), len(scene.means)
    columns, rows = math.ceil(scene.width / 16), math.ceil(scene.height / 16)

    def step(view: int) -> Outcome:
        viewmat, K = scene.camera(view)
        boxes, centres, depths, conics, _ = gsplat.fully_fused_projection(
            leaves["means"], None, leaves["quats"], leaves["scales"], viewmat, K, scene.width, scene.height,
            eps2d=LOW_PASS, near_plane=NEAR, packed=False, opacities=leaves["opacities"],
        )  # fmt: skip
        _, keys, entries = gsplat.isect_tiles(centres, boxes, depths, 16, columns, rows)
        offsets = gsplat.isect_offset_encode(keys, 1, columns, rows)
        colors = leaves["colors"][None]
        if scene.degree is not None:
            seen = (boxes > 0).all(-1)
            colors = _gsplat_colors(leaves["colors"], leaves["means"], viewmat, scene.degree, seen)
        splats = (centres, conics, leaves["opacities"].expand(1, num))
        maps = []
        for values, (means2d, shapes, opacities) in (
            (colors, splats),
            (leaves["features"][None], (t.detach() for t in splats)),
        ):
            maps.append(
                gsplat.rasterize_to_pixels(
                    means2d, shapes, values, opacities, scene.width, scene.height, 16, offsets, entries
                )[0]
            )
        return outcome(scene, tuple(maps), entries.numel(), leaves | {"means2d": centres} if backward else {})

    return step


def mitsuba_step(scene: Scene) -> Step:
    """Return a step of Mitsuba's ray-traced volprim_rf_basic, forward and backward, plain colours only.

    It evaluates the same Gaussians along rays instead of projecting them, so the picture is alike but not equal.
    """
    import drjit
    import mitsuba
    import numpy

    mitsuba.set_variant("llvm_ad_rgb")
    wxyz = torch.nn.functional.normalize(scene.quats, dim=-1)

    def tensor(value: Tensor) -> object:
        return mitsuba.TensorXf(numpy.ascontiguousarray(value.numpy()))

    shape = {
        "type": "ellipsoidsmesh",
        "centers": tensor(scene.means),
        "scales": tensor(scene.scales),
        "quaternions": tensor(wxyz[:, [1, 2, 3, 0]]),
        "opacities": tensor(scene.opacities[:, None]),
        "sh_coeffs": tensor((scene.colors - 0.5) / 0.28209479),  # harmonics of degree 0
        "extent": 3.0,  # half axes of the ellipsoid in standard deviations
    }
    film = {"type": "hdrfilm", "width": scene.width, "height": scene.height, "rfilter": {"type": "box"}}
    loaded = mitsuba.load_dict(
        {
            "type": "scene",
            "integrator": {"type": "volprim_rf_basic", "max_depth": 128},
            "sensor": {
                "type": "perspective",
                "fov": float(2 * torch.rad2deg(torch.atan(0.5 * scene.width / scene.Ks[0, 0, 0]))),
                "to_world": mitsuba.ScalarTransform4f().look_at(origin=[0, 0, 0], target=[0, 0, 1], up=[0, -1, 0]),
                "film": film,
                "sampler": {"type": "independent", "sample_count": 1},
            },
            "primitives": shape,
        }
    )
    params = mitsuba.traverse(loaded)
    keys = ("primitives.data", "primitives.opacities", "primitives.sh_coeffs")
    incoming = tensor(scene.grad_maps[0, ..., :3])
    picture = torch.from_numpy(numpy.array(mitsuba.render(loaded, spp=16)))[None]

    def step(view: int) -> Outcome:
        for key in keys:
            drjit.enable_grad(params[key])
            drjit.set_grad(params[key], 0)
        params.update()
        image = mitsuba.render(loaded, params, spp=1)
        drjit.backward(drjit.sum(image * incoming, axis=None))
        drjit.eval([drjit.grad(params[key]) for key in keys])
        drjit.sync_thread()
        return Outcome((picture,), 0, {})

    return step
