"""Exposure compensation: photos differ in colour, the scene does not. One kind per file, found by its `EXPOSURE`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from unified_lift.errors import UserError
from unified_lift.modelfolder.settings import GeometrySettings
from unified_lift.registry import members
from unified_lift.train.exposure.base import ExposureKind
from unified_lift.train.optim import NamedAdam
from unified_lift.types import View

EXPOSURES: dict[str, ExposureKind] = {kind.name: kind for kind in members(__name__, "EXPOSURE")}
"""All kinds by name."""
NO_EXPOSURE = "none"


def exposure_kind(name: str) -> ExposureKind | None:
    """Return the kind of `--exposure`, None for `none`; a UserError lists those there are."""
    if name not in (NO_EXPOSURE, *EXPOSURES):
        raise UserError(f"--exposure {name}: no such kind; there are {', '.join([NO_EXPOSURE, *sorted(EXPOSURES)])}")
    return EXPOSURES.get(name)


class Exposures:
    """The parameters of each training photo, and their Adam: a photo's move in its own steps only.

    Differs: 3D-GS and gsplat step all photos in every step, by the momentum of earlier ones, and let the mean of the
        photos drift away, with which the scene would get colours that no photo has.
    """

    def __init__(
        self, kind: ExposureKind, views: Sequence[View], settings: GeometrySettings, device: torch.device
    ) -> None:
        """Begin with no compensation of the photos of these views."""
        self.kind, self.names = kind, [view.name for view in views]
        width, height = (max(getattr(view.camera, side) for view in views) for side in ("width", "height"))
        self._leaf: tuple[int, Tensor] | None = None
        self._rate = settings.exposure_lr or kind.rate
        start = kind.identity(settings, width, height).to(device)
        self.tables = start.expand(len(views), *start.shape).contiguous()
        self._adam = NamedAdam(eps=1e-15)  # as that of the Gaussians

    def __str__(self) -> str:
        numbers = "x".join(map(str, self.tables.shape[1:]))
        return f"exposure: {self.kind.name}, {self.kind.what} ({numbers}) for each of {len(self.names)} training photos"

    def apply(self, index: int, image: Tensor, alpha: Tensor | None = None) -> Tensor:
        """Return a rendering [H, W, 3] with the colours of photo `index`, less so where its alpha, uint8 [H, W], is."""
        changed = self.kind.apply(self._of(index), image)
        return changed if alpha is None else torch.lerp(image, changed, alpha[..., None] / 255)

    def penalties(self, index: int) -> dict[str, Tensor]:
        """Return the loss terms on the parameters of photo `index`."""
        return {} if self.kind.penalty is None else {"exposure": self.kind.penalty(self._of(index))}

    def gradient(self, index: int) -> Tensor:
        """Return the gradient of the parameters of photo `index`, and forget it."""
        leaf, self._leaf = self._of(index), None
        assert leaf.grad is not None
        return leaf.grad

    def step(self, index: int, progress: float, gradient: Tensor | None = None) -> None:
        """Move photo `index`, `progress` of the way through the stage, by the gradient that it has, or by this one."""
        if gradient is not None:
            self._of(index).grad = gradient
        warmth = min(1.0, 0.01 + progress / self.kind.warm_up) if self.kind.warm_up else 1.0
        name, rate = str(index), warmth * self._rate * self.kind.last_share**progress
        self._adam.step({name: self._of(index)}, {name: rate})
        self._leaf = None
        self.tables.copy_(self.kind.centred(self.tables))

    def _of(self, index: int) -> Tensor:
        """Return the parameters of a photo as a leaf, the same until its step; it shares the memory of `tables`."""
        if self._leaf is None or self._leaf[0] != index:
            self._leaf = index, self.tables[index].requires_grad_()
        return self._leaf[1]

    def matrices(self) -> dict[str, list[list[float]]]:
        """Return name of photo -> its colour matrix 3x4, as 3D-GS's exposure.json has it."""
        rows = [self.kind.matrix(table).cpu().double() for table in self.tables]
        return {name: matrix.tolist() for name, matrix in zip(self.names, rows, strict=True)}

    def state_dict(self) -> dict:
        return {"tables": self.tables, "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        shape = self.tables.shape
        if state["tables"].shape != shape:
            raise ValueError(f"exposures are {list(state['tables'].shape)}, not {list(shape)}")
        self.tables.copy_(state["tables"])
        self._adam.load_state_dict(state["adam"])
        if any(moment.shape != shape[1:] for pair in self._adam.moments.values() for moment in pair):
            raise ValueError(f"moments of exposures are not {list(shape[1:])}")
