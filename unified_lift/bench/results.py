"""From the records of the jobs to one line for every place of the grid, and from those to tables of text."""

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from unified_lift.bench.grid import Grid, job_of, lift_steps, places
from unified_lift.bench.records import Record
from unified_lift.bench.tables import KINDS, PRESETS, ROBUSTNESS, MaskSet
from unified_lift.evaluation.protocols import metric_of

NOTHING = "-"
HIDDEN = ["_model", "_results", "_candidates", "_ran_on"]
"""Columns for plots and pictures: model folder, name of its results, oracle candidates, what it was trained with."""
_TIMES = {"geometry s": "geometry_s", "lift s": "lift_s"}
_COSTS = _TIMES | {"all s": "all_s", "peak GiB": "peak_GiB", "Gaussians": "Gaussians"}
_PLACE = ["masks", "scene", "kind", "amount", "iterations", "method", "seed", "state"]
Columns = Mapping[str, tuple[pd.DataFrame, str]]
"""Name of a column of scores -> the lines of the frame that it is about, and its metric."""


class Score(NamedTuple):
    """Mean and sample standard deviation over the seeds, and why values are missing, in a word ("" = none is)."""

    mean: float | None
    std: float | None
    known: int
    expected: int
    problem: str


class TextTable(NamedTuple):
    """A table of text; `best`: (line, column) of the best of ours in each column of scores."""

    title: str
    cells: pd.DataFrame
    best: Collection[tuple[int, str]] = ()
    notes: Sequence[str] = ()


def measure(grid: Grid, records: Mapping[str, Record]) -> pd.DataFrame:
    """Return a line for every place of the grid; scores are fractions, PSNR in dB, and NaN where there is no result."""
    lines: list[dict[str, Any]] = []
    for place in places(grid):
        masks, scene, row, seed, iterations = place
        line = {"masks": masks.label, "scene": scene.name, "kind": scene.kind, "amount": scene.amount}
        why = f"no folder {masks.folder}/ in the scene"
        line |= {"iterations": iterations, "method": row.key, "seed": seed, "state": "no masks", "message": why}
        if place.has_masks:
            job = job_of(grid, place)
            record, geometry = records[job.key], records[job.geometry.key].figures.get("manifest", {})
            line |= {"state": "not run" if record.status == "new" else record.status, "message": record.message}
            if record.status == "done":
                manifest, scores = record.figures["manifest"], record.figures["scores"]
                seconds, memory = manifest.get("seconds", {}), manifest.get("peak_gpu_bytes", {})
                ran_on = [str(text) for key in ("program", "commit", "torch", "device") if (text := manifest.get(key))]
                line = {name: value for name, value in scores.items() if isinstance(value, int | float)} | line
                line |= {
                    "geometry_s": geometry.get("seconds", {}).get("geometry"),
                    "lift_s": sum(s for name, s in seconds.items() if name not in ("load", "geometry", "finish")),
                    "all_s": sum(seconds.values()),
                    "peak_GiB": max(part["reserved"] for part in memory.values()) / 2**30 if memory else None,
                    "Gaussians": manifest.get("num_gaussians"),
                    "num_groups": manifest.get("method", {}).get("num_groups"),
                    **{"_model": job.model, "_results": record.figures["results"], "_ran_on": ", ".join(ran_on)},
                    "_candidates": record.figures["candidates"] or None,
                }
        lines.append(line)
    frame = pd.DataFrame(lines)
    columns = [*_PLACE, *_COSTS.values(), "num_groups", *(m for masks in grid.table.masks for m in masks.metrics)]
    columns += [*frame.columns.difference([*columns, "message", *HIDDEN]), "message", *HIDDEN]
    unused = [*(() if grid.timeline else ["iterations"]), *(() if frame.kind.any() else ["kind", "amount"])]
    return frame.reindex(columns=dict.fromkeys(columns)).drop(columns=unused)


def score(part: pd.DataFrame, column: str) -> Score:
    """Return the mean over the scenes of `part` of the means over their seeds; std over the seeds that have all scenes.

    Without a value for one of the scenes there is no mean: that of the others is another number.
    """
    axes = [name for name in ("scene", "iterations") if name in part]
    values = part.set_index(["seed", *axes])[column].astype(float).unstack(axes)
    problems = part.state[part[column].isna()].replace({"done": "no score", "blocked": "failed"})
    problem, known = next(iter(problems), ""), int(values.count().sum())
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
    text = " ± ".join(f"{factor * value:.{digits}f}" for value in (found.mean, found.std) if value is not None)
    return text + (f" [{found.known} of {found.expected}, rest {found.problem}]" if found.problem else "")


def of_masks(frame: pd.DataFrame, masks: MaskSet) -> pd.DataFrame:
    """Return the lines of a mask set, without the scenes that lack it."""
    return frame[(frame.masks == masks.label) & (frame.state != "no masks")]


