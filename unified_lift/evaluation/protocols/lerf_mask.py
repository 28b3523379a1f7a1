"""LERF-Mask: IoU and boundary IoU of the masks of text prompts (Table 1 of the paper).

The lift knows no words. A prompt is found once, in the reference view (the first test view by name): the ids whose
pixels there lie in the prompt's mask are its ids in every view. Three rows differ in where that mask comes from:
words alone (`mIoU`, `mBIoU`: the benchmark), the truth in the prompt's first annotated view, which is then not scored
(`mIoU_oracle`, `mBIoU_oracle`), or nowhere: the best ids there are (`mIoU_best_id`, an upper bound).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from unified_lift.evaluation.grounding import TextMasks
from unified_lift.evaluation.protocols.base import PromptMasks, Protocol, ProtocolResult, Subject, sizes
from unified_lift.metrics.masks import BOUNDARY_RATIO, boundary_iou, iou
from unified_lift.metrics.prompts import (
    MASK_LEVEL,
    MIN_PROBABILITY,
    MIN_SHARE,
    NO_ID,
    best_ids,
    mask_of,
    mean_over_prompts,
    select_ids,
)
from unified_lift.ops.resample import nearest, nearest_indices

Chosen = Mapping[str, tuple[int, ...]]
"""Prompt -> ids."""


class _Row(NamedTuple):
    """One way of choosing ids: the ids of each prompt, and view -> prompt -> score, None where both masks are empty."""

    chosen: Chosen
    iou: dict[str, dict[str, float | None]]
    biou: dict[str, dict[str, float | None]]


class _Scene:
    """The predictions as prompts need them, each view asked for once."""

    def __init__(self, subject: Subject) -> None:
        self.subject, self.names = subject, sorted(subject.names)
        self.truth: PromptMasks = {n: subject.prompt_masks[n] for n in self.names if subject.prompt_masks.get(n)}
        if not self.truth:
            raise ValueError(f"none of the {len(self.names)} views has a prompt mask, so there is nothing to score")
        self.prompts = sorted({prompt for masks in self.truth.values() for prompt in masks})
        self.likely = functools.cache(functools.partial(subject.likely, threshold=MIN_PROBABILITY))

    def has_prediction(self, name: str) -> bool:
        return name in self.subject.object_ids

    def likely_at(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Return the likely ids of a view at a size, [H, W, K]; none where the view has no prediction."""
        if not self.has_prediction(name):
            return np.full((*shape, 1), NO_ID)
        ids = self.likely(name)
        rows, columns = (nearest_indices(size, wanted) for size, wanted in zip(ids.shape[:2], shape, strict=True))
        return ids[rows][:, columns]

    def select(self, name: str, mask: np.ndarray) -> tuple[int, ...]:
        """Return the ids that lie in a mask of a view; the mask may have another size than the ids."""
        if not self.has_prediction(name):
            return ()
        ids = np.asarray(self.subject.object_ids[name])
        return select_ids(ids, nearest(mask, *ids.shape), min_share=MIN_SHARE)

    def first_view(self, prompt: str) -> str | None:
        """Return the first view that shows a prompt, None where the truth is empty in all."""
        return next((name for name, masks in self.truth.items() if prompt in masks and masks[prompt].any()), None)

    def row(self, chosen: Chosen, *, left_out: Mapping[str, str | None] | None = None) -> _Row:
        """Return the scores of chosen ids in all annotated views but the one left out for a prompt."""
        scores = _Row(chosen, {}, {})
        for name, masks in self.truth.items():
            for prompt, true in masks.items():
                if prompt in chosen and (left_out is None or left_out[prompt] != name):
                    pred = mask_of(self.likely_at(name, true.shape), chosen[prompt])
                    scores.iou.setdefault(name, {})[prompt] = iou(pred, true)
                    scores.biou.setdefault(name, {})[prompt] = boundary_iou(pred, true)
        return scores


