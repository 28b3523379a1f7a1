"""Lets tests that hold CPU tensors use the CUDA kernels: arguments travel to the GPU, results back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import is_dataclass

import pytest
import torch
from diff_gaussian_rasterization import adam, cuda, native
from torch import Tensor

from unified_lift.kernels import assignment, association, contrastive, photometric

FUNCTIONS = {
    cuda: ("rasterize", "pixel_weights", "blend", "scatter"),
    adam: ("fused_steps",),
    assignment: ("_fused",),
    association: ("_fused",),
    association._Terms: ("apply",),
    contrastive: ("_fused_uncertainty",),
    contrastive._ContrastiveLoss: ("apply",),
    photometric._FusedLoss: ("apply",),
}


def _move(value: object, device: str) -> object:
    if isinstance(value, Tensor) or is_dataclass(value):
        return value.to(device)  # differentiable: gradients travel back
    if hasattr(value, "_fields"):
        return type(value)(*(_move(v, device) for v in value))
    if isinstance(value, tuple | list):
        return type(value)(_move(v, device) for v in value)
    return value


def _copy_back(before: object, after: object) -> None:
    for to, value in zip(before, after):
        if isinstance(to, Tensor):
            to.detach().copy_(value)
        elif isinstance(to, tuple | list):
            _copy_back(to, value)


def _travelling(function: Callable) -> Callable:
    def call(*args: object, **options: object) -> object:
        there = _move(args, "cuda")
        result = function(*there, **{name: _move(value, "cuda") for name, value in options.items()})
        if function.__name__ == "fused_steps":
            with torch.no_grad():
                _copy_back(args, there)
        return _move(result, "cpu")

    return call


def travel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the CUDA kernels take CPU tensors until the test ends."""
    monkeypatch.setattr(native.CUDA, "device_type", "cpu")
    for module, names in FUNCTIONS.items():
        for name in names:
            monkeypatch.setattr(module, name, _travelling(getattr(module, name)))
