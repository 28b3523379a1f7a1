"""Finds and loads the compiled kernels: a plain C library, so that it fits any Python and any torch."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

_FILE = Path(__file__).with_name("_dgr_cpu.so")


@functools.cache
def _attempt() -> tuple[ctypes.CDLL | None, str | None]:
    if not _FILE.is_file():
        return None, (
            f"the compiled kernels ({_FILE.name}) are missing, because no C++ compiler was found when the package was "
            "installed; install g++ and then reinstall diff-gaussian-rasterization"
        )
    try:
        library = ctypes.CDLL(str(_FILE))
    except OSError as error:
        return None, f"the compiled kernels cannot be loaded ({error}); reinstall diff-gaussian-rasterization"
    return library, None


def problem() -> str | None:
    """Return why the compiled kernels cannot be used, with the cure, or None when they can."""
    return _attempt()[1]


def load() -> ctypes.CDLL:
    """Return the library.

    Raises:
        RuntimeError: It is missing or cannot be loaded; the message names the cure.
    """
    library, reason = _attempt()
    if library is None:
        raise RuntimeError(reason)
    return library


def isa() -> str:
    """Return the instruction set that the kernels chose on this machine."""
    function = load().dgr_isa
    function.restype = ctypes.c_char_p
    return function().decode()


def use_isa(name: str) -> bool:
    """Switch the kernels to another instruction set, between renders; return whether this machine has it.

    Args:
        name: "avx512", "avx2" or "baseline".
    """
    function = load().dgr_use_isa
    function.restype, function.argtypes = ctypes.c_int, [ctypes.c_char_p]
    return bool(function(name.encode()))
