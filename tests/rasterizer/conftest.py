"""Fixtures of the rasterizer's and the kernels' tests."""

import diff_gaussian_rasterization.cuda
import pytest
import torch
from diff_gaussian_rasterization import native

from . import emulation
from .on_gpu import travel

# the CUDA sources run everywhere: emulated on a CPU, and on the GPU where there is one
CUDA = ["emulated", pytest.param("gpu", marks=pytest.mark.gpu)]
GPU = [pytest.param(f"gpu, {sums}", marks=pytest.mark.gpu) for sums in ("matrix units", "shuffles")]
INSTRUCTION_SETS = ["baseline", "avx2", "avx512"]


def _use(kind, request, monkeypatch):
    """Return the name of an implementation that takes the CPU tensors of the tests, after arranging that it does."""
    if kind == "emulated":
        request.addfinalizer(lambda file=native.CUDA.file: native.CUDA.use(file, "cuda"))
        native.CUDA.use(emulation.library(), "cpu")
    elif kind == "gpu":
        travel(monkeypatch)
    else:
        return kind
    return "cuda"


@pytest.fixture(params=["reference", "cpu", *CUDA])
def implementation(request, monkeypatch):
    """Run a test once per implementation."""
    return _use(request.param, request, monkeypatch)


@pytest.fixture(params=CUDA)
def cuda(request, monkeypatch):
    """Run a test with the CUDA kernels, emulated or real."""
    return _use(request.param, request, monkeypatch)


@pytest.fixture(params=CUDA)
def cuda_device(request, monkeypatch):
    """The device whose tensors implementation="cuda" takes in this test: "cpu" where it is emulated."""
    if request.param == "gpu":
        return "cuda"
    _use("emulated", request, monkeypatch)
    return "cpu"


@pytest.fixture
def kernels(cuda):
    """Return a function that says whether the losses of lifting run on their kernels from now on; at first they do."""

    def switch(on):
        native.CUDA.device_type = "cpu" if on else "cuda"

    return switch


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request):
    """Run a test once per instruction set; a machine without it repeats the test on the one it has."""
    before = native.isa()
    native.use_isa(request.param)
    yield native.isa()
    native.use_isa(before)


@pytest.fixture(params=[*INSTRUCTION_SETS, "emulated, matrix units", "emulated, shuffles", *GPU])
def kernel(request, monkeypatch):
    """Run a test with every compiled program: each instruction set, and each way in which CUDA sums over pixels."""
    before = native.isa()
    if request.param in INSTRUCTION_SETS:
        native.use_isa(request.param)
        yield "cpu"
    else:
        kind, sums = request.param.split(", ")
        name = _use(kind, request, monkeypatch)
        diff_gaussian_rasterization.cuda.allow_matrix_units(sums == "matrix units")
        yield name
        diff_gaussian_rasterization.cuda.allow_matrix_units(True)
    native.use_isa(before)


@pytest.fixture
def two_threads():
    """Let kernels use two threads whatever the machine or an earlier test set."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
