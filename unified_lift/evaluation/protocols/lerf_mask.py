"""LERF-Mask: IoU and boundary IoU of the masks of text prompts (Table 1 of the paper).

The lift knows no words. A prompt is found once, in the reference view (the first test view by name): the ids whose
pixels there lie in the prompt's mask are its ids in every view. Three rows differ in where that mask comes from:
words alone (`mIoU`, `mBIoU`: the benchmark), the ground truth in the prompt's first annotated view, which is then not
scored (`mIoU_oracle`, `mBIoU_oracle`), or nowhere: the best ids there are (`mIoU_best_id`, an upper bound).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from unified_lift.evaluation.grounding import TextMasks
from unified_lift.evaluation.protocols.base import (
    GroundTruth,
    PredictionBundle,
    PromptMasks,
    Protocol,
    ProtocolResult,
    sizes,
)
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
_SCORES = {"IoU": iou, "BIoU": boundary_iou}


class _Row(NamedTuple):
    """One way of choosing ids: the ids, and name of the score -> view -> prompt -> value, None if both are empty."""

    chosen: Chosen
    scores: dict[str, dict[str, dict[str, float | None]]]


class _Prompts:
    """The predictions as prompts need them, each view asked for once."""

    def __init__(self, predictions: PredictionBundle, ground_truth: GroundTruth) -> None:
        self.names, self.ids = sorted(predictions.names), predictions.object_ids
        self.masks: PromptMasks = {
            n: ground_truth.prompt_masks[n] for n in self.names if ground_truth.prompt_masks.get(n)
        }
        if not self.masks:
            raise ValueError(f"none of the {len(self.names)} views has a prompt mask, so there is nothing to score")
        self.prompts = sorted({prompt for masks in self.masks.values() for prompt in masks})
        self.likely = functools.cache(functools.partial(predictions.likely, threshold=MIN_PROBABILITY))

    def likely_at(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Return the likely ids of a view at a size, [H, W, K]; none where the view has no prediction."""
        if name not in self.ids:
            return np.full((*shape, 1), NO_ID)
        ids = self.likely(name)
        rows, columns = (nearest_indices(size, wanted) for size, wanted in zip(ids.shape[:2], shape, strict=True))
        return ids[rows][:, columns]

    def select(self, name: str, mask: np.ndarray | None) -> tuple[int, ...]:
        """Return the ids that lie in a mask of a view; the mask may have another size than the ids."""
        if mask is None or name not in self.ids:
            return ()
        ids = np.asarray(self.ids[name])
        return select_ids(ids, nearest(mask, *ids.shape), min_share=MIN_SHARE)

    def shown(self, prompt: str) -> dict[str, np.ndarray]:
        """Return the masks of the prompt that are not empty, by view."""
        return {name: masks[prompt] for name, masks in self.masks.items() if prompt in masks and masks[prompt].any()}

    def row(self, chosen: Chosen, left_out: Mapping[str, str | None]) -> _Row:
        """Return the scores of chosen ids in all annotated views but the one left out for a prompt."""
        row = _Row(chosen, {label: {} for label in _SCORES})
        for name, masks in self.masks.items():
            for prompt, true in masks.items():
                if left_out.get(prompt) != name:
                    pred = mask_of(self.likely_at(name, true.shape), chosen[prompt])
                    for label, function in _SCORES.items():
                        row.scores[label].setdefault(name, {})[prompt] = function(pred, true)
        return row

    def best(self, prompt: str, rows: Mapping[str, _Row]) -> tuple[tuple[int, ...], float]:
        """Return the best ids of a prompt that some view shows, and their mean IoU."""
        shown = self.shown(prompt)
        likely = [self.likely_at(name, true.shape) for name, true in shown.items()]
        return best_ids(
            likely, list(shown.values()), starts=[rows[s].chosen[prompt] for s in ("_oracle", "") if s in rows]
        )


