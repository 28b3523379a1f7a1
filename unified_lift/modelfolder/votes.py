"""Votes of pixels for the objects of Gaussians: an entry for each pair that occurs, never for each that there is."""

from typing import NamedTuple

import torch
from diff_gaussian_rasterization import PixelWeights
from torch import Tensor

from unified_lift.ranks import Ranks

_LEAST_PENDING = 2**22  # entries that wait before they are put together with the others


class Votes:
    """Blending weights of N Gaussians summed over the pixels that vote for each of L objects; sparse [N, L].

    What a view adds is summed in a table of the Gaussians and objects that it shows, of at most `max_cells` numbers,
    or, where it shows more, in several.
    """

    def __init__(self, count: int, num_objects: int, device: torch.device, *, max_cells: int) -> None:
        self._count, self._num_objects, self._max_cells = count, num_objects, max_cells
        self._keys = torch.zeros(0, dtype=torch.int64, device=device)  # Gaussian x L + object: 64 bits reach for all
        self._sums = torch.zeros(0, device=device)
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._slots = torch.zeros(count, dtype=torch.int32, device=device)  # scratch: place of Gaussians in a table

    def add(self, weights: PixelWeights, ids: Tensor) -> None:
        """Let pixels vote for objects `ids`, -1 = none, int64 [P], by the blending weights of each."""
        shown = ids.unique()
        shown = shown[shown >= 0]
        if not len(shown):
            return
        voted, rows, count = weights.gaussian_ids, None, weights.offsets.diff()
        if self._count * (len(shown) + 1) > 4 * len(voted):  # else a table of all Gaussians is cheaper
            rows = torch.zeros(self._count, dtype=torch.bool, device=ids.device).index_fill_(0, voted.long(), True)
            rows = rows.nonzero()[:, 0]
            self._slots[rows] = torch.arange(len(rows), dtype=torch.int32, device=ids.device)
            voted = self._slots.index_select(0, voted)
        height = self._count if rows is None else len(rows)
        for part in shown.split(max(1, self._max_cells // max(height, 1))):
            column = torch.searchsorted(part, ids).clamp(max=len(part) - 1)
            column = torch.where(part[column] == ids, column, len(part)).int()  # the last: votes for others
            place = column.repeat_interleave(count, output_size=len(voted)).add_(voted, alpha=len(part) + 1)
            table = torch.zeros(height, len(part) + 1, device=ids.device)
            table.view(-1).index_add_(0, place, weights.weights)
            row, of_part = table[:, :-1].nonzero(as_tuple=True)
            keys = (row if rows is None else rows[row]) * self._num_objects + part[of_part]
            self._pending.append((keys, table[row, of_part]))
        if sum(len(keys) for keys, _ in self._pending) > max(_LEAST_PENDING, len(self._keys)):
            self._put_together()

    def _put_together(self) -> None:
        """Sum the entries of one pair that came from several views, in the order of the views."""
        keys, sums = (torch.cat(parts) for parts in zip((self._keys, self._sums), *self._pending, strict=True))
        self._keys, place = keys.unique(return_inverse=True)
        self._sums = torch.zeros(len(self._keys), device=sums.device).index_add_(0, place, sums)
        self._pending = []

    def join(self, together: Ranks) -> None:
        """Add the votes that other processes have counted to these; all have to ask, and then have all."""
        if together.count > 1:
            if self._pending:
                self._put_together()
            own = self._keys, self._sums
            self._pending = [together.of(owner, lambda: own) for owner in range(together.count)]
            self._keys, self._sums = self._keys[:0], self._sums[:0]

    def entries(self) -> "Entries":
        """Return all that was voted."""
        if self._pending:
            self._put_together()
        return Entries(self._keys // self._num_objects, self._keys % self._num_objects, self._sums, self._count)


class Entries(NamedTuple):
    """E pairs of a Gaussian and an object, sorted, with the weight that votes for both."""

    gaussian: Tensor  # int64 [E]
    object: Tensor  # int64 [E]
    votes: Tensor  # above 0, [E]
    num_gaussians: int

    def totals(self) -> Tensor:
        """Return all votes of each Gaussian, [N]."""
        return self.votes.new_zeros(self.num_gaussians).index_add_(0, self.gaussian, self.votes)

    def winners(self) -> tuple[Tensor, Tensor]:
        """Return the object with most votes of each Gaussian, of several the first, 0 without votes; and these, [N]."""
        best = self.votes.new_zeros(self.num_gaussians).scatter_reduce_(0, self.gaussian, self.votes, "amax")
        is_best = self.votes == best[self.gaussian]
        found = torch.zeros_like(best, dtype=torch.int64)
        won = self.gaussian[is_best], self.object[is_best]
        return found.scatter_reduce_(0, *won, "amin", include_self=False), best

    def mixed(self, codes: Tensor, *, power: float, at_once: int = 2**20) -> tuple[Tensor, Tensor]:
        """Return the sum of the codes [L, D] of each Gaussian's objects by votes to a power, [N, D], and these, [N]."""
        shares = self.votes.pow(power)
        sums = codes.new_zeros(self.num_gaussians, codes.shape[1])
        for gaussian, own, share in zip(*(x.split(at_once) for x in (self.gaussian, self.object, shares)), strict=True):
            sums.index_add_(0, gaussian, share[:, None] * codes.index_select(0, own))
        return sums, shares.new_zeros(self.num_gaussians).index_add_(0, self.gaussian, shares)
