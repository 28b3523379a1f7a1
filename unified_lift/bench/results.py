"""From the records of the jobs to one line for every place of the grid, and from those to tables of text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from unified_lift.bench.grid import Grid, job_of, lift_steps, places
from unified_lift.bench.robustness import KINDS
from unified_lift.bench.run import Record
from unified_lift.bench.tables import PRESETS, ROBUSTNESS, MaskSet
from unified_lift.evaluation.protocols import metric_of

NOTHING = "-"
_NOT_LIFT = ("load", "geometry", "finish")
_TIMES = {"geometry s": "geometry_s", "lift s": "lift_s"}
_COSTS = _TIMES | {"all s": "all_s", "peak GiB": "peak_GiB", "Gaussians": "Gaussians"}
_PLACE = ["masks", "scene", "kind", "amount", "iterations", "method", "seed", "state"]
_HIDDEN = ["_model", "_results", "_candidates", "_ran_on"]


class Score(NamedTuple):
    """Mean and sample standard deviation over the seeds, and why values are missing, in a word ("" = none is)."""

    mean: float | None
    std: float | None
    known: int
    expected: int
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """A table of text; `best`: (line, column) of the best of ours in each column of scores."""

    title: str
    cells: pd.DataFrame
    best: frozenset[tuple[int, str]] = frozenset()
    notes: tuple[str, ...] = ()


def measure(grid: Grid, records: Mapping[str, Record]) -> pd.DataFrame:
    """Return a line for every place of the grid; scores are fractions, PSNR in dB, and NaN where there is no result.

    Columns that begin with "_" are for plots and pictures: the model folder, the name of its results, its oracle
    candidates, and what it was trained with.
    """
    lines = []
    for place in places(grid):
        line: dict[str, Any] = {"masks": place.masks.folder, "scene": place.scene.name, "kind": place.scene.kind}
        line |= {"amount": place.scene.amount, "method": place.row.key, "seed": place.seed}
        line |= {"iterations": place.iterations if grid.timeline else None, "state": "no masks"}
        line |= {"message": f"no folder {place.masks.folder}/ in the scene"}
        if place.has_masks:
            job = job_of(grid, place)
            record, geometry = records[job.key], records[job.geometry.key].figures.get("manifest", {})
            line |= {"state": "not run" if record.status == "new" else record.status, "message": record.message}
            if record.status == "done":
                line |= _measured(record.figures)
                line |= {"geometry_s": geometry.get("seconds", {}).get("geometry"), "_model": job.model}
        lines.append(line)
    metrics = [metric for masks in grid.table.masks for metric in masks.metrics]
    frame = pd.DataFrame(lines)
    scores = frame.columns.difference([*_PLACE, *_COSTS.values(), "num_groups", *metrics, "message", *_HIDDEN])
    columns = [*_PLACE, *_COSTS.values(), "num_groups", *metrics, *scores, "message", *_HIDDEN]
    unused = [*(() if grid.timeline else ["iterations"]), *(() if frame.kind.any() else ["kind", "amount"])]
    return frame.reindex(columns=dict.fromkeys(columns)).drop(columns=unused)


def _measured(figures: Mapping[str, Any]) -> dict[str, Any]:
    manifest = figures["manifest"]
    seconds, memory = manifest.get("seconds", {}), manifest.get("peak_gpu_bytes", {})
    ran_on = [str(manifest[key]) for key in ("program", "commit", "torch", "device") if manifest.get(key)]
    return {
        "lift_s": sum(value for name, value in seconds.items() if name not in _NOT_LIFT),
        "all_s": sum(seconds.values()),
        "peak_GiB": max(part["reserved"] for part in memory.values()) / 2**30 if memory else None,
        "Gaussians": manifest.get("num_gaussians"),
        "num_groups": manifest.get("method", {}).get("num_groups"),
        **{name: value for name, value in figures["scores"].items() if isinstance(value, int | float)},
        **{"_results": figures["results"], "_candidates": figures["candidates"] or None, "_ran_on": ", ".join(ran_on)},
    }


def score(part: pd.DataFrame, column: str) -> Score:
    """Return the mean over the scenes of `part` of the means over their seeds; std over the seeds that have all scenes.

    Without a value for one of the scenes there is no mean: that of the others is another number.
    """
    axes = [name for name in ("scene", "iterations") if name in part]
    values = part.set_index(["seed", *axes])[column].astype(float).unstack(axes)
    states = part.state[part[column].isna()].replace({"done": "no score", "blocked": "failed"})
    problem = states.iloc[0] if len(states) else ""
    known = int(values.count().sum())
    if part.empty or values.isna().all().any():
        return Score(None, None, known, values.size, problem or "no masks")
    of_seeds = values.dropna().mean(axis=1)
    std = float(of_seeds.std()) if len(of_seeds) > 1 else None
    return Score(float(values.mean().mean()), std, known, values.size, problem)


def score_text(part: pd.DataFrame, column: str) -> str:
    """Return mean ± std, scores in percent, what is missing said in words."""
    found = score(part, column)
    is_cost = column in _COSTS.values()
    if found.mean is None:
        return NOTHING if is_cost else found.problem
    factor = 100 if metric_of(column).unit == "%" and not is_cost else 1
    digits = 0 if column == "Gaussians" else 1
    text = f"{factor * found.mean:.{digits}f}"
    if found.std is not None:
        text += f" ± {factor * found.std:.{digits}f}"
    if found.known < found.expected:
        text += f" [{found.known} of {found.expected}, rest {found.problem}]"
    return text


def of_masks(frame: pd.DataFrame, masks: MaskSet) -> pd.DataFrame:
    """Return the lines of a mask set, without the scenes that lack it."""
    return frame[(frame.masks == masks.folder) & (frame.state != "no masks")]


def all_tables(grid: Grid, frame: pd.DataFrame) -> list[TextTable]:
    """Return the tables: for each mask set the means, then every metric scene by scene; last what went wrong."""
    tables = []
    for masks in grid.table.masks:
        part = of_masks(frame, masks)
        of = f", masks {masks.folder}"
        if grid.table.key == PRESETS:
            tables.append(_preset_table(grid, part, masks))
        elif grid.table.key == ROBUSTNESS:
            steps = ", ".join(f"{row.key} {lift_steps(row, grid.lift_iterations)}" for row in grid.rows)
            for kind, own in part.groupby("kind", sort=False):
                title = f"{masks.metrics[0]}, {kind}: {KINDS[str(kind)][0]}. {_scores_note(grid)} Lift steps: {steps}"
                tables.append(scene_table(grid, own, masks.metrics[0], "amount", title))
        elif len(part):
            tables.append(mean_table(grid, part, masks))
            if part.scene.nunique() > 1:
                tables += [scene_table(grid, part, m, "scene", f"{m} by scene{of}") for m in masks.metrics]
            if "num_objects_true" in part:
                tables.append(_count_table(grid, part, f"Objects in the held-out views{of}"))
    problems = frame[frame.state != "done"]
    if len(problems):
        cells = problems[["masks", "scene", "method", "seed", "state", "message"]].astype(str).replace("", NOTHING)
        cells = cells.rename(columns={"message": "why"}).reset_index(drop=True)
        tables.append(TextTable(title="Jobs without a result", cells=cells))
    return tables


def mean_table(grid: Grid, part: pd.DataFrame, masks: MaskSet) -> TextTable:
    """Return means over the scenes with the paper's numbers beside them, and the times."""
    paper = grid.table.paper
    own = {row.citation for row in grid.rows}
    lines = [(row.name, part[part.method == row.key], paper.get(row.citation)) for row in grid.rows]
    lines += [(f"{cited.name} (cited)", part[:0], cited) for key, cited in paper.items() if key not in own]
    on_papers = {scene.name for scene in grid.scenes} == set(grid.table.scenes)
    cells: dict[str, list[str]] = {"method": [name for name, _, _ in lines]}
    for metric in masks.metrics:
        cells[metric] = [NOTHING if mine.empty else score_text(mine, metric) for _, mine, _ in lines]
        if any(cited and metric in cited.mean for _, _, cited in lines):
            values = [cited.mean.get(metric) if cited else None for _, _, cited in lines]
            name = f"{metric} paper" if on_papers else f"{metric} paper, its scenes"
            cells[name] = [NOTHING if value is None else f"{100 * value:.1f}" for value in values]
    for name, column in _TIMES.items():
        means = [mine[column].astype(float).mean() for _, mine, _ in lines]
        cells[name] = [f"{mean:.1f}" if mean == mean else NOTHING for mean in means]
    if any(cited and cited.hours for _, _, cited in lines):
        cells["paper hours"] = [cited.hours if cited else "" for _, _, cited in lines]
    scenes = part.scene.unique()
    of = scenes[0] if len(scenes) == 1 else f"{len(scenes)} scenes"
    notes = [f"{_scores_note(grid)} Bold: the best of ours, oracles aside."]
    notes[0] += " Times are means over scenes and seeds; all methods share the geometry."
    if paper and not on_papers:
        notes.append("The paper's numbers are means over its own scenes, shown for reference only.")
    if any(row.is_oracle for row in grid.rows):
        notes.append("Oracle: the cluster size is the one that scores best on the test views, as the paper's rows do.")
    if missing := [scene.name for scene in grid.scenes if scene.name not in scenes]:
        notes.append(f"No masks {masks.folder}: {', '.join(missing)}.")
    return TextTable(
        title=f"{grid.table.title}, masks {masks.folder}: mean of {of}",
        cells=pd.DataFrame(cells),
        best=_best(grid, {metric: (part, metric) for metric in masks.metrics}),
        notes=tuple(notes),
    )