def score(predictions: PredictionBundle, ground_truth: GroundTruth) -> ProtocolResult:
    """Return the scores of a model on the annotated test views of a scene.

    Source: Gaussian Grouping's scorer and prompt selection, which Unified-Lift uses.
    Raises:
        ValueError: No view has a prompt mask.
    Differs: A view without prediction scores 0 and is counted (public: skipped); where prediction and ground truth are
        both empty there is nothing to score, which is counted (public: the mean becomes NaN).
    """
    scene = _Prompts(predictions, ground_truth)
    first = {prompt: next(iter(scene.shown(prompt)), None) for prompt in scene.prompts}
    rows, text = {}, None
    if predictions.find_prompts is not None:
        text = predictions.find_prompts(scene.names[0], scene.prompts)
        rows[""] = scene.row({p: scene.select(scene.names[0], text.masks.get(p)) for p in scene.prompts}, {})
    oracle = {p: scene.select(name, scene.masks[name][p]) if name is not None else () for p, name in first.items()}
    rows["_oracle"] = scene.row(oracle, first)
    best = {prompt: scene.best(prompt, rows) for prompt, name in first.items() if name is not None}

    columns = {f"{label}{suffix}": row.scores[label] for suffix, row in rows.items() for label in _SCORES}
    of_prompts = {column: mean_over_prompts(values) for column, values in columns.items()}
    scores = {f"m{column}": mean for column, (_, mean) in of_prompts.items() if mean is not None}
    if best:
        scores["mIoU_best_id"] = float(np.mean([value for _, value in best.values()]))
    scores["num_prompts"], scores["num_prompt_masks"] = len(scene.prompts), sum(map(len, scene.masks.values()))

    per_view: dict[str, dict[str, float]] = {}
    for column, views in columns.items():
        for name, values in views.items():
            known = [value for value in values.values() if value is not None]
            if known:
                per_view.setdefault(name, {})[f"m{column}"] = float(np.mean(known))

    entries = []
    for prompt in scene.prompts:
        entry: dict[str, Any] = {"prompt": prompt, "num_views": sum(prompt in masks for masks in scene.masks.values())}
        entry |= {f"ids{suffix}": list(row.chosen[prompt]) for suffix, row in rows.items()}
        entry |= {column: means[prompt] for column, (means, _) in of_prompts.items() if prompt in means}
        entry["oracle_view"] = first[prompt]
        if prompt in best:
            entry |= {"ids_best_id": list(best[prompt][0]), "IoU_best_id": best[prompt][1]}
        entries.append(entry)

    pairs = [(name, prompt, mask) for name, masks in scene.masks.items() for prompt, mask in masks.items()]
    missing = [name for name in scene.masks if name not in scene.ids]
    absent = [name for name in scene.names if name not in scene.masks]
    not_scored = {
        f"m{column}": sum(value is None for values in views.values() for value in values.values())
        for column, views in columns.items()
    }
    report = {
        "protocol": "lerf_mask",
        "views": list(scene.masks),
        "missing_annotations": absent,
        "missing_predictions": missing,
        "num_missing_predictions": sum(len(scene.masks[name]) for name in missing),
        "num_not_scored": not_scored,
        "predictions_resampled_to_annotations": sum(
            name in scene.ids and scene.ids[name].shape != mask.shape for name, _, mask in pairs
        ),
        "resolution": sizes([mask for _, _, mask in pairs]),
        "resampling": "masks of prompts to the size of the ground truth, nearest, centre rule",
        "thresholds": {
            "ioa_threshold": MIN_SHARE,
            "prob_threshold": MIN_PROBABILITY,
            "mask_level": MASK_LEVEL,
            "boundary_ratio": BOUNDARY_RATIO,
        },
        "reference_view": scene.names[0],
        "grounding": text.facts if text is not None else None,
        "prompts": entries,
        "masks": [
            {"view": name, "prompt": prompt}
            | {column: views[name][prompt] for column, views in columns.items() if prompt in views.get(name, {})}
            for name, prompt, _ in pairs
        ],
        "warnings": _warnings(scene, text, rows, missing, absent, not_scored),
    }
    masks = {}
    if "" in rows:
        for name in filter(scene.ids.__contains__, scene.names):
            masks[name] = {prompt: mask_of(scene.likely(name), ids) for prompt, ids in rows[""].chosen.items()}
    return ProtocolResult(scene=scores, per_view=per_view, report=report, masks=masks, text=text)


def _warnings(
    scene: _Prompts,
    text: TextMasks | None,
    rows: Mapping[str, _Row],
    missing: list[str],
    absent: list[str],
    not_scored: Mapping[str, int],
) -> list[str]:
    found = list(text.warnings) if text is not None else []
    if text is None:
        found.append(
            "no mIoU and mBIoU, which need the prompts found by their words: give --grounding FOLDER with the mask of "
            f"every prompt in the reference view {scene.names[0]} as <prompt>.png, or --grounding dino:DIR,sam:DIR"
        )
    elif without := [prompt for prompt, ids in rows[""].chosen.items() if not ids]:
        found.append(f"no object lies in the mask of these prompts, which score 0: {', '.join(without)}")
    if once := [prompt for prompt in scene.prompts if len(scene.shown(prompt)) == 1]:
        found.append(f"seen in one view only, so without oracle score: {', '.join(once)}")
    if missing:
        found.append(f"{len(missing)} views have no prediction and score 0: {', '.join(missing)}")
    if absent:
        found.append(f"{len(absent)} views have no prompt mask and were left out: {', '.join(absent)}")
    for name, count in not_scored.items():
        if count:
            found.append(f"{count} masks are empty in prediction and ground truth and do not count in {name}")
    return found


PROTOCOL = Protocol(name="lerf_mask", ground_truth="prompt_masks", headline=("mIoU", "mIoU_oracle"), score=score)
