"""Geometry stage whose Gaussians are shared out: each process keeps a part of them, and shows others what they see."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from diff_gaussian_rasterization import adam_steps, in_sight
from torch import Tensor
from tqdm import tqdm

from unified_lift import ranks
from unified_lift.density import strategy_entry
from unified_lift.density.base import Strategy, contributions
from unified_lift.methods.base import Method
from unified_lift.model.gaussians import Gaussians
from unified_lift.modelfolder.settings import GeometrySettings, TrainSettings
from unified_lift.ops.rng import StepRng
from unified_lift.train.geometry import GeometryStage
from unified_lift.types import Camera, Scene

_WIDE = ["shN"]  # the parameters that take most of the memory


class ShardedGeometryStage(GeometryStage):
    """GeometryStage of several processes; `gaussians` and everything kept of them are this process's part.

    In a step each process sends the Gaussians that a view may show to the process that renders it, gets their gradients
    back, and updates its own. The density strategy acts in every part by itself, as in gsplat and in Grendel-GS (Zhao
    et al. 2024), with random numbers of its own; so it is not told of the others, and a bound on N is one on each part.
    """

    def __init__(
        self, scene: Scene, gaussians: Gaussians, settings: GeometrySettings, strategy: Strategy, *, seed: int
    ) -> None:
        """Take one of every few Gaussians; all stay in use until the first step: a checkpoint parts them again."""
        together = ranks.current()
        self._all: dict[str, Tensor] | None = {name: value.detach() for name, value in gaussians}
        own = gaussians.like({name: value[together.index :: together.count] for name, value in self._all.items()})
        super().__init__(scene, own, settings, strategy, seed=seed)
        self.noise, self.draws = (StepRng(-1 - seed - 1_000 * (1 + together.index) - shift) for shift in (0, 500))
        self.counts = [len(range(rank, len(gaussians), together.count)) for rank in range(together.count)]

    @property
    def choices(self) -> list[str]:
        return [*super().choices, f"Gaussians: each of {self.ranks.count} processes keeps a part"]

    @property
    def num_gaussians(self) -> int:
        return sum(self.counts)

    def seen_together(
        self, indices: Sequence[int], step: int, rates: dict[str, float], watched: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], Tensor]:
        self._all, table, place = None, self.gaussians.table, self.ranks.index
        self.on_phase("exchange")
        ids, sent, received = self._shown([self.cameras[index] for index in indices])
        rows = {name: value.detach().index_select(0, ids) for name, value in table.items()}
        shown = self._swapped(rows, sent, received)
        del rows
        terms, total, out = self.seen(indices[place], self.view_of(indices, place), step + place, shown)
        slopes = {name: torch.zeros_like(shown[name]) for name in rates}
        statistics = {name: torch.zeros_like(shown["logit_opacities"]) for name in watched}
        self.renderer.gradients(slopes, loss=total, **statistics)
        largest = out.meta.radii.new_zeros(len(self.gaussians))
        statistics["radii"] = out.meta.radii.float()
        del shown, out
        self.on_phase("exchange")
        slopes = self._swapped({name: slopes.pop(name) for name in rates} | statistics, received, sent)
        self.on_phase("update")
        photos: list[Tensor] = []
        if self.exposures is not None:
            photos = [torch.zeros_like(self.exposures.tables[index]) for index in indices]
            photos[place] += self.exposures.gradient(indices[place])
        with torch.no_grad():
            largest.scatter_reduce_(0, ids, slopes.pop("radii").int(), "amax")
            for name, value in watched.items():
                value.index_add_(0, ids, slopes.pop(name))
            states, share = self.adam.states(table, rates), len(self.gaussians) / max(1, self.num_gaussians)
            for names in ([name for name in rates if name not in _WIDE], _WIDE):  # not at once, since memory is short
                updates = []
                for name, value in ((name, table[name]) for name in names if table[name].numel()):
                    gradient = torch.zeros_like(value).index_add_(0, ids, slopes.pop(name).div_(self.ranks.batch))
                    if value.grad is not None:  # of means over the Gaussians of this part
                        gradient.add_(value.grad, alpha=share)
                        value.grad = None
                    updates.append((value.detach(), gradient, states[name]))
                adam_steps(updates, **self.adam.constants)
        self._step_photos(indices, photos, step)
        return terms, largest

    def _swapped(self, rows: Mapping[str, Tensor], sent: list[int], received: list[int]) -> dict[str, Tensor]:
        """Return what `Ranks.swap` does of each of these tensors; narrow ones travel together, which saves time."""
        wide = [name for name in rows if name in _WIDE]
        found = {name: self.ranks.swap(rows[name], sent, received) for name in wide}
        narrow = {name: value.shape[1:].numel() for name, value in rows.items() if name not in wide}
        packed = torch.cat([rows[name].reshape(len(rows[name]), width) for name, width in narrow.items()], dim=1)
        parts = self.ranks.swap(packed, sent, received).split(list(narrow.values()), dim=1)
        for name, part in zip(narrow, parts, strict=True):
            found[name] = part.reshape(len(part), *rows[name].shape[1:]).contiguous()
        return found

    @torch.no_grad()
    def _shown(self, cameras: Sequence[Camera]) -> tuple[Tensor, list[int], list[int]]:
        """Return the Gaussians of this part that each view may show, one view after another, int64 [M].

        Beside it, how many they are of each view, and how many of each part this process's view may show. The host
        waits for these numbers.
        """
        own = self.gaussians
        flags = torch.stack(
            [
                in_sight(own.table, *c.tensors(own.device), c.width, c.height, antialiased=own.antialiased)
                for c in cameras
            ]
        )
        numbers = torch.zeros(len(cameras), len(cameras) + 1, dtype=torch.int64, device=flags.device)
        numbers[self.ranks.index, :-1] = flags.sum(dim=1)
        numbers[self.ranks.index, -1].fill_(flags.shape[1])
        self.ranks.add(numbers)
        table = numbers.tolist()
        self.counts = [row[-1] for row in table]
        return flags.nonzero()[:, 1], table[self.ranks.index][:-1], [row[self.ranks.index] for row in table]

    def control_density(self, iteration: int, radii: Tensor, rate: float) -> None:
        self.generator.manual_seed(self.draws.number(iteration))  # nothing of it to save
        super().control_density(iteration, radii, rate)

    def contributions(self) -> Tensor:
        whole = self.whole()
        most = contributions(whole, self.cameras[self.ranks.index :: self.ranks.count])
        self.ranks.add(most, largest=True)
        return most.split(self.counts)[self.ranks.index]

    def share_rows(self) -> None:
        """Do nothing: the part is this process's alone."""

    def whole(self) -> Gaussians:
        self._count()
        found = self.gaussians.like({name: value.detach()[:0] for name, value in self.gaussians})
        for name, value in self.gaussians:
            found.set(name, self.ranks.joined(value.detach(), self.counts))
        return found

    def table(self) -> dict[str, Tensor]:
        self._count()
        return {name: self._kept(value.detach()) for name, value in self.gaussians}

    def state_dict(self) -> dict:
        self._count()
        state = super().state_dict()
        moments = {name: (self._kept(m), self._kept(v)) for name, (m, v) in state["adam"]["moments"].items()}
        density = {name: self._kept(value) for name, value in state["density"].items()}
        adam = state["adam"] | {"moments": moments}
        return state | {"adam": adam, "density": density, "shards": list(self.counts)}

    def load_state_dict(self, state: dict) -> None:
        assert self._all is not None
        counts, index, count = state.get("shards", []), self.ranks.index, self.ranks.count
        rows = slice(index, None, count)
        if len(counts) == count:
            rows = slice(sum(counts[:index]), sum(counts[: index + 1]))
        for name, value in self._all.items():
            self.gaussians.set(name, value[rows].clone())
        moments = {name: (m[rows], v[rows]) for name, (m, v) in state["adam"]["moments"].items()}
        self.density = self.strategy.initial_state(len(self.gaussians), self.gaussians.device)
        density = {name: value[rows] for name, value in state["density"].items()}
        super().load_state_dict(state | {"adam": state["adam"] | {"moments": moments}, "density": density})

    def _count(self) -> None:
        """Learn how many Gaussians each part has."""
        own = [0] * self.ranks.count
        own[self.ranks.index] = len(self.gaussians)
        self.counts = self.ranks.sums(*own)

    def _kept(self, rows: Tensor) -> Tensor:
        """Return the rows of all parts in main memory of the first process; elsewhere those of this part."""
        found = self.ranks.joined(rows, self.counts)
        return found.cpu() if self.ranks.is_first else rows


def geometry_stage(
    scene: Scene, gaussians: Gaussians, settings: TrainSettings, method: Method | None, *, seed: int
) -> GeometryStage:
    """Return the geometry stage of a run, with a method the joint schedule, whose Gaussians all processes keep."""
    together, density = ranks.current(), settings.density
    shards = settings.run.shard_gaussians and together.count > 1 and method is None
    if settings.run.shard_gaussians and not shards:
        why = "one process has them all" if together.count == 1 else "the joint schedule needs them all"
        tqdm.write(f"note: --shard_gaussians: Gaussians are not shared out, {why}")
    if shards and (most := getattr(density, "max_gaussians", 0)):  # a bound on all is one on each part
        density = replace(density, max_gaussians=max(1, (most + together.index) // together.count))
    strategy = strategy_entry(settings.strategy).build(density)
    if shards:
        return ShardedGeometryStage(scene, gaussians, settings.geometry, strategy, seed=seed)
    return GeometryStage(scene, gaussians, settings.geometry, strategy, seed=seed, method=method)
