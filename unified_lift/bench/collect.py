"""From the files of the cells to numbers: scores and seconds of every cell, their means and spreads."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unified_lift.bench.grid import GEOMETRY_FOLDER, Cell, Plan, method_key, read_json, without_masks
from unified_lift.bench.paper import PUBLISHED, Published
from unified_lift.bench.schedule import State, states_of
from unified_lift.bench.tables import MaskSet, Row

_OTHER_STAGES = ("load", "geometry", "finish")
RESULTS_KEY = "ours_0"
"""Key in results.json: a model on finished geometry has no geometry iterations of its own."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A place of the grid: what came of one row on one scene with one seed.

    Attributes:
        scene, masks, row, seed: The place.
        state: How it ended; scores are there only where it is done.
        scores: Names as in results.json.
        seconds: `geometry` and `lift`, as the manifests tell; one that is not known is absent.
        facts: Manifest of the training.
        candidates: Of an oracle reading: candidate -> scores.
    """

    scene: str
    masks: str
    row: str
    seed: int
    state: State
    scores: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    candidates: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """Mean and spread of what is there.

    Attributes:
        mean: None where nothing is there.
        spread: Half the range, (largest - smallest) / 2; None of less than two values.
        count: How many values.
        expected: How many there should be.
        problem: Why values are missing, in a word; "" = none is.
    """

    mean: float | None
    spread: float | None
    count: int
    expected: int
    problem: str = ""


class Results:
    """All measurements of a benchmark, and questions to them."""

    def __init__(self, plan: Plan, measured: Sequence[Measured]) -> None:
        """Keep the measurements of a plan."""
        self.plan, self.measured = plan, list(measured)
        self._at = {(m.masks, m.row, m.scene, m.seed): m for m in measured}

    def at(self, masks: MaskSet, row: Row, scene: str, seed: int) -> Measured:
        """Return one place."""
        return self._at[(masks.folder, row.key, scene, seed)]

    def over_seeds(self, masks: MaskSet, row: Row, scene: str, metric: str) -> Statistic:
        """Return the score of a row on a scene over the seeds."""
        places = [self.at(masks, row, scene, seed) for seed in self.plan.seeds]
        return _statistic([place.scores.get(metric) for place in places], [_problem(p, metric) for p in places])

    def over_scenes(self, masks: MaskSet, row: Row, metric: str) -> Statistic:
        """Return the mean over the scenes that have masks, and its spread over the seeds that have all of them.

        Without a score for one of the scenes there is no mean: that of the others is another number.
        """
        scenes = self.scenes_of(masks)
        each = [self.over_seeds(masks, row, scene, metric) for scene in scenes]
        expected = sum(statistic.expected for statistic in each)
        count = sum(statistic.count for statistic in each)
        problem = next((statistic.problem for statistic in each if statistic.problem), "")
        if not each or any(statistic.mean is None for statistic in each):
            return Statistic(mean=None, spread=None, count=count, expected=expected, problem=problem or "no masks")
        of_seeds = []
        for seed in self.plan.seeds:
            values = [self.at(masks, row, scene, seed).scores.get(metric) for scene in scenes]
            if None not in values:
                of_seeds.append(statistics.mean(values))
        return Statistic(
            mean=statistics.mean(s.mean for s in each if s.mean is not None),
            spread=_spread(of_seeds),
            count=count,
            expected=expected,
            problem=problem,
        )

    def seconds(self, masks: MaskSet, row: Row, part: str) -> Statistic:
        """Return the mean time of a part (`geometry` or `lift`) over scenes and seeds."""
        places = [self.at(masks, row, scene, seed) for scene in self.scenes_of(masks) for seed in self.plan.seeds]
        return _statistic([place.seconds.get(part) for place in places], ["" for _ in places])

    def scenes_of(self, masks: MaskSet) -> list[str]:
        """Return the scenes that have these masks."""
        missing = set(without_masks(self.plan))
        return [scene.name for scene in self.plan.scenes if (scene.name, masks.folder) not in missing]

    def published(self, row: Row) -> Published | None:
        """Return what the paper prints for a row, None where it has no such row."""
        return PUBLISHED[self.plan.table.key].get(row.citation)

    def cited(self) -> list[Published]:
        """Return the rows of the paper's table that are not run here."""
        own = {row.citation for row in self.plan.rows}
        return [row for key, row in PUBLISHED[self.plan.table.key].items() if key not in own]

    def on_papers_scenes(self) -> bool:
        """Return whether the scenes are those of the paper's table, all of them."""
        return {scene.name for scene in self.plan.scenes} == set(self.plan.table.scenes)


def collect(plan: Plan, cells: Sequence[Cell]) -> Results:
    """Return the measurements of every place of the grid, those without a result included."""
    states, by_key = states_of(cells, plan), {cell.key: cell for cell in cells}
    missing = set(without_masks(plan))
    measured = []
    for masks in plan.table.masks:
        for scene in plan.scenes:
            for row in plan.rows:
                for seed in plan.seeds:
                    place = {"scene": scene.name, "masks": masks.folder, "row": row.key, "seed": seed}
                    if (scene.name, masks.folder) in missing:
                        absent = State(status="no masks", message=f"no folder {masks.folder}/ in the scene")
                        measured.append(Measured(**place, state=absent))
                    else:
                        cell = by_key[method_key(scene.name, masks.folder, row, seed)]
                        measured.append(Measured(**place, state=states[cell.key], **_figures(cell, plan, states)))
    return Results(plan, measured)


def _figures(cell: Cell, plan: Plan, states: Mapping[str, State]) -> dict[str, Any]:
    """Return what the files of a finished cell say."""
    if states[cell.key].status != "done":
        return {}
    manifest = read_json(cell.model / "manifest.json")
    geometry = read_json(plan.out / GEOMETRY_FOLDER / cell.scene / f"seed{cell.seed}" / "manifest.json")
    seconds = {
        "geometry": geometry.get("seconds", {}).get("geometry"),
        "lift": sum(value for name, value in manifest.get("seconds", {}).items() if name not in _OTHER_STAGES),
    }
    scores, candidates = read_json(cell.model / "results.json").get(RESULTS_KEY, {}), {}
    if cell.kind == "oracle":
        oracle = read_json(cell.products[0])
        candidates = oracle.get("candidates", {})
        scores = candidates.get(oracle.get("best"), {})
    return {
        "scores": {name: value for name, value in scores.items() if isinstance(value, int | float)},
        "seconds": {name: value for name, value in seconds.items() if value is not None},
        "facts": manifest,
        "candidates": candidates,
    }


def _problem(place: Measured, metric: str) -> str:
    if place.state.status == "done":
        return "" if metric in place.scores else "no score"
    return {"new": "not run", "blocked": "failed"}.get(place.state.status, place.state.status)


def _statistic(values: Sequence[float | None], problems: Sequence[str]) -> Statistic:
    known = [value for value in values if value is not None]
    return Statistic(
        mean=statistics.mean(known) if known else None,
        spread=_spread(known),
        count=len(known),
        expected=len(values),
        problem=next((problem for problem in problems if problem), ""),
    )


def _spread(values: Sequence[float]) -> float | None:
    return (max(values) - min(values)) / 2 if len(values) > 1 else None
