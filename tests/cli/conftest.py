import pytest

from tests.saved_model import save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A trained model of four objects (0 is the floor)."""
    return save_model(tmp_path_factory.mktemp("saved"))
