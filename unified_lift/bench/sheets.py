"""From numbers to tables of text, and those to Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unified_lift.bench.collect import Measured, Results, Statistic
from unified_lift.bench.tables import MaskSet

NOTHING = "-"
_TEX = {"\\": r"\textbackslash{}", "±": r"$\pm$", "%": r"\%", "&": r"\&", "_": r"\_", "#": r"\#", "$": r"\$"}
_TEX |= {"{": r"\{", "}": r"\}", "<": "$<$", ">": "$>$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table of text.

    Attributes:
        title: Above it.
        header: Names of the columns, the first that of the rows.
        rows: As wide as the header.
        best: (row, column) of the best of ours in each column of scores.
        notes: Below it.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: frozenset[tuple[int, int]] = frozenset()
    notes: tuple[str, ...] = ()


def all_sheets(results: Results) -> list[Sheet]:
    """Return the tables: for each mask set the means, then every metric scene by scene; last what went wrong."""
    sheets = []
    for masks in results.plan.table.masks:
        scenes = results.scenes_of(masks)
        if scenes:
            sheets.append(mean_sheet(results, masks))
        if len(scenes) > 1:
            sheets += [scene_sheet(results, masks, metric) for metric in masks.metrics]
        counts = count_sheet(results, masks)
        sheets += [counts] if counts is not None else []
    problems = problem_sheet(results)
    return [*sheets, *([problems] if problems.rows else [])]


def mean_sheet(results: Results, masks: MaskSet) -> Sheet:
    """Return means over the scenes with the paper's numbers beside them, and the times."""
    plan = results.plan
    quoted = [*filter(None, map(results.published, plan.rows)), *results.cited()]
    printed = [metric for metric in masks.metrics if any(metric in row.mean for row in quoted)]
    has_hours = any(row.hours for row in quoted)
    paper = "paper" if results.on_papers_scenes() else "paper, its scenes"
    header = ["method"]
    for metric in masks.metrics:
        header += [metric, paper] if metric in printed else [metric]
    header += ["geometry s", "lift s", *(["paper hours"] if has_hours else [])]
    rows, means = [], {metric: [] for metric in masks.metrics}
    for row in plan.rows:
        published, line = results.published(row), [row.name]
        for metric in masks.metrics:
            statistic = results.over_scenes(masks, row, metric)
            means[metric].append(None if row.is_hindsight else statistic.mean)
            line.append(statistic_text(statistic))
            line += [_percent(published.mean.get(metric) if published else None)] if metric in printed else []
        line += [_seconds_text(results.seconds(masks, row, part)) for part in ("geometry", "lift")]
        rows.append(tuple([*line, *([published.hours if published else ""] if has_hours else [])]))
    for cited in results.cited():
        line = [f"{cited.name} (cited)"]
        for metric in masks.metrics:
            line += [NOTHING, _percent(cited.mean.get(metric))] if metric in printed else [NOTHING]
        rows.append(tuple([*line, NOTHING, NOTHING, *([cited.hours] if has_hours else [])]))
    best = frozenset((index, header.index(metric)) for metric, values in means.items() for index in _best_of(values))
    return Sheet(
        title=f"{plan.table.title}, masks {masks.folder}: mean of {_scenes_text(results, masks)}",
        header=tuple(header),
        rows=tuple(rows),
        best=best,
        notes=tuple(_notes(results, masks, has_paper=bool(printed))),
    )


def scene_sheet(results: Results, masks: MaskSet, metric: str) -> Sheet:
    """Return one metric scene by scene; where the paper tells a scene's number it follows in parentheses."""
    plan, scenes = results.plan, results.scenes_of(masks)
    rows, columns = [], {scene: [] for scene in scenes}
    quotes = False
    for row in plan.rows:
        line, published = [row.name], results.published(row)
        for scene in scenes:
            statistic = results.over_seeds(masks, row, scene, metric)
            columns[scene].append(None if row.is_hindsight else statistic.mean)
            quoted = published.scenes.get(scene, {}).get(metric) if published else None
            quotes |= quoted is not None
            line.append(statistic_text(statistic) + (f" ({_percent(quoted)})" if quoted is not None else ""))
        rows.append((*line, statistic_text(results.over_scenes(masks, row, metric))))
    best = frozenset((index, 1 + at) for at, values in enumerate(columns.values()) for index in _best_of(values))
    return Sheet(
        title=f"{metric} by scene, masks {masks.folder}",
        header=("method", *scenes, "mean"),
        rows=tuple(rows),
        best=best,
        notes=("In parentheses: the paper.",) if quotes else (),
    )


