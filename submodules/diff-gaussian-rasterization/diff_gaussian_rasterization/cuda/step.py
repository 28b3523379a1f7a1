"""One training step without autograd: about fifteen launches, one wait for the number of pairs, no stored gradient."""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import POINTER, Structure, byref, c_double, c_void_p

import torch
from torch import Tensor

from ..types import NEAR, AdamState
from .adam import Adam, adam_steps
from .binding import Frame, Memory, Scene, address, bind, check, place
from .photometric import Photometric, num_parts, run, run_backward
from .rasterize import MOMENTS, Gradients, Images, blend_backward, build_frame, render

_NAMES = ("means", "quats", "log_scales", "logit_opacities", "sh0", "shN")
_SLACK = 1.25  # the number of pairs differs from view to view


class _Update(Structure):
    _fields_ = [
        *((name, Adam) for name in ("means", "quats", "scales", "opacities", "sh", "sh_rest")),
        *((name, c_double) for name in ("beta1", "beta2", "eps")),
        *((name, c_void_p) for name in ("grad_sum", "num_seen", "loss")),
    ]


_lib = bind({"dgr_cuda_update": [POINTER(Scene), POINTER(Frame), POINTER(_Update)]})


class TrainingStep:
    """The training step of `step.TrainingStep` for tensors on an NVIDIA GPU; arguments are those of its methods."""

    def __init__(self, device: torch.device) -> None:
        """Start without working memory; it grows with the scene and is kept between steps."""
        self.memory = Memory(device, slack=_SLACK)
        self.scene, self.frame = Scene(), Frame()
        self.parameters: dict[str, Tensor] = {}
        self.features: Tensor | None = None
        self.loss: Tensor | None = None
        self.kept: tuple[Tensor | None, ...] = ()

    def forward(
        self, parameters: Mapping[str, Tensor], features: Tensor | None, viewmat: Tensor, K: Tensor, target: Tensor,
        *, sh_degree: int, background: Tensor | None, valid: Tensor | None, lambda_dssim: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Render, compare with the photo and leave the derivative by the image; return (loss, feature map)."""
        height, width = target.shape[:2]
        means, take = parameters["means"], self.memory.take
        num, pixels, dim = means.shape[0], height * width, 0 if features is None else features.shape[1]
        maps = means.new_empty(height, width, dim)
        self.parameters, self.features = {name: parameters[name] for name in _NAMES}, features
        device, stream = place(means)
        valid = None if valid is None else valid.contiguous()
        kept = (viewmat.contiguous(), K.contiguous(), target.contiguous(), valid, background)  # until update is queued
        self.scene = Scene(
            num, *(address(t) for t in self.parameters.values()), address(features),
            *(address(t) for t in kept[:2]), address(background), None, NEAR, 1 + parameters["shN"].shape[1], sh_degree,
            dim, width, height, False, device, True, stream,
        )  # fmt: skip
        self.frame = Frame(
            radii=take("radii", num * 4), last=take("last", pixels * 4), moments=take("moments", num * MOMENTS * 4)
        )
        build_frame(self.scene, self.frame, self.memory, for_backward=True)
        image = take("image", pixels * 12)
        render(self.scene, self.frame, Images(image, address(maps), None, None))
        self.loss = means.new_empty(())
        problem = Photometric(
            image, address(kept[2]), address(valid), take("maps", pixels * 36),
            take("parts", 4 * num_parts(width, height)), address(self.loss), width, height, True, lambda_dssim,
        )  # fmt: skip
        run(problem, means)
        run_backward(problem, None, take("image_gradient", pixels * 12), means)
        self.kept = kept
        return self.loss, maps

    def update(
        self, adam: Mapping[str, AdamState], feature_gradient: Tensor | None,
        *, beta1: float, beta2: float, eps: float, grad_sum: Tensor | None, num_seen: Tensor | None,
    ) -> None:  # fmt: skip
        """Blend backwards and take the Adam step."""
        take = self.memory.take
        rows = None
        if feature_gradient is not None:
            feature_gradient = feature_gradient.contiguous()
            rows = torch.zeros_like(self.features)
        gradients = Gradients(
            image=take("image_gradient", 0), features=address(feature_gradient), out_image=take("image", 0),
            moments=self.frame.moments, feature_rows=address(rows),
        )  # fmt: skip
        blend_backward(self.scene, self.frame, gradients)
        problem = _Update(
            *(
                Adam(address(value), None, *(address(t) for t in adam[name][:2]), value.numel(), *adam[name][2:])
                for name, value in self.parameters.items()
            ),
            beta1, beta2, eps, address(grad_sum), address(num_seen), address(self.loss),
        )  # fmt: skip
        check(_lib.dgr_cuda_update(byref(self.scene), byref(self.frame), byref(problem)))
        changed = [t for name, value in self.parameters.items() for t in (value, *adam[name][:2])]
        torch.autograd.graph.increment_version(changed)
        if rows is not None:
            state = adam["features"]
            adam_steps(
                [(self.features, rows, state.exp_avg, state.exp_avg_sq)],
                lrs=[state.lr], beta1=beta1, beta2=beta2, eps=eps, steps=[state.step],
            )  # fmt: skip
        self.kept = ()
