"""The module that carries out a call, by the name of an implementation.

An implementation is a module with the functions rasterize, pixel_weights, blend and scatter, which take the checked
arguments of `api.py`, and perhaps a TrainingStep. Adding one means adding a module, and its name in `native`.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

import torch
from torch import Tensor

from . import native


def select(implementation: str, tensor: Tensor) -> ModuleType:
    """Return the module for a call on tensors like `tensor`; the choice and its errors are those of `native.choose`.

    Raises:
        RuntimeError: The implementation was asked for by name and cannot be loaded.
    """
    name = native.choose(implementation, tensor)
    problems = {"cpu": native.CPU.problem, "cuda": native.CUDA.problem, "gsplat": gsplat_problem}
    problem = problems[name]() if name in problems else None
    if problem is not None:
        raise RuntimeError(problem)
    return importlib.import_module(f"{__package__}.{'gsplat_backend' if name == 'gsplat' else name}")


def gsplat_problem() -> str | None:
    """Return why the gsplat package cannot be used, with the fix, or None when it can."""
    if importlib.util.find_spec("gsplat") is None:
        return "the package gsplat is missing: pip install gsplat==1.5.3"
    return None if torch.cuda.is_available() else "gsplat needs an NVIDIA GPU, and torch sees none"


def backend_info() -> dict[str, object]:
    """Return what float32 CPU tensors run on: implementation, isa, threads and the reason for the choice.

    The entry cuda says the same of tensors on a GPU: "cuda", or why they would run on the reference. The entry gsplat
    says whether that implementation can be asked for: "gsplat", or why not.
    """
    name = native.requested("auto")
    reason = "asked for by DGR_IMPLEMENTATION"
    if name == "auto":
        name, reason = native.automatic(torch.empty(0))
        reason = reason or "compiled kernels are loaded"
    isa = native.isa() if name == "cpu" else "torch"
    return {
        "implementation": name, "isa": isa, "threads": torch.get_num_threads(), "reason": reason,
        "cuda": native.CUDA.problem() or "cuda", "gsplat": gsplat_problem() or "gsplat",
    }  # fmt: skip
