"""Fixtures shared by the whole suite."""

import importlib.util
import signal

import pytest
import torch

from tests.scenes import tiny_scene


def pytest_collection_modifyitems(items):
    """GPU tests run where there is a GPU, those of gsplat where it is installed too; no test carries conditions."""
    gpu = torch.cuda.is_available()
    has = {"gpu": gpu, "gsplat": gpu and importlib.util.find_spec("gsplat") is not None}
    items[:] = [item for item in items if all(has[m.name] for m in item.iter_markers() if m.name in has)]


def pytest_configure():
    """Fixtures of a module come before those of a test; and under nohup signals would be ignored that tests send."""
    torch.set_num_threads(1)
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)


@pytest.fixture(autouse=True)
def _one_thread():
    """Two test workers on two cores: more threads only get in each other's way."""
    torch.set_num_threads(1)


@pytest.fixture
def open_viewer(tmp_path):
    """What opens a viewer of a model folder; it is ended with the test."""
    from unified_lift.cli import view

    viewers = []

    def start(model, **flags):
        flags = view.ViewCommand(model_path=model, port=8190, out=tmp_path / "edited", device="cpu", **flags)
        viewers.append(view.open_viewer(flags))
        return viewers[-1]

    yield start
    for viewer in viewers:
        viewer.stop()


@pytest.fixture
def scene():
    """Three coloured balls seen by six cameras, exact masks shuffled per view."""
    return tiny_scene()
