"""Fixtures of the rasterizer tests."""

import pytest
import torch
from diff_gaussian_rasterization import _backend, _library, lifting

from . import emulation
from .on_gpu import travelling

# the CUDA sources run everywhere: emulated on a CPU, and on the GPU where there is one
CUDA = ["emulated", pytest.param("gpu", marks=pytest.mark.gpu)]


@pytest.fixture(scope="session")
def emulated_cuda(tmp_path_factory):
    """The CUDA implementation on an emulated device."""
    return emulation.load(emulation.build(tmp_path_factory.mktemp("emulation")))


def _use(kind, request, monkeypatch):
    """Return the name of an implementation that takes the CPU tensors of the tests, after arranging that it does."""
    if kind not in ("emulated", "gpu"):
        return kind
    module = request.getfixturevalue("emulated_cuda") if kind == "emulated" else travelling(_backend._load("cuda"))
    select = _backend.select
    monkeypatch.setattr(_backend, "select", lambda name, tensor: module if name == "cuda" else select(name, tensor))
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
    if request.param == "emulated":
        _use("emulated", request, monkeypatch)
        return "cpu"
    return "cuda"


@pytest.fixture
def kernels(cuda, monkeypatch):
    """Return a function that says whether the losses of lifting run on their kernels from now on; at first not."""

    def switch(on):
        monkeypatch.setattr(lifting, "runs_on", lambda tensor, max_width=None: on)

    return switch


@pytest.fixture(params=["matrix units", "shuffles"])
def sums(request, cuda):
    """Run a test with each way in which the CUDA backward pass sums over pixels."""
    module = _backend.select("cuda", torch.empty(0))
    module.allow_matrix_units(request.param == "matrix units")
    yield request.param
    module.allow_matrix_units(True)


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def instruction_set(request):
    """Run a test once per instruction set; a machine without it repeats the test on the one it has."""
    before = _library.isa()
    _library.use_isa(request.param)
    yield _library.isa()
    _library.use_isa(before)


@pytest.fixture
def two_threads():
    """Let kernels use two threads whatever the machine or an earlier test set."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
