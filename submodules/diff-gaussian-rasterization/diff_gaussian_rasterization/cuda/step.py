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
        parameters, features, loss_at = self.parameters, self.features, self._address_of(loss)
        rows, dense = self._blend_backwards(watch=grad_sum is not None)
        structs = []
        for (name, value), grad in zip(parameters.items(), dense[1:]):
            m, v, lr, count = adam[name]
            structs.append(AdamStruct(value.data_ptr(), address(grad), *map(address, (m, v)), value.numel(), lr, count))
        problem = _Update(*structs, beta1, beta2, eps, address(grad_sum), address(num_seen), loss_at, self.absolute)
        CUDA.dgr_cuda_update(byref(self.scene), byref(self.frame), byref(problem))
        changed = [t for name, value in parameters.items() for t in (value, *adam[name][:2])]
        torch.autograd.graph.increment_version(changed)
        if rows is not None and "features" in adam:
            update = [(features, dense[0], adam["features"])]
            fused_steps(update, beta1=beta1, beta2=beta2, eps=eps, loss=loss)
        self._forget()

    def gradients(
        self, into: Mapping[str, Tensor], *, loss: Tensor, grad_sum: Tensor | None, num_seen: Tensor | None
    ) -> None:
        """Blend backwards and add the gradients to `into`, where an update has its first moments and no second ones."""
        loss_at = self._address_of(loss)
        rows, dense = self._blend_backwards(watch=grad_sum is not None)
        structs = [
            AdamStruct(value.data_ptr(), address(grad), into[name].data_ptr(), None, value.numel(), 0.0, 1)
            for (name, value), grad in zip(self.parameters.items(), dense[1:])
        ]
        problem = _Update(*structs, 0.0, 0.0, 1.0, address(grad_sum), address(num_seen), loss_at, self.absolute)
        CUDA.dgr_cuda_update(byref(self.scene), byref(self.frame), byref(problem))
        torch.autograd.graph.increment_version([into[name] for name in self.parameters])
        if rows is not None and "features" in into:
            into["features"].add_(torch.where(torch.isfinite(loss), dense[0], 0))
        self._forget()

    def _address_of(self, loss: Tensor) -> int:
        if loss.dtype != torch.float32 or loss.device != self.workspace.device:
            raise ValueError(f"loss must be float32 on {self.workspace.device}, got {loss.dtype} on {loss.device}")
        return loss.data_ptr()

    def _blend_backwards(self, *, watch: bool) -> tuple[Tensor | None, list[Tensor | None]]:
        """Return the gradient of the features, None without any, and dense: it and those the parameters hold."""
        maps, features = self.out[:4], self.features
        by_maps = [t.grad for t in maps]
        own = [value.grad for value in self.parameters.values()]
        rows = None if features is None else features.grad
        if by_maps[1] is not None and rows is None:
            rows = torch.zeros_like(features)
        dense = [None if t is None else t.contiguous() for t in (*by_maps, rows, *own)]
        addresses = [None if t is None else t.data_ptr() for t in dense]
        if any(addresses[:4]):
            gradients = Gradients(*addresses[:4], *map(Tensor.data_ptr, maps), self.frame.moments, addresses[4])
            gradients.absolute = self.absolute and watch
            CUDA.dgr_cuda_backward_blend(byref(self.scene), byref(self.frame), byref(gradients))
        return rows, dense[4:]

    def _forget(self) -> None:
        for value in (self.features, *self.parameters.values()):
            if value is not None and value.grad is not None:
                value.grad = None
        self.out, self.kept, self.parameters, self.features = None, (), {}, None