def scene_table(grid: Grid, part: pd.DataFrame, metric: str, by: str, title: str) -> TextTable:
    """Return a metric with a column for each scene (or what else `by` names), and their mean over scenes.

    A scene's number in the paper follows in parentheses.
    """
    columns = {f"{value:g}" if by == "amount" else value: part[part[by] == value] for value in part[by].unique()}
    parts = columns | ({"mean": part} if by == "scene" else {})
    lines, is_quoted = [], False
    for row in grid.rows:
        line = {"method": row.name}
        line |= {name: score_text(own[own.method == row.key], metric) for name, own in parts.items()}
        paper = grid.table.paper.get(row.citation)
        for scene, value in zip(grid.table.scenes, paper.scenes.get(metric, ()) if paper else ()):
            if scene in line:
                line[scene] += f" ({100 * value:.1f})"
                is_quoted = True
        lines.append(line)
    best = _best(grid, {name: (own, metric) for name, own in columns.items()})
    notes = ("In parentheses: the paper.",) if is_quoted else ()
    return TextTable(title=title, cells=pd.DataFrame(lines), best=best, notes=notes)


def _preset_table(grid: Grid, part: pd.DataFrame, masks: MaskSet) -> TextTable:
    """Return scores, times and sizes of every preset on every scene, on a timeline at every number of iterations."""
    axes = ["scene", "method", *(["iterations"] if grid.timeline else [])]
    lines = []
    for place, own in part.groupby(axes, sort=False):
        line = dict(zip(axes, map(str, place))) | {"seeds": str((own.state == "done").sum())}
        line |= {metric: score_text(own, metric) for metric in masks.metrics}
        lines.append(line | {name: score_text(own, column) for name, column in _COSTS.items()})
    return TextTable(title=grid.table.title, cells=pd.DataFrame(lines), notes=(_scores_note(grid),))


