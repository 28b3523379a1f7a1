"""The door to the compiled kernels: two plain C libraries, which fit any Python and any torch.

A caller declares a function first: `CUDA.declare({"dgr_cuda_x": [c_void_p, *PLACE]})`, then
`CUDA.dgr_cuda_x(address(tensor), *place(tensor))`. ctypes releases the interpreter lock during a call. On a GPU all
memory comes from torch's caching allocator and all work goes to torch's current stream.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from ctypes import c_char_p, c_int32, c_void_p
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

PLACE = [c_int32, c_void_p]  # argument types of a device and a stream, the last arguments of many functions

IMPLEMENTATIONS = ("auto", "reference", "cpu", "cuda", "gsplat")
_warned: set[str] = set()


class Library:
    """A compiled library, loaded when a function of it is needed; its functions are attributes.

    Attributes:
        device_type: Of the tensors that it takes; the tests run the sources of the CUDA library on a CPU.
    """

    def __init__(self, kind: str, *, compiler: str, fix: str) -> None:
        self.device_type, self._compiler, self._fix = kind, compiler, fix
        self._signatures: dict[str, tuple[Any, Sequence[Any]]] = {}
        self._bound: list[str] = []
        self.use(Path(__file__).with_name(f"_dgr_{kind}.so"), kind)

    def use(self, file: Path, device_type: str) -> None:
        """Take another file, for tensors on another kind of device."""
        for name in self._bound:
            delattr(self, name)
        self.file, self.device_type, self._bound = file, device_type, []
        self._loaded: tuple[ctypes.CDLL | None, str | None] | None = None

    def problem(self) -> str | None:
        """Return why the library cannot be used, and the fix, or None when it can."""
        if self._loaded is None:
            self._loaded = self._attempt()
        return self._loaded[1]

    def declare(self, signatures: Mapping[str, Sequence[Any]], *, returns: Any = "status") -> None:
        """Declare argument types, so that ctypes converts Python numbers to the right width.

        Args:
            signatures: Argument types of each function.
            returns: Their ctypes result or None; "status" is a cudaError_t, which raises RuntimeError if it is not 0.
        """
        self._signatures |= {name: (returns, arguments) for name, arguments in signatures.items()}

    def __getattr__(self, name: str) -> Any:
        if name not in self._signatures:
            raise AttributeError(name)
        if self.problem() is not None or self._loaded is None:
            raise RuntimeError(self.problem())
        function = getattr(self._loaded[0], name)
        result, function.argtypes = self._signatures[name]
        function.restype = c_int32 if result == "status" else result
        if result == "status":
            function.errcheck = self._check
        self._bound.append(name)
        setattr(self, name, function)  # from now on without this function
        return function

    def _attempt(self) -> tuple[ctypes.CDLL | None, str | None]:
        if not self.file.is_file():
            return None, (
                f"the compiled kernels ({self.file.name}) are missing, because no {self._compiler} was found when the "
                f"package was installed; {self._fix} and then reinstall diff-gaussian-rasterization"
            )
        try:
            return ctypes.CDLL(str(self.file)), None
        except OSError as error:
            return None, f"the compiled kernels cannot be loaded ({error}); reinstall diff-gaussian-rasterization"

    def _check(self, status: int, function: Any, arguments: Any) -> None:  # noqa: ARG002 (as ctypes calls it)
        if status != 0:
            raise RuntimeError(f"the CUDA kernels failed: {self.dgr_cuda_error(status).decode()}")


CPU = Library("cpu", compiler="C++ compiler", fix="install g++")
CUDA = Library("cuda", compiler="CUDA compiler or no GPU", fix="install the CUDA toolkit (nvcc), or set DGR_CUDA_ARCH,")
CPU.declare({"dgr_constants": [c_void_p]}, returns=None)
CUDA.declare({"dgr_cuda_constants": [c_void_p]}, returns=None)
CPU.declare({"dgr_isa": []}, returns=c_char_p)
CPU.declare({"dgr_use_isa": [c_char_p]}, returns=c_int32)
CUDA.declare({"dgr_cuda_error": [c_int32]}, returns=c_char_p)


def constants(library: Library) -> list[float]:
    """Return the constants of the kernels: alpha min and max, least transmittance, low-pass, frustum margin."""
    values = torch.empty(5)
    (library.dgr_constants if library is CPU else library.dgr_cuda_constants)(values.data_ptr())
    return values.tolist()


def isa() -> str:
    """Return the instruction set that the CPU kernels chose on this machine."""
    return CPU.dgr_isa().decode()


def use_isa(name: str) -> bool:
    """Switch the CPU kernels to "avx512", "avx2" or "baseline", between renders; return whether this machine has it."""
    return bool(CPU.dgr_use_isa(name.encode()))


def requested(implementation: str) -> str:
    """Return the implementation asked for; the variable DGR_IMPLEMENTATION overrides "auto", for debugging.

    Raises:
        ValueError: The name is unknown.
    """
    name = os.environ.get("DGR_IMPLEMENTATION", "auto") if implementation == "auto" else implementation
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {', '.join(IMPLEMENTATIONS)}, got '{name}'")
    return name


def automatic(tensor: Tensor) -> tuple[str, str]:
    """Return (implementation, reason) for a tensor; the reason is empty when nothing is lost by the choice."""
    if tensor.dtype == torch.float64:
        return "reference", ""  # only the definition computes in double precision
    library = {"cpu": CPU, "cuda": CUDA}.get(tensor.device.type)
    if library is None:
        return "reference", f"no compiled kernels for device '{tensor.device.type}'"
    problem = library.problem()
    return (tensor.device.type, "") if problem is None else ("reference", problem)


def choose(implementation: str, tensor: Tensor) -> str:
    """Return which implementation carries out a call on tensors like `tensor`: one of IMPLEMENTATIONS but "auto".

    "auto" takes the compiled kernels where they exist; when it has to fall back to the slow definition for want of
    them it warns once with the reason. An implementation asked for by name never falls back.

    Raises:
        ValueError: Unknown name, or the named implementation cannot take this dtype or device.
    """
    name = requested(implementation)
    if name == "auto":
        name, reason = automatic(tensor)
        if reason and reason not in _warned:
            _warned.add(reason)
            warnings.warn(
                f"diff_gaussian_rasterization runs its slow torch reference: {reason}", RuntimeWarning, stacklevel=4
            )
    elif name != "reference":
        kind = {"cpu": CPU.device_type, "cuda": CUDA.device_type}.get(name, "cuda")
        if tensor.dtype != torch.float32 or tensor.device.type != kind:
            place = "the CPU" if kind == "cpu" else "an NVIDIA GPU"
            raise ValueError(
                f"implementation='{name}' needs float32 tensors on {place}, got {tensor.dtype} on {tensor.device}; "
                "use implementation='auto' or 'reference'"
            )
    return name


def pick(implementation: str, tensor: Tensor, **functions: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function for a call on tensors like `tensor`, of those given by the name of their implementation.

    Raises:
        ValueError: As `choose`, or the implementation is none of them.
        RuntimeError: Its library cannot be loaded.
    """
    name = choose(implementation, tensor)
    if name not in functions:
        raise ValueError(f"implementation='{name}' renders whole views and nothing else; leave it at 'auto' here")
    return functions[name]


