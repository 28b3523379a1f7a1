"""A fresh copy of each reader's dataset."""

import shutil
from pathlib import Path

import pytest

from tests.data.fixtures import write_dataset
from unified_lift.data import DATASETS, load_scene
from unified_lift.data.settings import DataSettings
from unified_lift.types import Scene


@pytest.fixture(scope="session")
def _written(tmp_path_factory):
    roots = {name: tmp_path_factory.mktemp("datasets") / name for name in DATASETS}
    for name, root in roots.items():
        write_dataset(name, root)
    return roots


@pytest.fixture
def dataset(_written, tmp_path):
    """Return a function: dataset name -> path of a copy that the test may damage."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(_written[name], tmp_path / name))

    return copy


@pytest.fixture
def read():
    """Return a function that loads a folder with few random points."""

    def load(root: Path, **settings: object) -> Scene:
        return load_scene(DataSettings(source_path=root, **({"num_random_points": 50} | settings)))

    return load