def score(subject: Subject) -> ProtocolResult:
    """Return the scores of a model on the annotated test views of a scene.

    Source: Gaussian Grouping's scorer and prompt selection, which Unified-Lift uses.
    Raises:
        ValueError: No view has a prompt mask.
    Differs: A view without prediction scores 0 and is counted (public: skipped); where prediction and truth are both
        empty there is nothing to score, which is counted (public: the mean becomes NaN).
    """
    scene = _Scene(subject)
    text = subject.ground(scene.names[0], scene.prompts) if subject.ground is not None else None
    views = {prompt: scene.first_view(prompt) for prompt in scene.prompts}
    oracle = scene.row(
        {p: scene.select(v, scene.truth[v][p]) if v is not None else () for p, v in views.items()}, left_out=views
    )
    grounded = scene.row(_found_by_words(scene, text)) if text is not None else None
    best = _best(scene, [row for row in (oracle, grounded) if row is not None])
    rows = {"": grounded, "_oracle": oracle}
    scores: dict[str, float] = {}
    for column, values in _columns(rows).items():
        mean = mean_over_prompts(values)[1]
        if mean is not None:
            scores[f"m{column}"] = mean
    if best:
        scores["mIoU_best_id"] = float(np.mean([value for _, value in best.values()]))
    scores["num_prompts"] = len(scene.prompts)
    scores["num_prompt_masks"] = sum(map(len, scene.truth.values()))
    return ProtocolResult(
        scene=scores,
        per_view=_per_view(rows),
        report=_report(scene, text, rows, views, best),
        masks=_masks(scene, grounded.chosen) if grounded is not None else {},
    )


def _found_by_words(scene: _Scene, text: TextMasks) -> Chosen:
    chosen = {}
    for prompt in scene.prompts:
        mask = text.masks.get(prompt)
        chosen[prompt] = scene.select(scene.names[0], mask) if mask is not None else ()
    return chosen


def _best(scene: _Scene, rows: list[_Row]) -> dict[str, tuple[tuple[int, ...], float]]:
    """Return the best ids of every prompt that some view shows, and their mean IoU."""
    found = {}
    for prompt in scene.prompts:
        trues = {name: masks[prompt] for name, masks in scene.truth.items() if prompt in masks and masks[prompt].any()}
        if trues:
            likely = [scene.likely_at(name, true.shape) for name, true in trues.items()]
            found[prompt] = best_ids(likely, list(trues.values()), starts=[row.chosen[prompt] for row in rows])
    return found


def _masks(scene: _Scene, chosen: Chosen) -> dict[str, dict[str, np.ndarray]]:
    """Return the mask of every prompt in every view at the rendered size."""
    return {
        name: {prompt: mask_of(scene.likely(name), ids) for prompt, ids in chosen.items()}
        for name in scene.names
        if scene.has_prediction(name)
    }


def _per_view(rows: Mapping[str, _Row | None]) -> dict[str, dict[str, float]]:
    """Return the mean over the prompts that are scored in each view."""
    result: dict[str, dict[str, float]] = {}
    for column, views in _columns(rows).items():
        for name, values in views.items():
            known = [value for value in values.values() if value is not None]
            if known:
                result.setdefault(name, {})[f"m{column}"] = float(np.mean(known))
    return result


