"""Where a run computes."""

from __future__ import annotations

from dataclasses import replace

import torch
from diff_gaussian_rasterization import backend_info

from unified_lift.types import Scene, UserError, View


def chosen_device(wanted: str) -> torch.device:
    """Return the device for `auto`, `cpu` or `cuda`.

    Raises:
        UserError: `cuda` is wanted and there is none.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UserError("--device cuda: torch sees no CUDA device; install a CUDA build of torch or use --device cpu")
    if wanted == "auto":
        built = backend_info().get("cuda") == "cuda"  # else tensors there would run on the slow torch reference
        return torch.device("cuda" if available and built else "cpu")
    return torch.device(wanted)


def require_rasterizer(rasterizer: str, device: torch.device) -> None:
    """Raise if `ours` or `gsplat` cannot render on a device.

    Raises:
        UserError: gsplat is wanted and is missing or has no GPU.
    """
    if rasterizer == "ours":
        return
    problem = backend_info()["gsplat"]
    if problem != "gsplat":
        raise UserError(f"--rasterizer gsplat: {problem}")
    if device.type != "cuda":
        raise UserError(f"--rasterizer gsplat renders on a GPU, and this run is on {device}; use --device cuda")


def on_device(scene: Scene, device: torch.device) -> Scene:
    """Return the scene with photos (uint8) and segment ids (int32) on `device`."""
    if device.type == "cpu":
        return scene

    def moved(views: tuple[View, ...]) -> tuple[View, ...]:
        return tuple(
            replace(
                view,
                image=view.image.to(device),
                segments=None if view.segments is None else view.segments.to(device),
                valid=None if view.valid is None else view.valid.to(device),
            )
            for view in views
        )

    return replace(scene, train=moved(scene.train), test=moved(scene.test))
