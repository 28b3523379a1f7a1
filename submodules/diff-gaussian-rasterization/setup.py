"""Builds the kernels as plain C libraries: needs g++ (or the compiler in CXX), neither torch nor Python headers.

Without a compiler the package still installs and runs on its torch reference, and says so. The kernels for NVIDIA GPUs
are built where nvcc and a GPU are found, for that GPU. DGR_CUDA_ARCH overrides that: "all" that the compiler knows,
"none", or some ("90", "80,90").
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

PACKAGE = "diff_gaussian_rasterization"
KERNELS = "csrc/cpu/kernels.cpp"
SOURCES = sorted({str(path) for path in Path("csrc/cpu").glob("*.cpp")} - {KERNELS})
FLAGS = [
    "-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-pthread",
    "-ffp-contract=off",  # forward and backward must round alike, see kernels.cpp
    "-fno-math-errno", "-fno-trapping-math",
    # GCC reports its own intrinsics headers
    "-Wall", "-Wno-ignored-attributes", "-Wno-uninitialized", "-Wno-maybe-uninitialized",
]  # fmt: skip
CUDA_UNITS = sorted(path.stem for path in Path("csrc/cuda").glob("*.cu"))
CUDA_FLAGS = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall", "--threads", "0"]
CUDA_ARCHITECTURES = (70, 75, 80, 86, 89, 90, 100, 120)  # 70 is known up to CUDA 12 only
# counting and filling the lists must round alike
CUDA_UNIT_FLAGS = {"lists": ["--fmad=false"]}
AVX2 = ["-DDGR_AVX2", "-mavx2", "-mfma"]
AVX512 = ["-DDGR_AVX512", "-mfma", "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mprefer-vector-width=512"]


def kernel_variants():
    variants = {"baseline": []}
    if platform.machine().lower() in ("x86_64", "amd64"):
        variants |= {"avx2": AVX2, "avx512": AVX512}
    return variants


def find_nvcc():
    """Return the path of the CUDA compiler, or None."""
    for home in ("CUDA_HOME", "CUDA_PATH"):
        candidate = Path(os.environ.get(home, "/nonexistent")) / "bin" / "nvcc"
        if candidate.is_file():
            return str(candidate)
    usual = Path("/usr/local/cuda/bin/nvcc")
    return shutil.which("nvcc") or (str(usual) if usual.is_file() else None)


def visible_architectures():
    """Return the compute capabilities of the GPUs that nvidia-smi sees here, as ["90"]; empty if there are none."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    listed = subprocess.run(query, capture_output=True, text=True)
    found = re.findall(r"^(\d+)\.(\d+)\s*$", listed.stdout, re.MULTILINE) if listed.returncode == 0 else []
    return sorted({major + minor for major, minor in found}, key=int)


def wanted_architectures(nvcc):
    """Return the architectures to build for, or none and why: DGR_CUDA_ARCH, else those of the GPUs in this machine."""
    asked = os.environ.get("DGR_CUDA_ARCH", "").strip().lower()
    if asked == "none":
        return [], "DGR_CUDA_ARCH=none"
    if nvcc is None:
        return [], "nvcc was not found"
    if asked == "all":
        listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout
        known = {int(name) for name in re.findall(r"compute_(\d+)\b", listed)}
        return [str(number) for number in CUDA_ARCHITECTURES if number in known], ""
    if asked:
        names = [name.strip().replace(".", "") for name in re.split("[,;]", asked) if name.strip()]
        return sorted(names, key=lambda name: int(re.sub(r"\D", "", name) or 0)), ""
    return visible_architectures(), "no GPU is visible; DGR_CUDA_ARCH=all or DGR_CUDA_ARCH=90 builds them all the same"


def architecture_flags(architectures):
    """Return flags for code of each architecture, and PTX of the newest for later ones."""
    flags = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures]
    return [*flags, f"-gencode=arch=compute_{architectures[-1]},code=compute_{architectures[-1]}"]


class BuildKernels(build_ext):
    """Compiles the CPU kernels once per instruction set, and the CUDA kernels, each into one library."""

    def get_ext_filename(self, fullname):
        return fullname.split(".")[-1] + ".so"

    def build_extension(self, ext):
        compile_, link, jobs = self.cuda_jobs() if ext.name.endswith("_dgr_cuda") else self.cpu_jobs()
        if not jobs:
            return
        folder, output = Path(self.build_temp), Path(self.get_ext_fullpath(ext.name))
        folder.mkdir(parents=True, exist_ok=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        objects = [str(folder / f"{name}.o") for _, name, _ in jobs]
        running = [
            subprocess.Popen([*compile_, *flags, "-c", source, "-o", target])
            for (source, _, flags), target in zip(jobs, objects)
        ]
        if any([process.wait() for process in running]):
            self.report(f"{compile_[0]} could not compile {ext.name}")
            return
        # into a new file and then into place: a running process may have the old library mapped
        fresh = output.with_suffix(".new")
        if subprocess.call([compile_[0], *link, *objects, "-o", str(fresh)]) != 0:
            self.report(f"linking {ext.name} failed")
            return
        os.replace(fresh, output)

    def cuda_jobs(self):
        """Return the compiler's command, link flags, and (source, object, flags) of each unit; no unit = not built."""
        nvcc = find_nvcc()
        architectures, reason = wanted_architectures(nvcc)
        if not architectures:
            print(f"{PACKAGE}: the kernels for NVIDIA GPUs are not built ({reason})", file=sys.stderr)
            return [], [], []
        print(f"{PACKAGE}: building the kernels for NVIDIA GPUs ({', '.join(architectures)})", file=sys.stderr)
        jobs = [(f"csrc/cuda/{unit}.cu", f"cuda_{unit}", CUDA_UNIT_FLAGS.get(unit, [])) for unit in CUDA_UNITS]
        return [nvcc, *CUDA_FLAGS, *architecture_flags(architectures)], ["-shared", "-cudart", "static"], jobs

    def cpu_jobs(self):
        """Return the same for the CPU kernels, once per instruction set."""
        compiler = shutil.which(os.environ.get("CXX", "g++"))
        if compiler is None:
            self.report("no C++ compiler found (install g++ or set CXX)")
            return [], [], []
        jobs = [(source, Path(source).stem, []) for source in SOURCES]
        jobs += [(KERNELS, f"kernels_{isa}", flags) for isa, flags in kernel_variants().items()]
        # on Linux the C++ runtime comes along, so that the library does not meet a second, older copy of it
        static = ["-static-libgcc", "-static-libstdc++"] if sys.platform.startswith("linux") else []
        return [compiler, *FLAGS], ["-shared", "-pthread", *static], jobs

    def report(self, reason):
        print(f"WARNING: {PACKAGE}: {reason}; the package will run on its slow torch reference", file=sys.stderr)

    def copy_extensions_to_source(self):
        """Put the libraries into the package folder of an editable install, unless they could not be built."""
        for ext in self.extensions:
            target = Path(PACKAGE) / self.get_ext_filename(ext.name)
            built = Path(self.build_lib) / target
            if built.is_file():
                shutil.copyfile(built, target.with_suffix(".new"))
                os.replace(target.with_suffix(".new"), target)


class PlatformWheel(bdist_wheel):
    """The libraries are plain C: one wheel serves every Python of a platform."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(f"{PACKAGE}._dgr_cpu", [*SOURCES, KERNELS]),
        Extension(f"{PACKAGE}._dgr_cuda", [f"csrc/cuda/{unit}.cu" for unit in CUDA_UNITS]),
    ],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlatformWheel},
)
