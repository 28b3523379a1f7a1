"""Exposure compensation: photos differ in colour, the scene does not. One kind per file, found by its `EXPOSURE`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from unified_lift.errors import UserError
from unified_lift.modelfolder.settings import GeometrySettings
from unified_lift.registry import members
from unified_lift.train.exposure.base import ExposureKind
from unified_lift.train.optim import NamedAdam

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

    Differs: 3D-GS and gsplat step all photos in every step, by the momentum of earlier ones.
    """

    def __init__(
        self, kind: ExposureKind, names: Sequence[str], settings: GeometrySettings, device: torch.device
    ) -> None:
        """Begin with no compensation of the photos `names`."""
        self.kind, self.names = kind, list(names)
        self._rate = settings.exposure_lr or kind.rate
        start = kind.identity(settings).to(device)
        self.tables = [start.clone().requires_grad_() for _ in names]
        self._adam = NamedAdam(eps=1e-15)  # as that of the Gaussians

    def __str__(self) -> str:
        return f"exposure: {self.kind.name}, {self.kind.what} for each of {len(self.names)} training photos"

    def apply(self, index: int, image: Tensor, alpha: Tensor | None = None) -> Tensor:
        """Return a rendering [H, W, 3] with the colours of photo `index`, less so where its alpha, uint8 [H, W], is."""
        changed = self.kind.apply(self.tables[index], image)
        return changed if alpha is None else torch.lerp(image, changed, alpha[..., None] / 255)

    def penalties(self, index: int) -> dict[str, Tensor]:
        """Return the loss terms on the parameters of photo `index`."""
        return {} if self.kind.penalty is None else {"exposure": self.kind.penalty(self.tables[index])}

    def step(self, index: int, progress: float) -> None:
        """Move photo `index` by its gradient, `progress` of the way through the stage, and forget that."""
        warmth = min(1.0, 0.01 + progress / self.kind.warm_up) if self.kind.warm_up else 1.0
        name = str(index)
        self._adam.step({name: self.tables[index]}, {name: warmth * self._rate * self.kind.last_share**progress})
        self.tables[index].grad = None

    def matrices(self) -> dict[str, list[list[float]]]:
        """Return name of photo -> its colour matrix 3x4, as 3D-GS's exposure.json has it."""
        rows = [self.kind.matrix(table.detach()).cpu().double() for table in self.tables]
        return {name: matrix.tolist() for name, matrix in zip(self.names, rows, strict=True)}

    def state_dict(self) -> dict:
        return {"tables": torch.stack([table.detach() for table in self.tables]), "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        device, shape = self.tables[0].device, (len(self.tables), *self.tables[0].shape)
        if state["tables"].shape != shape:
            raise ValueError(f"exposures are {list(state['tables'].shape)}, not {list(shape)}")
        self.tables = [table.to(device, copy=True).requires_grad_() for table in state["tables"]]
        self._adam.load_state_dict(state["adam"])
        if any(moment.shape != shape[1:] for pair in self._adam.moments.values() for moment in pair):
            raise ValueError(f"moments of exposures are not {list(shape[1:])}")
