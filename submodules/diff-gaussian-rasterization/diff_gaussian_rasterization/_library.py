"""Finds and loads the compiled kernels: plain C libraries, so that they fit any Python and any torch."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

_FILE = Path(__file__).with_name("_dgr_cpu.so")
_CUDA_FILE = Path(__file__).with_name("_dgr_cuda.so")
_CURES = {
    "cpu": ("C++ compiler", "install g++"),
    "cuda": ("CUDA compiler or no GPU", "install the CUDA toolkit (nvcc), or set DGR_CUDA_ARCH,"),
}


@functools.cache
def _attempt(kind: str) -> tuple[ctypes.CDLL | None, str | None]:
    file = _FILE if kind == "cpu" else _CUDA_FILE
    if not file.is_file():
        compiler, cure = _CURES[kind]
        return None, (
            f"the compiled kernels ({file.name}) are missing, because no {compiler} was found when the package was "
            f"installed; {cure} and then reinstall diff-gaussian-rasterization"
        )
    try:
        library = ctypes.CDLL(str(file))
    except OSError as error:
        return None, f"the compiled kernels cannot be loaded ({error}); reinstall diff-gaussian-rasterization"
    return library, None


def problem(kind: str = "cpu") -> str | None:
    """Return why the compiled kernels cannot be used, with the cure, or None when they can.

    Args:
        kind: "cpu" or "cuda".
    """
    return _attempt(kind)[1]


def load(kind: str = "cpu") -> ctypes.CDLL:
    """Return the library for "cpu" or "cuda".

    Raises:
        RuntimeError: It is missing or cannot be loaded; the message names the cure.
    """
    library, reason = _attempt(kind)
    if library is None:
        raise RuntimeError(reason)
    return library


def isa() -> str:
    """Return the instruction set that the CPU kernels chose on this machine."""
    function = load().dgr_isa
    function.restype = ctypes.c_char_p
    return function().decode()


def use_isa(name: str) -> bool:
    """Switch the CPU kernels to another instruction set, between renders; return whether this machine has it.

    Args:
        name: "avx512", "avx2" or "baseline".
    """
    function = load().dgr_use_isa
    function.restype, function.argtypes = ctypes.c_int, [ctypes.c_char_p]
    return bool(function(name.encode()))
