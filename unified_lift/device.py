"""Where a run computes."""

import torch
from diff_gaussian_rasterization import backend_info

from unified_lift.errors import UserError


def chosen_device(wanted: str) -> torch.device:
    """Return the device for `auto`, `cpu` or `cuda`; a UserError says that there is no CUDA device."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UserError("--device cuda: torch sees no CUDA device; install a CUDA build of torch or use --device cpu")
    if wanted == "auto":
        built = backend_info().get("cuda") == "cuda"  # else tensors there would run on the slow torch reference
        return torch.device("cuda" if available and built else "cpu")
    return torch.device(wanted)


def require_rasterizer(rasterizer: str, device: torch.device) -> None:
    """Raise a UserError if `gsplat` is wanted and is missing or has no GPU."""
    if rasterizer == "ours":
        return
    if (problem := backend_info()["gsplat"]) != "gsplat":
        raise UserError(f"--rasterizer gsplat: {problem}")
    if device.type != "cuda":
        raise UserError(f"--rasterizer gsplat renders on a GPU, and this run is on {device}; use --device cuda")
