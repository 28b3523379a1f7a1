"""Where a run computes."""

from collections.abc import Mapping
from typing import Any

import torch
from diff_gaussian_rasterization import backend_info

from unified_lift.errors import UserError


def chosen_device(wanted: str, *, rasterizer: str = "ours") -> torch.device:
    """Return the device for `auto`, `cpu` or `cuda`; a UserError: it is missing, or `gsplat`, if wanted, is."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UserError("--device cuda: torch sees no CUDA device; install a CUDA build of torch or use --device cpu")
    if wanted == "auto":
        built = backend_info().get("cuda") == "cuda"  # else tensors there would run on the slow torch reference
        wanted = "cuda" if available and built else "cpu"
    if rasterizer != "ours" and (problem := backend_info()["gsplat"]) != "gsplat":
        raise UserError(f"--rasterizer gsplat: {problem}")
    if rasterizer != "ours" and wanted != "cuda":
        raise UserError(f"--rasterizer gsplat renders on a GPU, and this run is on {wanted}; use --device cuda")
    return torch.device(wanted)


def training_device(changes: Mapping[str, Any]) -> str:
    """Return the type of the device that trains by settings that a user gives, by name or in groups."""
    run = changes.get("run")
    wanted = changes.get("device", run.get("device") if isinstance(run, Mapping) else None) or "auto"
    return chosen_device(wanted).type if wanted in ("auto", "cpu", "cuda") else "cpu"  # a wrong word is told elsewhere
