"""Runs the CUDA sources on a CPU, so that their arithmetic and indexing are tested where there is no GPU."""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from diff_gaussian_rasterization import _library

HERE = Path(__file__).parent
SOURCES = Path(__file__).parents[3] / "submodules" / "diff-gaussian-rasterization" / "csrc"
UNITS = (
    "project", "lists", "forward", "backward", "gradient", "update", "rows", "photometric", "adam", "contrast",
    "codebook", "assign",
)  # fmt: skip


def build(folder: Path) -> Path:
    """Compile the emulated library into a folder and return its path."""
    output = folder / "_dgr_cuda.so"
    flags = ["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"]
    flags += [f"-I{HERE}", f"-I{SOURCES}"]
    jobs = [(SOURCES / "cuda" / f"{unit}.cu", folder / f"{unit}.o") for unit in UNITS]
    jobs += [(HERE / "emulation.cpp", folder / "emulation.o")]
    running = [
        subprocess.Popen(["g++", *flags, "-x", "c++", "-c", str(source), "-o", str(target)]) for source, target in jobs
    ]
    assert not any([process.wait() for process in running]), "the CUDA sources do not compile with the emulation"
    subprocess.run(["g++", "-shared", *(str(target) for _, target in jobs), "-o", str(output)], check=True)
    return output


def load(library: Path) -> ModuleType:
    """Return a second instance of the CUDA implementation that runs on the emulated library and CPU tensors."""
    package = Path(_library.__file__).with_name("cuda")
    name = "diff_gaussian_rasterization._emulated_cuda"
    spec = importlib.util.spec_from_file_location(
        name, package / "__init__.py", submodule_search_locations=[str(package)]
    )
    module = importlib.util.module_from_spec(spec)
    real, sys.modules[name] = _library.load, module
    _library.load = lambda kind: ctypes.CDLL(str(library))
    try:
        spec.loader.exec_module(module)
    finally:
        _library.load = real
    return module
