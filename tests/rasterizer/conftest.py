"""Fixtures of the rasterizer tests."""

import pytest
import torch
from diff_gaussian_rasterization import _library


@pytest.fixture(params=["reference", "cpu"])
def implementation(request):
    """Run a test once per implementation."""
    return request.param


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
