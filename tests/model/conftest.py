"""Gaussians, and the rows of their PLY."""

import numpy as np
import pytest
from plyfile import PlyData

from tests.editing.small_scene import random_gaussians
from unified_lift.model.ply import write_gaussians

COUNT = 300


@pytest.fixture(scope="session")
def gaussians():
    return random_gaussians(COUNT)


@pytest.fixture
def rows(gaussians, tmp_path):
    """Return a copy of the plain PLY as a structured array, to be changed and written."""
    write_gaussians(tmp_path / "plain.ply", gaussians)
    return np.array(PlyData.read(str(tmp_path / "plain.ply"))["vertex"].data)
