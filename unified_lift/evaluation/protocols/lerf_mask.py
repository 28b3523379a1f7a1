"""LERF-Mask: IoU and boundary IoU of the masks of text prompts (Table 1 of the paper).

The lift knows no words. A prompt is found once, in the reference view (the first test view by name): the ids whose
pixels there lie in the prompt's mask are its ids in every view. Three rows differ in where that mask comes from:
words alone (`mIoU`, `mBIoU`: the benchmark), the ground truth in the prompt's first annotated view, which is then not
scored (`mIoU_oracle`, `mBIoU_oracle`), or nowhere: the best ids there are (`mIoU_best_id`, an upper bound).
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from unified_lift.evaluation.grounding import TextMasks
from unified_lift.evaluation.protocols.base import GroundTruth, PredictionBundle, Protocol, ProtocolResult, sizes
from unified_lift.metrics import prompts
from unified_lift.ops.resample import nearest, nearest_indices

_NO_WORDS = (
    "no mIoU and mBIoU, which need the prompts found by their words: give --grounding FOLDER with the mask of every "
    "prompt in the reference view {} as <prompt>.png, or --grounding dino:DIR,sam:DIR"
)


class _Scoring:
    """One model on one scene.

    `true`: (view, prompt) -> mask, and `records` the scores of each, None where there is nothing to score; `shown`:
    prompt -> view -> mask that is not empty; `chosen`: row -> prompt -> ids; `best`: prompt -> ids and their IoU.
    """

    def __init__(self, predictions: PredictionBundle, ground_truth: GroundTruth) -> None:
        self.names, self.ids = sorted(predictions.names), predictions.object_ids
        self.true = {(v, p): mask for v in self.names for p, mask in ground_truth.prompt_masks.get(v, {}).items()}
        if not self.true:
            raise ValueError(f"none of the {len(self.names)} views has a prompt mask, so there is nothing to score")
        self.records: dict[tuple[str, str], dict[str, Any]] = {(v, p): {"view": v, "prompt": p} for v, p in self.true}
        self.prompts = sorted({prompt for _, prompt in self.true})
        likely_ids = predictions.likely_ids or (lambda name, _: np.asarray(self.ids[name])[..., None])
        self.likely = functools.cache(lambda name: likely_ids(name, prompts.MIN_PROBABILITY))
        self.shown = {p: {v: mask for (v, q), mask in self.true.items() if p == q and mask.any()} for p in self.prompts}
        self.columns: list[str] = []
        self.chosen: dict[str, dict[str, tuple[int, ...]]] = {}
        self.text: TextMasks | None = None
        if predictions.find_prompts is not None:
            self.text = predictions.find_prompts(self.names[0], self.prompts)
            self.choose("", {p: (self.names[0], self.text.masks.get(p)) for p in self.prompts}, leave_out=False)
        self.first = {prompt: next(iter(shown.items()), ("", None)) for prompt, shown in self.shown.items()}
        self.choose("_oracle", self.first, leave_out=True)
        self.best = {}
        for prompt, shown in self.shown.items():
            if shown:
                likely = [self.likely_at(name, mask.shape) for name, mask in shown.items()]
                starts = [chosen[prompt] for chosen in reversed(self.chosen.values())]
                self.best[prompt] = prompts.best_ids(likely, list(shown.values()), starts=starts)

    def likely_at(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Return the likely ids of a view at a size, [H, W, K]; none where the view has no prediction."""
        if name not in self.ids:
            return np.full((*shape, 1), prompts.NO_ID)
        ids = self.likely(name)
        rows, columns = (nearest_indices(size, wanted) for size, wanted in zip(ids.shape[:2], shape, strict=True))
        return ids[rows][:, columns]

    def choose(self, row: str, places: Mapping[str, tuple[str, np.ndarray | None]], *, leave_out: bool) -> None:
        """Choose the ids in the mask of each prompt's view, and score them in all views, or in all but that one."""
        chosen: dict[str, tuple[int, ...]] = dict.fromkeys(places, ())
        for prompt, (view, mask) in places.items():
            if mask is not None and view in self.ids:
                chosen[prompt] = tuple(prompts.select_ids(self.ids[view], nearest(mask, *self.ids[view].shape)))
        self.chosen[row] = chosen
        self.columns += [f"IoU{row}", f"BIoU{row}"]
        for (name, prompt), true in self.true.items():
            if not leave_out or name != places[prompt][0]:
                pred = prompts.mask_of(self.likely_at(name, true.shape), chosen[prompt])
                scores = prompts.iou(pred, true), prompts.boundary_iou(pred, true)
                self.records[name, prompt] |= zip(self.columns[-2:], scores, strict=True)

    def result(self) -> ProtocolResult:
        """Return everything; the report holds every choice behind the scores, and every prompt and mask."""
        taken = {c: [record for record in self.records.values() if c in record] for c in self.columns}
        means = {c: prompts.means((record["prompt"], record[c]) for record in found) for c, found in taken.items()}
        scores = {f"m{column}": float(np.mean(list(found.values()))) for column, found in means.items() if found}
        if self.best:
            scores["mIoU_best_id"] = float(np.mean([value for _, value in self.best.values()]))
        scores |= {"num_prompts": len(self.prompts), "num_prompt_masks": len(self.true)}
        of_views = {f"m{c}": prompts.means((one["view"], one[c]) for one in found) for c, found in taken.items()}
        views = list(dict.fromkeys(view for view, _ in self.true))
        missing = [name for name in views if name not in self.ids]
        absent = [name for name in self.names if name not in views]
        not_scored = {f"m{c}": sum(record[c] is None for record in found) for c, found in taken.items()}
        thresholds = {"ioa_threshold": prompts.MIN_SHARE, "prob_threshold": prompts.MIN_PROBABILITY}
        report = {
            "protocol": "lerf_mask",
            "views": views,
            "missing_annotations": absent,
            "missing_predictions": missing,
            "num_missing_predictions": sum(view in missing for view, _ in self.true),
            "num_not_scored": not_scored,
            "predictions_resampled_to_annotations": sum(
                name in self.ids and self.ids[name].shape != mask.shape for (name, _), mask in self.true.items()
            ),
            "resolution": sizes(self.true.values()),
            "resampling": "masks of prompts to the size of the ground truth, nearest, centre rule",
            "thresholds": thresholds | {"mask_level": prompts.MASK_LEVEL, "boundary_ratio": prompts.BOUNDARY_RATIO},
            "reference_view": self.names[0],
            "grounding": self.text.facts if self.text is not None else None,
            "prompts": [self.prompt_entry(prompt, means) for prompt in self.prompts],
            "masks": list(self.records.values()),
            "warnings": self.warnings(missing, absent, not_scored),
        }
        by_words = self.chosen.get("", {}).items()
        known = [name for name in self.names if by_words and name in self.ids]
        shown = {name: {p: prompts.mask_of(self.likely(name), ids) for p, ids in by_words} for name in known}
        per_view = {name: values for name, values in of_views.items() if values}
        return ProtocolResult(scores=scores, per_view=per_view, report=report, masks=shown, text=self.text)

    def prompt_entry(self, prompt: str, means: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
        entry: dict[str, Any] = {"prompt": prompt, "num_views": sum(prompt == p for _, p in self.true)}
        entry |= {f"ids{row}": list(chosen[prompt]) for row, chosen in self.chosen.items()}
        entry |= {column: found[prompt] for column, found in means.items() if prompt in found}
        entry["oracle_view"] = self.first[prompt][0] or None
        if prompt in self.best:
            entry["ids_best_id"], entry["IoU_best_id"] = list(self.best[prompt][0]), self.best[prompt][1]
        return entry

    def warnings(self, missing: list[str], absent: list[str], not_scored: Mapping[str, int]) -> list[str]:
        by_words = self.chosen.get("", {}).items()
        found = list(self.text.warnings) if self.text is not None else [_NO_WORDS.format(self.names[0])]
        lists = {
            "no object lies in the mask of these prompts, which score 0": [p for p, ids in by_words if not ids],
            "seen in one view only, so without oracle score": [p for p, shown in self.shown.items() if len(shown) == 1],
            f"{len(missing)} views have no prediction and score 0": missing,
            f"{len(absent)} views have no prompt mask and were left out": absent,
        }
        found += [f"{what}: {', '.join(names)}" for what, names in lists.items() if names]
        what = "masks are empty in prediction and ground truth and do not count in"
        return found + [f"{count} {what} {name}" for name, count in not_scored.items() if count]


def score(predictions: PredictionBundle, ground_truth: GroundTruth) -> ProtocolResult:
    """Return the scores of a model on the annotated test views of a scene.

    Source: Gaussian Grouping's scorer and prompt selection, which Unified-Lift uses. A ValueError: no prompt mask.
    Differs: A view without prediction scores 0 and is counted (public: skipped); where prediction and ground truth are
        both empty there is nothing to score, which is counted (public: the mean becomes NaN).
    """
    return _Scoring(predictions, ground_truth).result()


PROTOCOL = Protocol(name="lerf_mask", ground_truth="prompt_masks", headline=("mIoU", "mIoU_oracle"), score=score)
