"""Builds the kernels as a plain C library: needs g++ (or the compiler in CXX), neither torch nor Python headers.

Without a compiler the package still installs and runs on its torch reference, and says so.
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

PACKAGE = "diff_gaussian_rasterization"
SOURCES = ["csrc/cpu/entry.cpp", "csrc/cpu/order.cpp", "csrc/cpu/frame.cpp", "csrc/cpu/pool.cpp"]
KERNELS = "csrc/cpu/kernels.cpp"
FLAGS = [
    "-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-pthread",
    "-ffp-contract=off",  # forward and backward must round alike, see kernels.cpp
    "-fno-math-errno", "-fno-trapping-math",
    # GCC reports its own intrinsics headers
    "-Wall", "-Wno-ignored-attributes", "-Wno-uninitialized", "-Wno-maybe-uninitialized",
]  # fmt: skip
AVX2 = ["-DDGR_AVX2", "-mavx2", "-mfma"]
AVX512 = ["-DDGR_AVX512", "-mfma", "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mprefer-vector-width=512"]


def kernel_variants():
    variants = {"baseline": []}
    if platform.machine().lower() in ("x86_64", "amd64"):
        variants |= {"avx2": AVX2, "avx512": AVX512}
    return variants


def library_flags():
    """Carry the C++ runtime along on Linux, so that the library does not meet a second, older copy of it."""
    return ["-static-libgcc", "-static-libstdc++"] if sys.platform.startswith("linux") else []


class BuildKernels(build_ext):
    """Compiles the kernel source once per instruction set and links everything into one library."""

    def get_ext_filename(self, fullname):
        return "_dgr_cpu.so"

    def build_extension(self, ext):
        compiler = shutil.which(os.environ.get("CXX", "g++"))
        if compiler is None:
            self.report("no C++ compiler found (install g++ or set CXX)")
            return
        folder, output = Path(self.build_temp), Path(self.get_ext_fullpath(ext.name))
        folder.mkdir(parents=True, exist_ok=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        jobs = [(source, Path(source).stem, []) for source in SOURCES]
        jobs += [(KERNELS, f"kernels_{isa}", flags) for isa, flags in kernel_variants().items()]
        objects = [str(folder / f"{name}.o") for _, name, _ in jobs]
        running = [
            subprocess.Popen([compiler, *FLAGS, *flags, "-c", source, "-o", target])
            for (source, _, flags), target in zip(jobs, objects)
        ]
        if any([process.wait() for process in running]):
            self.report(f"{compiler} could not compile the kernels")
            return
        # into a new file and then into place: a running process may have the old library mapped
        fresh = output.with_suffix(".new")
        link = [compiler, "-shared", "-pthread", *objects, *library_flags(), "-o", str(fresh)]
        if subprocess.run(link).returncode != 0:
            self.report("linking the kernels failed")
            return
        os.replace(fresh, output)

    def report(self, reason):
        print(f"WARNING: {PACKAGE}: {reason}; the package will run on its slow torch reference", file=sys.stderr)

    def copy_extensions_to_source(self):
        """Put the library into the package folder of an editable install, unless it could not be built."""
        target = Path(PACKAGE) / "_dgr_cpu.so"
        built = Path(self.build_lib) / target
        if built.is_file():
            shutil.copyfile(built, target.with_suffix(".new"))
            os.replace(target.with_suffix(".new"), target)


setup(ext_modules=[Extension(f"{PACKAGE}._dgr_cpu", [*SOURCES, KERNELS])], cmdclass={"build_ext": BuildKernels})
