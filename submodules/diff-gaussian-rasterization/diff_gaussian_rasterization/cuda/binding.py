"""What all entries into the CUDA library share: the library itself, its errors, addresses, and the shared structs.

The structs mirror csrc/cuda/dgr_cuda.h field by field. All memory comes from torch's caching allocator, all work goes
to torch's current stream.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from ctypes import Structure, c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from .._library import load

_library = load("cuda")
_library.dgr_cuda_error.restype, _library.dgr_cuda_error.argtypes = ctypes.c_char_p, [c_int32]

PLACE = [c_int32, c_void_p]
"""Argument types of a device and a stream, the last arguments of many functions."""


class Scene(Structure):
    """One camera and the Gaussians."""

    _fields_ = [
        ("n", c_int64),
        *((name, c_void_p) for name in ("means", "quats", "scales", "opacities", "colors", "sh_rest", "features")),
        *((name, c_void_p) for name in ("viewmat", "intrinsics", "background", "means2d")),
        ("near_z", c_float),
        *((name, c_int32) for name in ("sh_coeffs", "sh_degree", "feature_dim", "width", "height")),
        *((name, c_int32) for name in ("features_move_geometry", "device", "raw")),
        ("stream", c_void_p),
    ]


class Frame(Structure):
    """What forward leaves behind for backward and for pixel weights."""

    _fields_ = [
        *((name, c_void_p) for name in ("splats", "radii", "centres", "tile_begin", "list", "last", "moments")),
        *((name, c_void_p) for name in ("chunk_begin", "chunk_tile", "states", "partials")),
        ("chunks", c_int64),
    ]


class Memory:
    """Working memory by name. A part is given again until more is asked of it, then it is replaced by a larger one."""

    def __init__(self, device: torch.device, *, slack: float = 1.0) -> None:
        """Start empty; `slack` > 1 asks for more than needed, where the need changes from call to call."""
        self.device, self.slack = device, slack
        self.parts: dict[str, Tensor] = {}
        self.num_pairs = -1  # for which tile lists have room

    def take(self, name: str, num_bytes: int) -> int:
        """Return the address of at least `num_bytes` bytes, aligned to 256."""
        part = self.parts.get(name)
        if part is None or part.numel() < num_bytes:
            self.parts.pop(name, None)  # before the new one is asked for
            part = torch.empty(max(int(num_bytes * self.slack), 1), dtype=torch.uint8, device=self.device)
            self.parts[name] = part
        return part.data_ptr()


def bind(signatures: Mapping[str, list], *, silent: tuple[str, ...] = ()) -> ctypes.CDLL:
    """Return the library after declaring argument types, so that ctypes converts Python numbers to the right width.

    Args:
        signatures: Argument types of each function.
        silent: The functions among them that return nothing; the others return a cudaError_t.
    """
    for name, arguments in signatures.items():
        function = getattr(_library, name)
        function.argtypes = arguments
        if name in silent:
            function.restype = None
    return _library


def check(status: int) -> None:
    """Raise what a call reported.

    Raises:
        RuntimeError: The status is not 0.
    """
    if status != 0:
        raise RuntimeError(f"the CUDA kernels failed: {_library.dgr_cuda_error(status).decode()}")


def address(tensor: Tensor | None) -> int | None:
    """Return where a tensor's memory begins."""
    return None if tensor is None else tensor.data_ptr()


def row(tensor: Tensor | None, index: int) -> int | None:
    """Return the address of tensor[index]; slicing itself would cost microseconds each time."""
    return None if tensor is None else tensor.data_ptr() + index * tensor.stride(0) * tensor.element_size()


def dense(tensor: Tensor | None) -> Tensor | None:
    """Return a tensor without history whose values lie side by side."""
    return None if tensor is None else tensor.detach().contiguous()


def place(tensor: Tensor) -> tuple[int, int | None]:
    """Return (device index, address of torch's current stream there); the emulation of the tests lives on the CPU."""
    if not tensor.is_cuda:
        return 0, None
    index = tensor.device.index
    return index, torch._C._cuda_getCurrentRawStream(index)  # a tenth of the time of torch.cuda.current_stream
