"""Runs the CUDA sources on a CPU, so that their arithmetic and indexing are tested where there is no GPU."""

from __future__ import annotations

import atexit
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = Path(__file__).parents[3] / "submodules" / "diff-gaussian-rasterization" / "csrc"
ELSEWHERE = {"sort"}  # emulation.cpp has its functions


@functools.cache
def library() -> Path:
    """Compile the emulated library once in a process and return its path."""
    folder = Path(tempfile.mkdtemp(prefix="emulation_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    output = folder / "_dgr_cuda.so"
    flags = ["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"]
    flags += [f"-I{HERE}", f"-I{SOURCES}"]
    jobs = [unit for unit in sorted((SOURCES / "cuda").rglob("*.cu")) if unit.stem not in ELSEWHERE]
    jobs.append(HERE / "emulation.cpp")
    objects = [folder / f"{source.stem}.o" for source in jobs]
    running = [
        subprocess.Popen(["g++", *flags, "-x", "c++", "-c", str(source), "-o", str(target)])
        for source, target in zip(jobs, objects)
    ]
    assert not any([process.wait() for process in running]), "the CUDA sources do not compile with the emulation"
    subprocess.run(["g++", "-shared", *map(str, objects), "-o", str(output)], check=True)
    return output
