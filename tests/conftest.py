"""Fixtures shared by the whole suite."""

import pytest
import torch

from tests.scenes import tiny_scene


def pytest_collection_modifyitems(items):
    """GPU tests run where there is a GPU; nowhere else do tests carry conditions."""
    if torch.cuda.is_available():
        return
    items[:] = [item for item in items if item.get_closest_marker("gpu") is None]


@pytest.fixture(autouse=True)
def _one_thread():
    """Two test workers on two cores: more threads only get in each other's way."""
    torch.set_num_threads(1)


@pytest.fixture
def scene():
    """Three coloured balls seen by six cameras, exact masks shuffled per view."""
    return tiny_scene()