def count_sheet(results: Results, masks: MaskSet) -> Sheet | None:
    """Return how many objects each method shows in the held-out views, scene by scene; None where nobody counts.

    Source: num_objects_pred (for whole-image segments background pieces are among them) and num_objects_true.
    """
    scenes = results.scenes_of(masks)
    places = [place for place in results.measured if place.masks == masks.folder and "num_objects_true" in place.scores]
    if not places:
        return None
    true = {place.scene: f"{place.scores['num_objects_true']:.0f}" for place in places}
    rows = [("annotated", *(true.get(scene, NOTHING) for scene in scenes))]
    for row in results.plan.rows:
        line = [row.name]
        for scene in scenes:
            own = [p for p in places if p.row == row.key and p.scene == scene and "num_objects_pred" in p.scores]
            counted = [place.scores["num_objects_pred"] for place in own]
            groups = [g for g in (place.facts.get("method", {}).get("num_groups") for place in own) if g is not None]
            text = f"{sum(counted) / len(counted):.0f}" if counted else NOTHING
            line.append(f"{text} of {sum(groups) / len(groups):.0f} groups" if groups else text)
        rows.append(tuple(line))
    return Sheet(
        title=f"Objects in the held-out views, masks {masks.folder}", header=("method", *scenes), rows=tuple(rows)
    )


def problem_sheet(results: Results) -> Sheet:
    """Return every place of the grid that has no result, and why."""
    places = [place for place in results.measured if place.state.status != "done"]
    rows = [
        (place.masks, place.scene, place.row, str(place.seed), _status_word(place), place.state.message or NOTHING)
        for place in places
    ]
    header = ("masks", "scene", "method", "seed", "state", "why")
    return Sheet(title="Cells without a result", header=header, rows=tuple(rows))


def statistic_text(statistic: Statistic) -> str:
    """Return a score in percent with its spread, what is missing said in words."""
    if statistic.mean is None:
        return statistic.problem or NOTHING
    text = _percent(statistic.mean)
    if statistic.spread is not None:
        text += f" ± {100 * statistic.spread:.1f}"
    if statistic.count < statistic.expected:
        text += f" [{statistic.count} of {statistic.expected}, rest {statistic.problem}]"
    return text


def markdown(sheets: Sequence[Sheet]) -> str:
    """Return the tables as Markdown, the best of ours bold."""
    parts = []
    for sheet in sheets:
        lines = [f"### {sheet.title}", "", _bar(sheet.header), _bar(["---"] * len(sheet.header))]
        for index, row in enumerate(sheet.rows):
            lines.append(_bar([f"**{w}**" if (index, at) in sheet.best else w for at, w in enumerate(row)]))
        lines += ["", *sheet.notes] if sheet.notes else []
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def latex(sheets: Sequence[Sheet]) -> str:
    """Return the tables as LaTeX (package booktabs), the best of ours bold."""
    parts = []
    for sheet in sheets:
        lines = [
            f"% {sheet.title}",
            rf"\begin{{tabular}}{{l{'r' * (len(sheet.header) - 1)}}}",
            r"\toprule",
            _tex_row(sheet.header),
            r"\midrule",
        ]
        for index, row in enumerate(sheet.rows):
            words = [_tex(word) for word in row]
            bold = [rf"\textbf{{{w}}}" if (index, at) in sheet.best else w for at, w in enumerate(words)]
            lines.append(" & ".join(bold) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}", *(f"% {note}" for note in sheet.notes)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def csv_text(results: Results) -> str:
    """Return one line for every place of the grid; scores are fractions, PSNR in dB."""
    metrics = list(dict.fromkeys(name for place in results.measured for name in place.scores))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names = ("masks", "scene", "method", "seed", "state", "geometry_s", "lift_s")
    writer.writerow([*names, *metrics, "message"])
    for place in results.measured:
        seconds = [place.seconds.get(part, "") for part in ("geometry", "lift")]
        scores = [place.scores.get(metric, "") for metric in metrics]
        own = [place.masks, place.scene, place.row, place.seed, _status_word(place)]
        writer.writerow([*own, *seconds, *scores, place.state.message])
    return file.getvalue()


