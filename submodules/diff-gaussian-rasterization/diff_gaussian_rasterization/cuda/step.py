"""The training step as kernels: about fifteen launches, one wait for the number of pairs, no stored gradient."""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import POINTER, Structure, byref, c_double, c_int32, c_void_p

import torch
from torch import Tensor

from ..adam import AdamState, AdamStruct, fused_steps
from ..native import CUDA, address, place
from ..step import PARAMETERS
from ..types import NEAR, RasterMeta, RasterOutput
from .frame import MOMENTS, Frame, Gradients, Images, Scene, Workspace, build_frame

_SLACK = 1.25  # the number of pairs differs from view to view


class _Update(Structure):
    _fields_ = [
        *((name, AdamStruct) for name in ("means", "quats", "scales", "opacities", "sh", "sh_rest")),
        *((name, c_double) for name in ("beta1", "beta2", "eps")),
        *((name, c_void_p) for name in ("grad_sum", "num_seen", "loss")),
        ("absolute", c_int32),
    ]


CUDA.declare({"dgr_cuda_update": [POINTER(Scene), POINTER(Frame), POINTER(_Update)]})


class TrainingStep:
    """The training step of `step.TrainingStep` for tensors on an NVIDIA GPU; arguments are those of its methods."""

    def __init__(self, device: torch.device, absolute: bool = False) -> None:
        """Start without working memory; it grows with the scene and is kept between steps."""
        self.absolute = absolute
        self.workspace = Workspace(device, slack=_SLACK)
        self.scene, self.frame = Scene(), Frame()
        self.parameters: dict[str, Tensor] = {}
        self.features: Tensor | None = None
        self.out: RasterOutput | None = None
        self.kept: tuple[Tensor | None, ...] = ()

    def forward(
        self, parameters: Mapping[str, Tensor], features: Tensor | None, viewmat: Tensor, K: Tensor,
        width: int, height: int, *, sh_degree: int, background: Tensor | None, antialiased: bool,
    ) -> RasterOutput:  # fmt: skip
        """Render; the maps are leaves."""
        means, take = parameters["means"], self.workspace.take
        num, pixels, dim = means.shape[0], height * width, 0 if features is None else features.shape[1]
        image, maps = means.new_empty(height, width, 3), means.new_empty(height, width, dim)
        alpha, depth = means.new_empty(height, width), means.new_empty(height, width)
        radii = means.new_empty(num, dtype=torch.int32)
        self.parameters, self.features = {name: parameters[name] for name in PARAMETERS}, features
        device, stream = place(means)
        kept = (viewmat.contiguous(), K.contiguous(), background)  # until update is queued
        self.scene = Scene(
            num, *(address(t) for t in self.parameters.values()), address(features), *(address(t) for t in kept), None,
            NEAR, 1 + parameters["shN"].shape[1], sh_degree, dim, width, height, False, device, True, antialiased,
            stream,
        )  # fmt: skip
        self.frame = Frame(
            radii=address(radii), last=take("last", pixels * 4), moments=take("moments", num * MOMENTS * 4)
        )
        num_pairs = build_frame(self.scene, self.frame, self.workspace, for_backward=True)
        images = Images(*map(address, (image, maps, alpha, depth)))
        CUDA.dgr_cuda_forward(byref(self.scene), byref(self.frame), byref(images))
        self.kept = kept
        leaves = (t.requires_grad_() for t in (image, maps, alpha, depth))
        self.out = RasterOutput(*leaves, RasterMeta(radii, None, num_pairs))
        return self.out

    def update(
        self, adam: Mapping[str, AdamState],
        *, loss: Tensor, beta1: float, beta2: float, eps: float, grad_sum: Tensor | None, num_seen: Tensor | None,
    ) -> None:  # fmt: skip
        """Blend backwards and take the Adam step."""
        if loss.dtype != torch.float32 or loss.device != self.workspace.device:
            raise ValueError(f"loss must be float32 on {self.workspace.device}, got {loss.dtype} on {loss.device}")
        maps, parameters, features = self.out[:4], self.parameters, self.features
        by_maps = [t.grad for t in maps]
        own = [value.grad for value in parameters.values()]
        rows = None if features is None else features.grad
        if by_maps[1] is not None and rows is None:
            rows = torch.zeros_like(features)
        dense = [None if t is None else t.contiguous() for t in (*by_maps, rows, *own)]
        addresses = [None if t is None else t.data_ptr() for t in dense]
        if any(addresses[:4]):
            gradients = Gradients(*addresses[:4], *map(Tensor.data_ptr, maps), self.frame.moments, addresses[4])
            gradients.absolute = self.absolute and grad_sum is not None
            CUDA.dgr_cuda_backward_blend(byref(self.scene), byref(self.frame), byref(gradients))
        structs = []
        for (name, value), grad in zip(parameters.items(), addresses[5:]):
            m, v, lr, count = adam[name]
            structs.append(AdamStruct(value.data_ptr(), grad, m.data_ptr(), v.data_ptr(), value.numel(), lr, count))
        problem = _Update(
            *structs, beta1, beta2, eps, address(grad_sum), address(num_seen), loss.data_ptr(), self.absolute
        )
        CUDA.dgr_cuda_update(byref(self.scene), byref(self.frame), byref(problem))
        changed = [t for name, value in parameters.items() for t in (value, *adam[name][:2])]
        torch.autograd.graph.increment_version(changed)
        if rows is not None and "features" in adam:
            update = [(features, dense[4], adam["features"])]
            fused_steps(update, beta1=beta1, beta2=beta2, eps=eps, loss=loss)
        for value, grad in zip((features, *parameters.values()), (rows, *own)):
            if grad is not None:
                value.grad = None
        self.out, self.kept = None, ()