def select(implementation: str, tensor: Tensor) -> ModuleType:
    """Return the module for a call on tensors like `tensor`; the choice and its errors are those of `choose`.

    A module has rasterize, pixel_weights, blend and scatter, which take the checked arguments of `api.py`, and perhaps
    a TrainingStep.

    Raises:
        RuntimeError: The implementation was asked for by name and cannot be loaded.
    """
    name = choose(implementation, tensor)
    problems = {"cpu": CPU.problem, "cuda": CUDA.problem, "gsplat": gsplat_problem}
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
    name = requested("auto")
    reason = "asked for by DGR_IMPLEMENTATION"
    if name == "auto":
        name, reason = automatic(torch.empty(0))
        reason = reason or "compiled kernels are loaded"
    return {
        "implementation": name, "isa": isa() if name == "cpu" else "torch",
        "threads": torch.get_num_threads(), "reason": reason,
        "cuda": CUDA.problem() or "cuda", "gsplat": gsplat_problem() or "gsplat",
    }  # fmt: skip


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
    """Return (device index, address of torch's current stream there); the emulation of the tests is on the CPU."""
    if not tensor.is_cuda:
        return 0, None
    index = tensor.device.index
    return index, torch._C._cuda_getCurrentRawStream(index)  # a tenth of the time of torch.cuda.current_stream
