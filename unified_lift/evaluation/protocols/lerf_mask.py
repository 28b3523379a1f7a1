"""LERF-Mask: IoU and boundary IoU of the masks of text prompts (Table 1 of the paper).

The lift knows no words. A prompt is found once, in the reference view (the first test view by name): the ids whose
pixels there lie in the prompt's mask are its ids in every view. Three rows differ in where that mask comes from:
words alone (`mIoU`, `mBIoU`: the benchmark), the ground truth in the prompt's first annotated view, which is then not
scored (`mIoU_oracle`, `mBIoU_oracle`), or nowhere: the best ids there are (`mIoU_best_id`, an upper bound).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from unified_lift.evaluation.grounding import TextMasks
from unified_lift.evaluation.protocols.base import GroundTruth, PredictionBundle, Protocol, ProtocolResult, sizes
from unified_lift.metrics import masks, prompts
from unified_lift.ops.resample import nearest, nearest_indices

Chosen = Mapping[str, tuple[int, ...]]
"""Prompt -> ids."""


class _Scoring:
    """One model on one scene.

    `true`: (view, prompt) -> mask; `chosen`: row -> prompt -> ids; `columns`: name of a score -> view -> prompt ->
    value, None where both masks are empty.
    """

    def __init__(self, predictions: PredictionBundle, ground_truth: GroundTruth) -> None:
        self.names, self.ids = sorted(predictions.names), predictions.object_ids
        self.true = {(v, p): mask for v in self.names for p, mask in ground_truth.prompt_masks.get(v, {}).items()}
        if not self.true:
            raise ValueError(f"none of the {len(self.names)} views has a prompt mask, so there is nothing to score")
        self.views = list(dict.fromkeys(view for view, _ in self.true))
        self.prompts = sorted({prompt for _, prompt in self.true})
        self.likely = functools.cache(functools.partial(predictions.likely, threshold=prompts.MIN_PROBABILITY))
        self.shown: dict[str, dict[str, np.ndarray]] = {prompt: {} for prompt in self.prompts}  # masks, none empty
        for (view, prompt), mask in self.true.items():
            if mask.any():
                self.shown[prompt][view] = mask
        self.columns: dict[str, dict[str, dict[str, float | None]]] = {}
        self.text: TextMasks | None = None
        self.chosen: dict[str, Chosen] = {}
        if predictions.find_prompts is not None:
            self.text = predictions.find_prompts(self.names[0], self.prompts)
            self.choose("", {p: self.select(self.names[0], self.text.masks.get(p)) for p in self.prompts}, {})
        first = self.oracle_views = {prompt: next(iter(shown), None) for prompt, shown in self.shown.items()}
        self.choose("_oracle", {p: self.select(v, self.shown[p].get(v or "")) for p, v in first.items()}, first)
        self.best = {prompt: self.best_of(prompt, shown) for prompt, shown in self.shown.items() if shown}
        self.means = {column: prompts.mean_over_prompts(values) for column, values in self.columns.items()}

    def likely_at(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Return the likely ids of a view at a size, [H, W, K]; none where the view has no prediction."""
        if name not in self.ids:
            return np.full((*shape, 1), prompts.NO_ID)
        ids = self.likely(name)
        rows, columns = (nearest_indices(size, wanted) for size, wanted in zip(ids.shape[:2], shape, strict=True))
        return ids[rows][:, columns]

    def select(self, name: str | None, mask: np.ndarray | None) -> tuple[int, ...]:
        """Return the ids that lie in a mask of a view; the mask may have another size than the ids."""
        if name is None or mask is None or name not in self.ids:
            return ()
        ids = np.asarray(self.ids[name])
        return prompts.select_ids(ids, nearest(mask, *ids.shape), min_share=prompts.MIN_SHARE)

    def choose(self, row: str, chosen: Chosen, left_out: Mapping[str, str | None]) -> None:
        """Score chosen ids in all annotated views but the one left out for a prompt."""
        self.chosen[row] = chosen
        self.columns |= {f"IoU{row}": {}, f"BIoU{row}": {}}
        for (name, prompt), true in self.true.items():
            if left_out.get(prompt) != name:
                pred = prompts.mask_of(self.likely_at(name, true.shape), chosen[prompt])
                self.columns[f"IoU{row}"].setdefault(name, {})[prompt] = masks.iou(pred, true)
                self.columns[f"BIoU{row}"].setdefault(name, {})[prompt] = masks.boundary_iou(pred, true)

    def best_of(self, prompt: str, shown: Mapping[str, np.ndarray]) -> tuple[tuple[int, ...], float]:
        """Return the best ids of a prompt, and their mean IoU."""
        likely = [self.likely_at(name, true.shape) for name, true in shown.items()]
        starts = [chosen[prompt] for chosen in reversed(self.chosen.values())]
        return prompts.best_ids(likely, list(shown.values()), starts=starts)

    def scene_scores(self) -> dict[str, float]:
        scores = {f"m{column}": mean for column, (_, mean) in self.means.items() if mean is not None}
        if self.best:
            scores["mIoU_best_id"] = float(np.mean([value for _, value in self.best.values()]))
        return scores | {"num_prompts": len(self.prompts), "num_prompt_masks": len(self.true)}

    def view_scores(self) -> dict[str, dict[str, float]]:
        """Return the mean over the prompts that are scored in each view."""
        result: dict[str, dict[str, float]] = {}
        for column, views in self.columns.items():
            for name, values in views.items():
                if known := [value for value in values.values() if value is not None]:
                    result.setdefault(f"m{column}", {})[name] = float(np.mean(known))
        return result

    def prompt_entry(self, prompt: str) -> dict[str, Any]:
        entry: dict[str, Any] = {"prompt": prompt, "num_views": sum(prompt == p for _, p in self.true)}
        entry |= {f"ids{row}": list(chosen[prompt]) for row, chosen in self.chosen.items()}
        entry |= {column: means[prompt] for column, (means, _) in self.means.items() if prompt in means}
        entry["oracle_view"] = self.oracle_views[prompt]
        if prompt in self.best:
            entry["ids_best_id"], entry["IoU_best_id"] = list(self.best[prompt][0]), self.best[prompt][1]
        return entry

    def report(self) -> dict[str, Any]:
        """Return every choice behind the scores, the prompts one by one, and the masks one by one."""
        missing = [name for name in self.views if name not in self.ids]
        absent = [name for name in self.names if name not in self.views]
        not_scored = {
            f"m{column}": sum(value is None for values in views.values() for value in values.values())
            for column, views in self.columns.items()
        }
        return {
            "protocol": "lerf_mask",
            "views": self.views,
            "missing_annotations": absent,
            "missing_predictions": missing,
            "num_missing_predictions": sum(view in missing for view, _ in self.true),
            "num_not_scored": not_scored,
            "predictions_resampled_to_annotations": sum(
                name in self.ids and self.ids[name].shape != mask.shape for (name, _), mask in self.true.items()
            ),
            "resolution": sizes(list(self.true.values())),
            "resampling": "masks of prompts to the size of the ground truth, nearest, centre rule",
            "thresholds": {
                "ioa_threshold": prompts.MIN_SHARE,
                "prob_threshold": prompts.MIN_PROBABILITY,
                "mask_level": prompts.MASK_LEVEL,
                "boundary_ratio": masks.BOUNDARY_RATIO,
            },
            "reference_view": self.names[0],
            "grounding": self.text.facts if self.text is not None else None,
            "prompts": [self.prompt_entry(prompt) for prompt in self.prompts],
            "masks": [
                {"view": name, "prompt": prompt}
                | {c: views[name][prompt] for c, views in self.columns.items() if prompt in views.get(name, {})}
                for name, prompt in self.true
            ],
            "warnings": self.warnings(missing, absent, not_scored),
        }

    def warnings(self, missing: list[str], absent: list[str], not_scored: Mapping[str, int]) -> list[str]:
        found = list(self.text.warnings) if self.text is not None else []
        if self.text is None:
            found.append(
                "no mIoU and mBIoU, which need the prompts found by their words: give --grounding FOLDER with the mask"
                f" of every prompt in the reference view {self.names[0]} as <prompt>.png, or --grounding "
                "dino:DIR,sam:DIR"
            )
        elif without := [prompt for prompt, ids in self.chosen[""].items() if not ids]:
            found.append(f"no object lies in the mask of these prompts, which score 0: {', '.join(without)}")
        if once := [prompt for prompt, shown in self.shown.items() if len(shown) == 1]:
            found.append(f"seen in one view only, so without oracle score: {', '.join(once)}")
        if missing:
            found.append(f"{len(missing)} views have no prediction and score 0: {', '.join(missing)}")
        if absent:
            found.append(f"{len(absent)} views have no prompt mask and were left out: {', '.join(absent)}")
        for name, count in not_scored.items():
            if count:
                found.append(f"{count} masks are empty in prediction and ground truth and do not count in {name}")
        return found


def score(predictions: PredictionBundle, ground_truth: GroundTruth) -> ProtocolResult:
    """Return the scores of a model on the annotated test views of a scene.

    Source: Gaussian Grouping's scorer and prompt selection, which Unified-Lift uses.
    Raises:
        ValueError: No view has a prompt mask.
    Differs: A view without prediction scores 0 and is counted (public: skipped); where prediction and ground truth are
        both empty there is nothing to score, which is counted (public: the mean becomes NaN).
    """
    scoring = _Scoring(predictions, ground_truth)
    found: dict[str, dict[str, np.ndarray]] = {}
    if scoring.text is not None:
        for name in scoring.names:
            if name in scoring.ids:
                likely = scoring.likely(name)
                found[name] = {prompt: prompts.mask_of(likely, ids) for prompt, ids in scoring.chosen[""].items()}
    return ProtocolResult(
        scores=scoring.scene_scores(),
        per_view=scoring.view_scores(),
        report=scoring.report(),
        masks=found,
        text=scoring.text,
    )


PROTOCOL = Protocol(name="lerf_mask", ground_truth="prompt_masks", headline=("mIoU", "mIoU_oracle"), score=score)