def _report(
    scene: _Scene,
    text: TextMasks | None,
    rows: Mapping[str, _Row | None],
    oracle_views: Mapping[str, str | None],
    best: Mapping[str, tuple[tuple[int, ...], float]],
) -> dict[str, object]:
    """Return every choice behind the scores, the prompts one by one, and the masks one by one."""
    columns = _columns(rows)
    trues = [mask for masks in scene.truth.values() for mask in masks.values()]
    pairs = [(name, prompt) for name, masks in scene.truth.items() for prompt in masks]
    missing = [name for name in scene.truth if not scene.has_prediction(name)]
    not_scored = {
        f"m{column}": sum(value is None for values in views.values() for value in values.values())
        for column, views in columns.items()
    }
    resampled = sum(
        scene.has_prediction(name) and scene.subject.object_ids[name].shape != scene.truth[name][prompt].shape
        for name, prompt in pairs
    )
    return {
        "protocol": "lerf_mask",
        "views": list(scene.truth),
        "missing_annotations": [name for name in scene.names if name not in scene.truth],
        "missing_predictions": missing,
        "num_missing_predictions": sum(len(scene.truth[name]) for name in missing),
        "num_not_scored": not_scored,
        "predictions_resampled_to_annotations": resampled,
        "resolution": sizes(trues),
        "resampling": "masks of prompts to the size of the truth, nearest, centre rule",
        "thresholds": {
            "ioa_threshold": MIN_SHARE,
            "prob_threshold": MIN_PROBABILITY,
            "mask_level": MASK_LEVEL,
            "boundary_ratio": BOUNDARY_RATIO,
        },
        "reference_view": scene.names[0],
        "grounding": text.facts if text is not None else None,
        "prompts": [_prompt_entry(prompt, scene, rows, oracle_views, best) for prompt in scene.prompts],
        "masks": [
            {"view": name, "prompt": prompt}
            | {column: values[name][prompt] for column, values in columns.items() if prompt in values.get(name, {})}
            for name, prompt in pairs
        ],
        "warnings": _warnings(scene, text, rows, missing, not_scored),
    }


def _prompt_entry(
    prompt: str,
    scene: _Scene,
    rows: Mapping[str, _Row | None],
    oracle_views: Mapping[str, str | None],
    best: Mapping[str, tuple[tuple[int, ...], float]],
) -> dict[str, object]:
    entry: dict[str, object] = {"prompt": prompt, "num_views": sum(prompt in masks for masks in scene.truth.values())}
    for suffix, row in rows.items():
        if row is not None:
            entry[f"ids{suffix}"] = list(row.chosen[prompt])
    means = {column: mean_over_prompts(values)[0] for column, values in _columns(rows).items()}
    entry |= {column: values[prompt] for column, values in means.items() if prompt in values}
    entry["oracle_view"] = oracle_views[prompt]
    if prompt in best:
        entry |= {"ids_best_id": list(best[prompt][0]), "IoU_best_id": best[prompt][1]}
    return entry


def _columns(rows: Mapping[str, _Row | None]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return IoU and BIoU of every row that exists, by name."""
    return {
        f"{label}{suffix}": getattr(row, kind)
        for suffix, row in rows.items()
        if row is not None
        for kind, label in (("iou", "IoU"), ("biou", "BIoU"))
    }


def _warnings(
    scene: _Scene,
    text: TextMasks | None,
    rows: Mapping[str, _Row | None],
    missing: list[str],
    not_scored: Mapping[str, int],
) -> list[str]:
    found = list(text.warnings) if text is not None else []
    grounded = rows[""]
    if grounded is None:
        found.append(
            "no mIoU and mBIoU, which need the prompts found by their words: give --grounding FOLDER with the mask of "
            f"every prompt in the reference view {scene.names[0]} as <prompt>.png, or --grounding dino:DIR,sam:DIR"
        )
    else:
        without = [prompt for prompt, ids in grounded.chosen.items() if not ids]
        if without:
            found.append(f"no object lies in the mask of these prompts, which score 0: {', '.join(without)}")
    once = [p for p in scene.prompts if sum(p in masks and masks[p].any() for masks in scene.truth.values()) == 1]
    if once:
        found.append(f"seen in one view only, so without oracle score: {', '.join(once)}")
    if missing:
        found.append(f"{len(missing)} views have no prediction and score 0: {', '.join(missing)}")
    absent = [name for name in scene.names if name not in scene.truth]
    if absent:
        found.append(f"{len(absent)} views have no prompt mask and were left out: {', '.join(absent)}")
    found += [
        f"{count} masks are empty in prediction and truth and do not count in {n}"
        for n, count in not_scored.items()
        if count
    ]
    return found


PROTOCOL = Protocol(name="lerf_mask", truth="prompt_masks", headline=("mIoU", "mIoU_oracle"), score=score)