def all_tables(grid: Grid, frame: pd.DataFrame) -> list[TextTable]:
    """Return the tables: for each mask set the means, then every metric scene by scene; last what went wrong."""
    tables = []
    there = [masks for masks in grid.table.masks if len(of_masks(frame, masks))]
    for masks in grid.table.masks:
        part, metric = of_masks(frame, masks), masks.metrics[0]
        if grid.table.key == PRESETS:
            tables.append(_preset_table(grid, part, masks))
        elif grid.table.key == ROBUSTNESS:
            steps = ", ".join(f"{row.key} {lift_steps(row, grid.lift_iterations)}" for row in grid.rows)
            for kind, own in part.groupby("kind", sort=False):
                title = f"{metric}, {kind}: {KINDS[str(kind)][0]}. {_scores_note(grid)} Lift steps: {steps}"
                columns = {f"{amount:g}": (each, metric) for amount, each in own.groupby("amount", sort=False)}
                tables.append(TextTable(title, *_scored(grid, columns)))
        elif len(part):
            tables.append(_mean_table(grid, part, masks))
            for metric in masks.metrics:
                sets = [other for other in there if metric in other.metrics] if masks.name else [masks]
                if masks is sets[0] and (len(sets) > 1 or part.scene.nunique() > 1):
                    tables.append(_scene_table(grid, frame, metric, sets))
            tables += [_count_table(grid, part, masks.label)] if "num_objects_true" in part else []
    problems = frame[frame.state != "done"].rename(columns={"message": "why"}).astype(str).replace("", NOTHING)
    problems.loc[problems.state == "no masks", ["method", "seed"]] = "all"
    cells = problems[["masks", "scene", "method", "seed", "state", "why"]].drop_duplicates().reset_index(drop=True)
    tables += [TextTable("Jobs without a result", cells)] if len(cells) else []
    return tables


def _scored(grid: Grid, columns: Columns) -> tuple[pd.DataFrame, Collection[tuple[int, str]]]:
    """Return a line for each row of the grid, and the best of each column where two have a score, oracles aside."""
    cells, best = pd.DataFrame({"method": [row.name for row in grid.rows]}), set[tuple[int, str]]()
    for name, (part, metric) in columns.items():
        own = [part[part.method == row.key] for row in grid.rows]
        cells[name] = [score_text(lines, metric) for lines in own]
        means = {index: score(own[index], metric).mean for index, row in enumerate(grid.rows) if not row.is_oracle}
        known = [mean for mean in means.values() if mean is not None]
        pick = max if metric_of(metric).higher_is_better else min
        best |= {(index, name) for index, mean in means.items() if len(known) > 1 and mean == pick(known)}
    return cells, best


def _mean_table(grid: Grid, part: pd.DataFrame, masks: MaskSet) -> TextTable:
    """Return means over the scenes with the paper's numbers beside them, and the times."""
    on_papers = {scene.name for scene in grid.scenes} == set(grid.table.scenes)
    scenes = part.scene.unique()
    notes = [f"{_scores_note(grid)} Bold: the best of ours, oracles aside."]
    notes[0] += " Times are means over scenes and seeds; all methods share the geometry."
    if grid.table.paper and not on_papers:
        notes.append("The paper's numbers are means over its own scenes, shown for reference only.")
    if any(row.is_oracle for row in grid.rows):
        notes.append("Oracle: the cluster size is the one that scores best on the test views, as the paper's rows do.")
    if missing := [scene.name for scene in grid.scenes if scene.name not in scenes]:
        notes.append(f"No masks {masks.label}: {', '.join(missing)}.")
    of = scenes[0] if len(scenes) == 1 else f"{len(scenes)} scenes"
    title = f"{grid.table.title}, masks {masks.label}: mean of {of}"
    cells, best = _scored(grid, {metric: (part, metric) for metric in masks.metrics})
    own = {row.citation for row in grid.rows}
    only_cited = [cited for key, cited in grid.table.paper.items() if key not in own]
    published = [*map(grid.table.published, grid.rows), *only_cited]
    cells = cells.reindex(range(len(published)))
    cells.loc[len(grid.rows) :, "method"] = [f"{cited.name} (cited)" for cited in only_cited]
    for metric in masks.metrics:
        values = [f"{100 * cited.mean[metric]:.1f}" if metric in cited.mean else NOTHING for cited in published]
        if set(values) != {NOTHING}:
            name = f"{metric} paper" if on_papers else f"{metric} paper, its scenes"
            cells.insert(cells.columns.get_loc(metric) + 1, name, values)
    for name, column in _TIMES.items():
        means = part[column].astype(float).groupby(part.method).mean().reindex([row.key for row in grid.rows])
        cells[name] = [*means.map("{:.1f}".format, na_action="ignore"), *[NOTHING] * len(only_cited)]
    if any(cited.hours for cited in published):
        cells["paper hours"] = [cited.hours for cited in published]
    return TextTable(title, cells.fillna(NOTHING), best, notes)