def _count_table(grid: Grid, part: pd.DataFrame, title: str) -> TextTable:
    """Return how many objects each method shows in the held-out views, scene by scene, beside those annotated.

    Source: num_objects_pred (for whole-image segments background pieces are among them) and num_objects_true.
    """
    lines = [("annotated", part, "num_objects_true")]
    for row in grid.rows:
        own = part[part.method == row.key]
        lines.append((row.name, own, "num_objects_pred"))
        if own.num_groups.notna().any():
            lines.append((f"{row.name}: groups", own, "num_groups"))
    cells = []
    for name, own, column in lines:
        means = own[column].astype(float).groupby(own.scene, sort=False).mean()
        cells.append({"method": name} | {scene: f"{mean:.0f}" for scene, mean in means.items() if mean == mean})
    return TextTable(title=title, cells=pd.DataFrame(cells).fillna(NOTHING))


def markdown(tables: Iterable[TextTable]) -> str:
    """Return the tables as Markdown, the best of ours bold."""
    parts = []
    for table in tables:
        lines = [list(table.cells.columns), ["---"] * len(table.cells.columns)]
        for index, line in enumerate(table.cells.to_dict("records")):
            lines.append([f"**{text}**" if (index, name) in table.best else text for name, text in line.items()])
        rows = ["| " + " | ".join(text.replace("|", r"\|") for text in line) + " |" for line in lines]
        parts.append("\n".join([f"### {table.title}", "", *rows, *(["", *table.notes] if table.notes else [])]))
    return "\n\n".join(parts) + "\n"


