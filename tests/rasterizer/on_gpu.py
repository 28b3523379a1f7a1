"""Lets tests that hold CPU tensors use the CUDA implementation: arguments travel to the GPU, results back."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace

import torch
from diff_gaussian_rasterization import Association, PixelWeights, RasterMeta, RasterOutput
from torch import Tensor


def _move(value: object, device: str) -> object:
    if isinstance(value, Tensor):
        return value.to(device)  # differentiable: gradients travel back
    if isinstance(value, RasterOutput | RasterMeta | PixelWeights | Association):
        return type(value)(*(_move(v, device) for v in value))
    if type(value) is tuple:
        return tuple(_move(v, device) for v in value)
    return value


def travelling(module: ModuleType) -> SimpleNamespace:
    """Return the functions of the CUDA implementation, callable with CPU tensors."""

    def wrap(name: str):
        def call(*args: object, **options: object) -> object:
            if name == "adam_steps":
                return move_and_step(*args, **options)
            there = [_move(a, "cuda") for a in args]
            result = getattr(module, name)(*there, **{k: _move(v, "cuda") for k, v in options.items()})
            if name == "adam_step":
                with torch.no_grad():
                    for before, after in zip(args, there):
                        before.copy_(after)
            return _move(result, "cpu")

        return call

    def move_and_step(tensors: list, **options: object) -> None:
        there = [[_move(t, "cuda") for t in four] for four in tensors]
        module.adam_steps(there, **options)
        with torch.no_grad():
            for before, after in zip(tensors, there):
                for to, value in zip(before, after):
                    to.copy_(value)

    names = ["rasterize", "pixel_weights", "blend", "splat", "ssim", "photometric_loss", "adam_step", "adam_steps"]
    names += ["contrastive_loss", "uncertainty", "associate", "assign", "codebook_terms", "allow_matrix_units"]
    return SimpleNamespace(**{name: wrap(name) for name in names})
