"""Points in blocks that lie together, so that what is far away is passed over without looking at each point."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_BITS = 21  # of each axis: three fill an int64
_SPREADING = (
    (32, 0x1F00000000FFFF), (16, 0x1F0000FF0000FF), (8, 0x100F00F00F00F00F), (4, 0x10C30C30C30C30C3),
    (2, 0x1249249249249249),
)  # fmt: skip
_FAR = 4.0  # times the usual reach: such points lie in blocks of their own, as one of them widens a whole block


def z_order(points: Tensor) -> Tensor:
    """Return the order along a Z curve through points [N, 3], in which neighbours follow one another, int64 [N]."""
    low, high = points.min(dim=0).values.double(), points.max(dim=0).values.double()
    cell = ((points.double() - low) / (high - low).clamp(min=1e-30) * (2**_BITS - 1)).long()
    for shift, mask in _SPREADING:  # two free bits after each
        cell = (cell | cell << shift) & mask
    return (cell[:, 0] | cell[:, 1] << 1 | cell[:, 2] << 2).argsort(stable=True)


def boxes_of(points: Tensor, *, size: int) -> tuple[Tensor, Tensor]:
    """Return the corners of the boxes around each `size` points [N, K] that follow one another, [B, K] twice."""
    padded = torch.cat([points, points[-1:].expand(-len(points) % size, -1)]).view(-1, size, points.shape[1])
    return padded.amin(dim=1), padded.amax(dim=1)


class Blocks(NamedTuple):
    """Each of N points is in one of B blocks; of each is known in which box its points lie and how far they reach."""

    points: Tensor  # block after block, those of each rising, int32 on their device, [N]
    sizes: Tensor  # of the blocks, int64 on the CPU, [B]
    low: Tensor  # corners of the boxes, float64 on the CPU, [B, 3]
    high: Tensor
    reach: Tensor  # the largest reach of the points of a block, likewise, [B]

    @classmethod
    def of(cls, points: Tensor, reach: Tensor, *, size: int) -> Blocks:
        """Return blocks of at most `size` of the points [N, 3], at least one, which reach as far around, [N].

        As many points as one block holds stay in their order.
        """
        if len(points) <= size:
            orders = [torch.arange(len(points), device=points.device)]
        else:
            is_far = reach > _FAR * reach.median()
            parts = [some.nonzero()[:, 0] for some in (~is_far, is_far)]
            orders = [rows[z_order(points[rows])] for rows in parts if len(rows)]
        table, rows, sizes, boxes = torch.cat([points, reach[:, None]], dim=1), [], [], []
        for order in orders:
            low, high = boxes_of(table[order], size=size)
            boxes.append(torch.cat([low[:, :3], high], dim=1))
            whole, rest = order.split([len(order) - len(order) % size, len(order) % size])
            rows += [whole.view(-1, size).sort(dim=1).values.flatten().int(), rest.sort().values.int()]
            sizes += [size] * (len(whole) // size) + [len(rest)] * bool(len(rest))
        low, high, reach = torch.cat(boxes).double().cpu().split([3, 3, 1], dim=1)
        return cls(torch.cat(rows), torch.tensor(sizes), low, high, reach[:, 0])

    @property
    def rows(self) -> tuple[Tensor, ...]:
        """Return the points of each block, rising, int32."""
        return self.points.split(self.sizes.tolist())

    def touching(self, low: Tensor, high: Tensor, reach: float | Tensor = 0.0) -> Tensor:
        """Return the indices of the blocks within whose reach, and `reach` more, a box may lie; corners float64 [3]."""
        gap = torch.maximum(self.low - high, low - self.high).clamp(min=0)
        return (gap.norm(dim=1) <= (self.reach + reach) * (1 + 1e-6)).nonzero()[:, 0]

    def points_in(self, blocks: Tensor) -> Tensor:
        """Return the points of blocks, both rising, int32; the host need not wait for a GPU to know how many."""
        if not len(blocks):
            return self.points[:0]
        ends = self.sizes.cumsum(0)
        last = torch.cat([blocks.diff() != 1, blocks.new_ones(1, dtype=torch.bool)])  # of blocks that follow each other
        first = last.roll(1)
        runs = zip((ends - self.sizes)[blocks[first]].tolist(), ends[blocks[last]].tolist(), strict=True)
        found = torch.cat([self.points[begin:end] for begin, end in runs])
        return found if len(blocks) == 1 else found.sort().values