def latex(tables: Iterable[TextTable]) -> str:
    """Return the tables as LaTeX (package booktabs), the best of ours bold."""
    parts = []
    for table in tables:
        style = table.cells.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
        for index, name in table.best:
            style = style.set_properties(subset=([index], [name]), textbf="--rwrap")
        text = style.to_latex(hrules=True, column_format="l" + "r" * (len(table.cells.columns) - 1))
        for letter, command in (("±", r"$\pm$"), ("<", "$<$"), (">", "$>$")):
            text = text.replace(letter, command)
        parts.append("\n".join([f"% {table.title}", text.strip(), *(f"% {note}" for note in table.notes)]))
    return "\n\n".join(parts) + "\n"


def csv_text(frame: pd.DataFrame) -> str:
    """Return one line for every place of the grid."""
    return frame.drop(columns=_HIDDEN).to_csv(index=False)


def summary(grid: Grid, frame: pd.DataFrame) -> dict[str, Any]:
    """Return the means as JSON-able values, with what they were computed on."""
    entries = []
    for masks in grid.table.masks:
        for row in grid.rows:
            part = of_masks(frame, masks)
            part, paper = part[part.method == row.key], grid.table.paper.get(row.citation)
            metrics: dict[str, Any] = {}
            for metric in masks.metrics:
                scenes = {name: score(own, metric)._asdict() for name, own in part.groupby("scene")}
                quoted = paper.mean.get(metric) if paper else None
                metrics[metric] = score(part, metric)._asdict() | {"paper": quoted, "scenes": scenes}
            seconds = {name: score(part, f"{name}_s")._asdict() for name in ("geometry", "lift")}
            entries.append({"masks": masks.folder, "method": row.key, "metrics": metrics, "seconds": seconds})
    return {
        "table": grid.table.key,
        "scenes": [scene.name for scene in grid.scenes],
        "seeds": grid.seeds,
        "iterations": grid.iterations,
        "extra": grid.extra,
        "std": "sample standard deviation over the seeds",
        "states": frame.state.value_counts().to_dict(),
        "ran_on": ran_on(frame),
        "rows": entries,
    }


def ran_on(frame: pd.DataFrame) -> list[str]:
    """Return what the models were trained with: program, commit, torch and device, each combination once."""
    return [text for text in frame._ran_on.dropna().unique() if text]


def _scores_note(grid: Grid) -> str:
    seeds = len(grid.seeds)
    return "Scores in percent, " + (f"mean ± standard deviation of {seeds} seeds." if seeds > 1 else "one seed.")


def _best(grid: Grid, columns: Mapping[str, tuple[pd.DataFrame, str]]) -> frozenset[tuple[int, str]]:
    """Return (line, column) of the best mean of each column, oracles aside; none where there are less than two."""
    best = set()
    for name, (part, metric) in columns.items():
        rows = {index: row.key for index, row in enumerate(grid.rows) if not row.is_oracle}
        means = {index: score(part[part.method == key], metric).mean for index, key in rows.items()}
        known = {index: mean for index, mean in means.items() if mean is not None}
        pick = max if metric_of(metric).higher_is_better else min
        best |= {(index, name) for index, mean in known.items() if len(known) > 1 and mean == pick(known.values())}
    return frozenset(best)
