"""The Gaussians: a table of named parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unified_lift.ops.blocks import Blocks
from unified_lift.shapes import check_shapes
from unified_lift.types import Camera

MANY = 2**20  # from here on views look only at the blocks of frozen Gaussians that they may show
_BLOCK = 1_024
SH_C0 = 0.28209479177387814  # zeroth real spherical harmonic


@dataclass(eq=False)
class Shown:
    """What views that are asked for again and again show of frozen Gaussians, as far as it was looked for."""

    cameras: frozenset[Camera]
    most: int  # bytes of all rows
    rows: dict[Camera, Tensor] = field(default_factory=dict)  # int32, rising
    nbytes: int = 0  # of all these


class Gaussians:
    """N Gaussians as named leaf tensors.

    Parameters (`table`): means [N, 3] world units; quats [N, 4] wxyz, any length; log_scales [N, 3] natural log of
    world units; logit_opacities [N]; sh0 [N, 1, 3] and shN [N, K-1, 3] colour coefficients; features [N, D] instance
    features, D = 0 until something is lifted.
    """

    NAMES = ("means", "quats", "log_scales", "logit_opacities", "sh0", "shN", "features")
    GEOMETRY_NAMES = NAMES[:-1]
    SHAPES = dict(zip(NAMES, ("N 3", "N 4", "N 3", "N", "N 1 3", "N K 3", "N D"), strict=True))

    def __init__(self, table: Mapping[str, Tensor], *, antialiased: bool = False, takes_over: bool = False) -> None:
        """Take copies of the tensors of `table` as leaves; all of NAMES must be there, with the same N.

        `antialiased`: they are drawn as `rasterize` does with that word, because they were trained so.
        `takes_over`: the memory of those tensors, without copies, as nobody else is going to change it.
        """
        if set(table) != set(self.NAMES):
            raise ValueError(f"Gaussians need {self.NAMES}, received {tuple(table)}")
        check_shapes({name: (table[name], shape) for name, shape in self.SHAPES.items()})
        own = {name: table[name].detach() for name in self.NAMES}
        if not takes_over:
            own = {name: value.clone(memory_format=torch.contiguous_format) for name, value in own.items()}
        self.table = {name: value.contiguous().requires_grad_(True) for name, value in own.items()}
        self.antialiased = antialiased
        self._blocks: Blocks | None = None
        self.shown: Shown | None = None

    def __len__(self) -> int:
        return len(self.table["means"])

    def __getattr__(self, name: str) -> Tensor:
        if name in type(self).NAMES:
            return self.__dict__["table"][name]
        raise AttributeError(name)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self.table.items())

    def set(self, name: str, value: Tensor) -> None:  # noqa: A003
        """Replace one parameter by a new leaf, which takes over the memory of `value`."""
        if name not in self.NAMES:
            raise ValueError(f"no parameter {name!r}; there are {self.NAMES}")
        self.table[name] = value.detach().contiguous().requires_grad_(True)
        if name != "features":
            self._blocks = self.shown = None

    @property
    def scales(self) -> Tensor:
        """Return standard deviations along the axes, world units, [N, 3]."""
        return self.table["log_scales"].exp()

    @property
    def opacities(self) -> Tensor:
        """Return opacities in (0, 1), [N]."""
        return self.table["logit_opacities"].sigmoid()

    @property
    def sh(self) -> Tensor:
        """Return all colour coefficients, [N, K, 3]."""
        return torch.cat([self.table["sh0"], self.table["shN"]], dim=1)

    @property
    def sh_degree(self) -> int:
        """Return the highest SH degree the table can hold."""
        return {1: 0, 4: 1, 9: 2, 16: 3}[1 + self.table["shN"].shape[1]]

    @property
    def feature_dim(self) -> int:
        """Return D."""
        return self.table["features"].shape[1]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the parameters without history; not copies."""
        return {name: value.detach() for name, value in self.table.items()}

    @property
    def device(self) -> torch.device:
        """Return where the parameters live."""
        return self.table["means"].device

    def like(self, table: Mapping[str, Tensor], *, takes_over: bool = False) -> Gaussians:
        """Return the Gaussians of another table, to be drawn as these are."""
        return Gaussians(table, antialiased=self.antialiased, takes_over=takes_over)

    def to(self, device: torch.device) -> Gaussians:
        """Return them on `device`: themselves, if they are there."""
        if self.device == device:
            return self
        return self.like({name: value.detach().to(device) for name, value in self.table.items()}, takes_over=True)

    def parts(self, size: int = 2**16) -> Iterator[Gaussians]:
        """Walk over them, `size` at a time and in their memory: for what would need much for all at once.

        There is a part at least, which may be empty.
        """
        for first in range(0, max(len(self), 1), size):
            rows = {name: value[first : first + size] for name, value in self.state_dict().items()}
            yield self.like(rows, takes_over=True)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for value in self.table.values():
            value.grad = None

    def freeze_geometry(self) -> None:
        """Stop gradients to everything but the features."""
        for name in self.GEOMETRY_NAMES:
            self.table[name].requires_grad_(False)

    @property
    def blocks(self) -> Blocks | None:
        """Return blocks of many frozen Gaussians that reach as far as their largest standard deviation; else None."""
        if len(self) < MANY or any(self.table[name].requires_grad for name in self.GEOMETRY_NAMES):
            return None
        if self._blocks is None:
            largest = self.table["log_scales"].amax(dim=1).exp()
            means, largest = (each.nan_to_num(0.0, 0.0, 0.0) for each in (self.table["means"], largest))
            self._blocks = Blocks.of(means, largest, size=_BLOCK)
        return self._blocks