def summary(results: Results) -> dict[str, Any]:
    """Return the means as JSON-able values, with what they were computed on."""
    plan = results.plan
    entries = []
    for masks in plan.table.masks:
        for row in plan.rows:
            published = results.published(row)
            metrics = {}
            for metric in masks.metrics:
                by_scene = {s: _plain(results.over_seeds(masks, row, s, metric)) for s in results.scenes_of(masks)}
                overall = _plain(results.over_scenes(masks, row, metric))
                paper = published.mean.get(metric) if published else None
                metrics[metric] = {**overall, "paper": paper, "scenes": by_scene}
            seconds = {part: _plain(results.seconds(masks, row, part)) for part in ("geometry", "lift")}
            entries.append({"masks": masks.folder, "method": row.key, "metrics": metrics, "seconds": seconds})
    states = [_status_word(place) for place in results.measured]
    return {
        "table": plan.table.key,
        "scenes": [scene.name for scene in plan.scenes],
        "seeds": list(plan.seeds),
        "iterations": plan.iterations,
        "extra": list(plan.extra),
        "spread": "half the range over the seeds",
        "states": {state: states.count(state) for state in dict.fromkeys(states)},
        "ran_on": ran_on(results),
        "rows": entries,
    }


def ran_on(results: Results) -> list[str]:
    """Return what the models were trained with: program, commit, torch and device, each combination once."""
    found = [
        ", ".join(str(place.facts[key]) for key in ("program", "commit", "torch", "device") if place.facts.get(key))
        for place in results.measured
        if place.facts
    ]
    return list(dict.fromkeys(found))


def _best_of(values: Sequence[float | None]) -> list[int]:
    """Return where the largest value stands; nowhere if there are less than two."""
    known = [value for value in values if value is not None]
    return [index for index, value in enumerate(values) if len(known) > 1 and value == max(known)]


def _notes(results: Results, masks: MaskSet, *, has_paper: bool) -> list[str]:
    plan = results.plan
    seeds = len(plan.seeds)
    notes = ["Scores in percent" + (f", mean ± half the range of {seeds} seeds." if seeds > 1 else ", one seed.")]
    notes[0] += (
        " Bold: the best of ours, oracles aside. Times are means over scenes and seeds; all methods share the geometry."
    )
    if has_paper and not results.on_papers_scenes():
        notes.append("The paper's numbers are means over its own scenes, shown for reference only.")
    if any(row.key == "omniseg3d_gs_oracle" for row in plan.rows):
        notes.append("Oracle: the cluster size is the one that scores best on the test views, as the paper's rows do.")
    missing = [scene for scene, folder in sorted(_missing(results)) if folder == masks.folder]
    if missing:
        notes.append(f"No masks {masks.folder}: {', '.join(missing)}.")
    return notes


def _missing(results: Results) -> set[tuple[str, str]]:
    return {(place.scene, place.masks) for place in results.measured if place.state.status == "no masks"}


def _scenes_text(results: Results, masks: MaskSet) -> str:
    scenes = results.scenes_of(masks)
    return scenes[0] if len(scenes) == 1 else f"{len(scenes)} scenes"


def _status_word(place: Measured) -> str:
    return "not run" if place.state.status == "new" else place.state.status


def _plain(statistic: Statistic) -> dict[str, Any]:
    keys = ("mean", "spread", "count", "expected")
    return {key: getattr(statistic, key) for key in keys} | ({"problem": p} if (p := statistic.problem) else {})


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.1f}"


def _seconds_text(statistic: Statistic) -> str:
    return NOTHING if statistic.mean is None else f"{statistic.mean:.1f}"


def _bar(words: Sequence[str]) -> str:
    return "| " + " | ".join(word.replace("|", "\\|") for word in words) + " |"


def _tex_row(words: Sequence[str]) -> str:
    return " & ".join(map(_tex, words)) + r" \\"


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)