def _scene_table(grid: Grid, frame: pd.DataFrame, metric: str, sets: Sequence[MaskSet]) -> TextTable:
    """Return a metric scene by scene under each mask set, in parentheses the paper's number, and the means."""
    scenes: dict[str, tuple[pd.DataFrame, str]] = {}
    for masks in sets:
        part, of = of_masks(frame, masks), f", {masks.label}" if len(sets) > 1 else ""
        scenes |= {f"{scene}{of}": (own, metric) for scene, own in part.groupby("scene", sort=False)}
        scenes |= {f"mean{of}": (part, metric)}
    (cells, best), notes = _scored(grid, scenes), tuple[str, ...]()
    for index, row in enumerate(grid.rows):
        for scene, value in zip(grid.table.scenes, grid.table.published(row).scenes.get(metric, ())):
            if scene in scenes:
                cells.loc[index, scene] += f" ({100 * value:.1f})"
                notes = ("In parentheses: the paper.",)
    return TextTable(f"{metric} by scene, masks {', '.join(masks.label for masks in sets)}", cells, best, notes)


def _preset_table(grid: Grid, part: pd.DataFrame, masks: MaskSet) -> TextTable:
    """Return scores, times and sizes of every preset on every scene, on a timeline at every number of iterations."""
    axes = ["scene", "method", *(["iterations"] if grid.timeline else [])]
    columns, lines = dict(zip(masks.metrics, masks.metrics)) | _COSTS, []
    for place, own in part.groupby(axes, sort=False):
        line = dict(zip(axes, map(str, place))) | {"seeds": str((own.state == "done").sum())}
        lines.append(line | {name: score_text(own, column) for name, column in columns.items()})
    return TextTable(grid.table.title, pd.DataFrame(lines), notes=[_scores_note(grid)])


def _count_table(grid: Grid, part: pd.DataFrame, masks: str) -> TextTable:
    """Return how many objects each method shows in the held-out views, scene by scene, beside those annotated.

    Source: num_objects_pred (for whole-image segments background pieces are among them) and num_objects_true.
    """
    lines = {"annotated": part.num_objects_true}
    for row in grid.rows:
        own = part[part.method == row.key]
        lines |= {row.name: own.num_objects_pred}
        lines |= {f"{row.name}: groups": own.num_groups} if own.num_groups.notna().any() else {}
    means = {name: values.astype(float).groupby(part.scene).mean() for name, values in lines.items()}
    cells = pd.DataFrame(means).reindex(part.scene.unique()).T.map("{:.0f}".format, na_action="ignore").fillna(NOTHING)
    cells = cells.rename_axis(index="method", columns=None).reset_index()
    return TextTable(f"Objects in the held-out views, masks {masks}", cells)


def markdown(tables: Iterable[TextTable]) -> str:
    """Return the tables as Markdown, the best of ours bold."""
    parts = []
    for table in tables:
        lines = [list(table.cells), ["---"] * len(table.cells.columns)]
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
        text = text.replace("±", r"$\pm$").replace("<", "$<$").replace(">", "$>$")
        parts.append("\n".join([f"% {table.title}", text.strip(), *(f"% {note}" for note in table.notes)]))
    return "\n\n".join(parts) + "\n"


def summary(grid: Grid, frame: pd.DataFrame) -> dict[str, Any]:
    """Return the means as JSON-able values, with what they were computed on."""
    entries = []
    for masks, row in itertools.product(grid.table.masks, grid.rows):
        part, paper = of_masks(frame, masks), grid.table.published(row).mean
        part, metrics = part[part.method == row.key], {}
        for metric in masks.metrics:
            scenes = {name: score(own, metric)._asdict() for name, own in part.groupby("scene")}
            metrics[metric] = score(part, metric)._asdict() | {"paper": paper.get(metric), "scenes": scenes}
        seconds = {name: score(part, f"{name}_s")._asdict() for name in ("geometry", "lift")}
        entries.append({"masks": masks.label, "method": row.key, "metrics": metrics, "seconds": seconds})
    return {
        "table": grid.table.key,
        "scenes": [scene.name for scene in grid.scenes],
        "seeds": grid.seeds,
        "iterations": grid.iterations,
        "extra": grid.extra,
        "std": "sample standard deviation over the seeds",
        "states": frame.state.value_counts().to_dict(),
        "ran_on": [text for text in frame._ran_on.dropna().unique() if text],
        "rows": entries,
    }


def _scores_note(grid: Grid) -> str:
    seeds = len(grid.seeds)
    return "Scores in percent, " + (f"mean ± standard deviation of {seeds} seeds." if seeds > 1 else "one seed.")
