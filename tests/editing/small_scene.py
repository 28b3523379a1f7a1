"""A scene of a few Gaussians with two objects, for tests of what is written."""

from pathlib import Path

import torch

from unified_lift.model.gaussians import Gaussians
from unified_lift.modelfolder.inference import TrainedScene
from unified_lift.modelfolder.labels import GaussianLabels


def gaussians_of(**columns) -> Gaussians:
    """Return Gaussians with the given columns as lists, plain values elsewhere."""
    count = len(next(iter(columns.values())))
    table = {
        "means": torch.zeros(count, 3),
        "quats": torch.tensor([[1.0, 0, 0, 0]]).repeat(count, 1),
        "log_scales": torch.zeros(count, 3),
        "logit_opacities": torch.zeros(count),
        "sh0": torch.zeros(count, 1, 3),
        "shN": torch.zeros(count, 0, 3),
        "features": torch.zeros(count, 2),
    }
    return Gaussians(table | {name: torch.as_tensor(value, dtype=torch.float32) for name, value in columns.items()})


def random_gaussians(count: int, *, degree: int = 3, seed: int = 0) -> Gaussians:
    """Return Gaussians as training leaves them: any rotation, coefficients of a few tenths."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return gaussians_of(
        means=normal(count, 3),
        quats=normal(count, 4),
        log_scales=normal(count, 3) - 4,
        logit_opacities=normal(count),
        sh0=normal(count, 1, 3) * 0.5,
        shN=normal(count, (degree + 1) ** 2 - 1, 3) * 0.2,
        features=normal(count, 16),
    )


def scene_of(gaussians: Gaussians, ids=None, *, confidence=None, names=None, path=Path("desk")) -> TrainedScene:
    """Return them as a scene; every second one is object 4 unless said otherwise."""
    count = len(gaussians)
    return TrainedScene(
        gaussians=gaussians,
        labels=GaussianLabels(
            torch.tensor([0, 4]).repeat(count)[:count] if ids is None else torch.tensor(ids),
            torch.linspace(0, 1, count) if confidence is None else torch.tensor(confidence),
        ),
        names=names or {},
        path=path,
    )
