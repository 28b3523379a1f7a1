"""What is no checkpoint, packages that do not fit, and errors inside a network: one line each, with the fix."""

import sys
from types import SimpleNamespace

import pytest
import torch

from unified_lift.capture.networks import (
    fitting_torchvision,
    load_state,
    needed_library,
    one_line,
    read_checkpoint,
    require_torchvision,
    tried,
)
from unified_lift.errors import UserError

CPU = torch.device("cpu")


def saved(path, content, *, cut=None):
    torch.save(content, path)
    if cut:
        path.write_bytes(path.read_bytes()[:cut])
    return path


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty; fetch it again"),
        (bytes(5000), "zeros only"),
        (b"\n <!DOCTYPE html><html>Sign in</html>", "is a web page"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"no checkpoint", "no file that torch saves"),
        (b"\x80\x02garbage", "damaged or cut short"),
        (b"PK\x03\x04garbage", "its end is missing"),
    ],
)
def test_what_downloads_leave_behind_is_called_what_it_is(tmp_path, content, words):
    path = tmp_path / "sam.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_checkpoint_is_read_bare_or_wrapped_and_other_contents_are_refused(tmp_path):
    weights = {"layer": torch.arange(500.0)}
    path = tmp_path / "sam.pth"
    assert torch.equal(read_checkpoint(saved(path, weights))["layer"], weights["layer"])
    assert read_checkpoint(saved(path, {"model": weights})).keys() == {"layer"}
    for content, cut, words in (
        (weights, 1500, "cut short"),
        ({"model": {"layer": torch.tensor([1.0, torch.nan])}}, None, "layer holds NaN"),
        ([1, 2], None, "no tensors by name"),
        ({}, None, "no tensors by name"),
        ({"epoch": 3}, None, "no tensors by name"),
    ):
        with pytest.raises(UserError, match=words):
            read_checkpoint(saved(path, content, cut=cut))


def test_weights_of_another_network_are_counted(tmp_path):
    network = torch.nn.Linear(3, 2)
    state = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}
    load_state(network, state, tmp_path / "a.pth", "vit_h")
    assert network.weight.detach().sum().item() == 6
    for wrong, words in (
        ({"weight": torch.ones(2, 4), "bias": state["bias"]}, "of 2 tensors it has 1 of other shape, first weight"),
        ({"weight": state["weight"], "head": torch.ones(1)}, "of 2 tensors it lacks 1, has 1 more, first bias"),
    ):
        with pytest.raises(UserError, match=words):
            load_state(network, wrong, tmp_path / "a.pth", "vit_h")


@pytest.mark.parametrize(
    ("torch_version", "line"),
    [
        ("2.13.0+cpu", 'pip install "torchvision==0.28.*" --index-url https://download.pytorch.org/whl/cpu'),
        ("2.4.1+cu121", 'pip install "torchvision==0.19.*" --index-url https://download.pytorch.org/whl/cu121'),
        ("2.4.1", 'pip install "torchvision==0.19.*"'),
        ("2.14.0a0+git123", 'pip install "torchvision==0.29.*"'),
        ("3.0.0", "pip install --upgrade torch torchvision"),
    ],
)
def test_the_torchvision_of_a_torch_is_named(torch_version, line):
    assert fitting_torchvision(torch_version) == line


def test_a_torchvision_that_is_missing_or_does_not_fit_is_told_with_the_line_that_fits(monkeypatch):
    def broken(*_):
        raise RuntimeError("operator torchvision::nms does not exist\nmore lines")

    for module, words in (
        (None, "torchvision is not installed; run pip install"),
        (SimpleNamespace(ops=SimpleNamespace(nms=broken)), r"does not fit torch .*nms does not exist\); run pip"),
        (SimpleNamespace(ops=SimpleNamespace(nms=lambda *_: torch.tensor([0, 1]))), "does not fit torch"),
    ):
        monkeypatch.setitem(sys.modules, "torchvision", module)
        with pytest.raises(UserError, match=words):
            require_torchvision("sam", CPU)
    monkeypatch.setitem(
        sys.modules, "torchvision", SimpleNamespace(ops=SimpleNamespace(nms=lambda *_: torch.ones(1, dtype=int)))
    )
    require_torchvision("sam", CPU)


def test_a_package_that_fails_on_import_is_no_traceback(tmp_path, monkeypatch):
    (tmp_path / "made_for_another_torch.py").write_text("raise AttributeError('no attribute _pytree')")
    (tmp_path / "needs_more.py").write_text("import no_such_module")
    monkeypatch.syspath_prepend(tmp_path)
    fits = SimpleNamespace(ops=SimpleNamespace(nms=lambda *_: torch.tensor([1])))
    monkeypatch.setitem(sys.modules, "torchvision", fits)
    for name, words in (
        (
            "made_for_another_torch",
            "fails on import .AttributeError: no attribute _pytree.; run pip install --upgrade",
        ),
        ("needs_more", "no_such_module is not installed; run pip install x"),
    ):
        with pytest.raises(UserError, match=f"--provider sam: .*{words}"):
            needed_library(name, "sam", "x")


def test_errors_inside_become_one_line_and_lack_of_memory_passes():
    with (
        pytest.raises(UserError, match=r"^a\.png: it fails \(KeyError: 'x'\); do that$"),
        one_line("a.png: it fails", fix="do that"),
    ):
        {}["x"]
    with pytest.raises(UserError, match=r"\(ValueError\);"), one_line("it", fix="that"):
        raise ValueError
    with pytest.raises(MemoryError), one_line("it", fix="that"):
        raise MemoryError
    with pytest.raises(UserError, match="^own$"), one_line("it", fix="that"):
        raise UserError("own")


def test_a_network_that_finds_nothing_in_the_trial_does_not_work():
    with pytest.raises(RuntimeError, match="0 masks"):
        tried(lambda: SimpleNamespace(propose=lambda *_: []))
