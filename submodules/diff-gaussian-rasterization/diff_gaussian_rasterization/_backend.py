"""Choice of implementation: which module carries out a call, and why.

An implementation is a module with the functions rasterize, pixel_weights, blend, splat, ssim and adam_step, with the
checked arguments of `reference.py`. Adding one means adding a module and a line in `_load`.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from types import ModuleType

import torch
from torch import Tensor

from . import _library, reference

IMPLEMENTATIONS = ("auto", "reference", "cpu", "cuda", "gsplat")
_warned: set[str] = set()


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=4)


def _load(name: str) -> ModuleType:
    if name == "reference":
        return reference
    if name == "gsplat":
        if _gsplat_problem() is not None:
            raise RuntimeError(_gsplat_problem())
        from . import gsplat_peer

        return gsplat_peer
    _library.load(name)  # raises with the reason when the kernels are missing
    if name == "cuda":
        from . import cuda

        return cuda
    from . import cpu

    return cpu


def _gsplat_problem() -> str | None:
    """Return why the gsplat package cannot be used, with the cure, or None when it can."""
    if importlib.util.find_spec("gsplat") is None:
        return "the package gsplat is missing: pip install gsplat==1.5.3"
    return None if torch.cuda.is_available() else "gsplat needs an NVIDIA GPU, and torch sees none"


def _automatic(tensor: Tensor) -> tuple[str, str]:
    """Return (implementation, reason) for a tensor; the reason is empty when nothing is lost by the choice."""
    if tensor.dtype == torch.float64:
        return "reference", ""  # only the definition computes in double precision
    kind = tensor.device.type
    if kind not in ("cpu", "cuda"):
        return "reference", f"no compiled kernels for device '{kind}'"
    if _library.problem(kind) is not None:
        return "reference", str(_library.problem(kind))
    return kind, ""


def requested(implementation: str) -> str:
    """Return the implementation asked for, after the debugging variable DGR_IMPLEMENTATION had its say.

    Raises:
        ValueError: The name is unknown.
    """
    name = os.environ.get("DGR_IMPLEMENTATION", "auto") if implementation == "auto" else implementation
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {', '.join(IMPLEMENTATIONS)}, got '{name}'")
    return name


def select(implementation: str, tensor: Tensor) -> ModuleType:
    """Return the module that carries out a call on tensors like `tensor`.

    "auto" takes the compiled kernels where they exist; when it has to fall back to the slow definition for want of
    them it warns once with the reason. An implementation asked for by name never falls back.

    Raises:
        ValueError: Unknown name, or the named implementation cannot take this dtype or device.
        RuntimeError: The compiled kernels were asked for by name and cannot be loaded.
    """
    name = requested(implementation)
    if name == "auto":
        name, reason = _automatic(tensor)
        if reason:
            _warn_once(f"diff_gaussian_rasterization runs its slow torch reference: {reason}")
        return _load(name)
    kind = "cpu" if name == "cpu" else "cuda"
    if name != "reference" and (tensor.dtype != torch.float32 or tensor.device.type != kind):
        place = "the CPU" if kind == "cpu" else "an NVIDIA GPU"
        raise ValueError(
            f"implementation='{name}' needs float32 tensors on {place}, got {tensor.dtype} on {tensor.device}; "
            "use implementation='auto' or 'reference'"
        )
    return _load(name)


def backend_info() -> dict[str, object]:
    """Return what float32 CPU tensors run on: implementation, isa, threads and the reason for the choice.

    The entry cuda says the same of tensors on a GPU: "cuda", or why they would run on the reference. The entry gsplat
    says whether that implementation can be asked for: "gsplat", or why not.
    """
    name = requested("auto")
    reason = "asked for by DGR_IMPLEMENTATION"
    if name == "auto":
        name, reason = _automatic(torch.empty(0))
        reason = reason or "compiled kernels are loaded"
    isa = _library.isa() if name == "cpu" else "torch"
    return {
        "implementation": name, "isa": isa, "threads": torch.get_num_threads(), "reason": reason,
        "cuda": _library.problem("cuda") or "cuda", "gsplat": _gsplat_problem() or "gsplat",
    }  # fmt: skip
