"""What a protocol is given and what it returns, and the steps that protocols on annotated ids share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from unified_lift.evaluation.grounding import TextMasks
from unified_lift.metrics.base import Metric
from unified_lift.metrics.matched import (
    MIN_SEGMENT_PIXELS,
    MatchedScores,
    iou_from_counts,
    match_matrix,
    matched_scores,
)
from unified_lift.metrics.panoptic import largest_area_background
from unified_lift.ops.overlaps import overlap_table

NO_TRUE_OBJECT = "no true object occurs in the scored views, so mIoU and F1 do not apply"
Labels = Mapping[str, np.ndarray]
"""View name -> ids, integers [H, W]."""
PromptMasks = Mapping[str, Mapping[str, np.ndarray]]
"""View name -> prompt -> mask, bool [H, W]."""


@dataclass(frozen=True, kw_only=True)
class PredictionBundle:
    """A model's answers on the views of a split. A protocol takes what it needs.

    Attributes:
        names: The views of the split, all of them.
        object_ids: Predicted object ids; a view without them has no prediction.
        likely_ids: (view, threshold) -> ids whose probability is above it, int32 [H, W, K] with -1 in unused places;
            None = only `object_ids` are known, and each pixel's id is certain.
        find_prompts: (view, prompts) -> masks of the prompts found by their words alone; None = nothing does that.
    """

    names: Sequence[str]
    object_ids: Labels
    likely_ids: Callable[[str, float], np.ndarray] | None = None
    find_prompts: Callable[[str, Sequence[str]], TextMasks] | None = None

    def likely(self, name: str, threshold: float) -> np.ndarray:
        """Return the ids whose probability in a view is above the threshold, [H, W, K], see `likely_ids`."""
        if self.likely_ids is None:
            return np.asarray(self.object_ids[name])[..., None]
        return self.likely_ids(name, threshold)


@dataclass(frozen=True, kw_only=True)
class GroundTruth:
    """What predictions are compared with: annotated ids (0 = no object), or masks of text prompts; false if empty."""

    annotations: Labels = field(default_factory=dict)
    prompt_masks: PromptMasks = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.annotations or self.prompt_masks)


@dataclass(frozen=True, kw_only=True)
class ProtocolResult:
    """Scores of one model on one scene; fractions in [0, 1]. A score that does not apply is absent.

    Attributes:
        scores: Name -> score or count of the scene, such as PQ_scene, mIoU, F1, num_objects_true.
        per_view: Name -> view -> score; the protocol decides how they relate to those of the scene.
        report: How the scores came about, ready for JSON: views, missing files, thresholds, sizes, counts, the score
            of every object or prompt, warnings.
        masks: View -> prompt -> predicted mask, bool [H, W], where prompts are what is predicted.
        text: What words alone found in the reference view, where they were used.
    """

    scores: dict[str, float] = field(default_factory=dict)
    per_view: dict[str, dict[str, float]] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    masks: PromptMasks = field(default_factory=dict)
    text: TextMasks | None = None


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One benchmark.

    Attributes:
        name: Key in `PROTOCOLS`.
        ground_truth: The field of `GroundTruth` that it compares with.
        headline: The scores by which models are ranked: of these names, the first that the result has.
        score: Returns the scores. Raises ValueError where there is no ground truth or sizes differ.
        metrics: Scores of its own that `unified_lift.metrics` does not declare.
    """

    name: str
    ground_truth: Literal["annotations", "prompt_masks"]
    headline: tuple[str, ...]
    score: Callable[[PredictionBundle, GroundTruth], ProtocolResult]
    metrics: tuple[Metric, ...] = ()

    def headline_of(self, scores: Mapping[str, float]) -> str | None:
        """Return the name of the score that ranks models, None where there is none."""
        return next((name for name in self.headline if name in scores), None)


@dataclass(frozen=True, kw_only=True)
class AlignedViews:
    """Label maps of the views that can be scored, and what had to be decided about them.

    Attributes:
        names, preds, trues: The annotated views, at the size of their annotations.
        background: Predicted id with the largest area over all views of the split, annotated or not.
        without_annotation, without_prediction: Views that are left out, and those that count as all background.
    """

    names: Sequence[str]
    preds: Sequence[np.ndarray]
    trues: Sequence[np.ndarray]
    background: int
    without_annotation: Sequence[str]
    without_prediction: Sequence[str]

    @cached_property
    def pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the predicted and the true id of every pixel of all views, [P] each."""
        pred, true = (np.concatenate([view.reshape(-1) for view in views]) for views in (self.preds, self.trues))
        return pred, true

    @cached_property
    def table(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return predicted ids, true ids and the pixels each pair shares over all views."""
        return overlap_table(*self.pixels)

    @cached_property
    def matched(self) -> MatchedScores | None:
        """Return the matching over the scene, None where no true object occurs."""
        return matched_scores(self.preds, self.trues, profile="scene") if (self.table[1] != 0).any() else None

    def facts(self) -> dict[str, Any]:
        """Return which views were scored at which size, for a report."""
        return {
            "views": list(self.names),
            "missing_annotations": list(self.without_annotation),
            "missing_predictions": list(self.without_prediction),
            "num_missing_predictions": len(self.without_prediction),
            "resolution": sizes(self.trues),
        }

    def warnings(self) -> list[str]:
        """Return sentences on what the views lack."""
        found = []
        if self.without_prediction:
            found.append(f"{len(self.without_prediction)} views have no prediction and count as all background")
        if self.without_annotation:
            found.append(f"{len(self.without_annotation)} views have no annotation and were left out")
        return found

    def matching_report(self) -> dict[str, Any]:
        """Return the scores of every matching profile, and every true object with its area, partner and IoU.

        The profile `scene_from_100_px` is `scene` without ids of a few stray pixels. Empty without a true object.
        """
        if self.matched is None:
            return {}
        profiles = {"scene": self.matched}
        for name in ("scene_masked", "viewmean"):
            profiles[name] = matched_scores(self.preds, self.trues, profile=name)
        _, true_ids, counts = self.table
        areas = counts.sum(axis=0)
        columns = (areas >= MIN_SEGMENT_PIXELS) & (true_ids != 0)
        if columns.any():
            # Areas stay those of the whole scene: small ids lose their row, not their pixels.
            kept = iou_from_counts(counts)[counts.sum(axis=1) >= MIN_SEGMENT_PIXELS][:, columns]
            profiles[f"scene_from_{MIN_SEGMENT_PIXELS}_px"] = match_matrix(kept.T)
        pairs = zip(self.matched.pairs, self.matched.pair_iou, strict=True)
        partner: dict[int, tuple[int | None, float]] = {true_id: (pred_id, iou) for (true_id, pred_id), iou in pairs}
        objects = []
        for true_id, area in zip(true_ids.tolist(), areas.tolist(), strict=True):
            if true_id != 0:
                pred_id, iou = partner.get(true_id, (None, 0.0))
                objects.append({"true_id": true_id, "pred_id": pred_id, "iou": iou, "area": area})
        keys = ("miou", "f1", "precision", "recall", "tp", "num_pred", "num_true")
        matching = {name: {key: getattr(scores, key) for key in keys} for name, scores in profiles.items()}
        return {"matching": matching, "objects": objects}

    def per_view(self) -> dict[str, dict[str, float]]:
        """Return mIoU over the true objects that a view shows, their number and their share of the pixels.

        Partners are those of the scene; an object without one, or whose partner is not in the view, counts 0.
        """
        partner = dict(self.matched.pairs) if self.matched is not None else {}
        scores: dict[str, dict[str, float]] = {"num_objects": {}, "object_share": {}}
        for name, pred, true in zip(self.names, self.preds, self.trues, strict=True):
            pred_ids, true_ids, counts = overlap_table(pred, true)
            iou = dict(zip(pred_ids.tolist(), iou_from_counts(counts), strict=True))
            nothing = np.zeros(len(true_ids))
            values = [iou.get(partner.get(i), nothing)[column] for column, i in enumerate(true_ids.tolist()) if i != 0]
            scores["num_objects"][name], scores["object_share"][name] = len(values), float(np.mean(true != 0))
            if values:
                scores.setdefault("mIoU", {})[name] = float(np.mean(values))
        return scores


def aligned(predictions: PredictionBundle, ground_truth: GroundTruth) -> AlignedViews:
    """Return the label maps of the annotated views, missing predictions filled with background.

    Raises:
        ValueError: No annotated view, or a prediction of another size than its annotation.
    """
    names, annotations = predictions.names, ground_truth.annotations
    preds = {name: np.asarray(predictions.object_ids[name]) for name in names if name in predictions.object_ids}
    scored = [name for name in names if name in annotations]
    if not scored:
        raise ValueError(f"none of the {len(names)} views has an annotation, so there is nothing to score")
    # The rule speaks of all held-out views, annotated or not.
    background = largest_area_background(list(preds.values())) if preds else 0
    without = [name for name in scored if name not in preds]
    preds |= {name: np.full(annotations[name].shape, background, dtype=np.int32) for name in without}
    for name in scored:
        if preds[name].shape != annotations[name].shape:
            raise ValueError(
                f"view {name}: prediction {preds[name].shape} and annotation {annotations[name].shape} differ in "
                "size; render at the size of the annotations"
            )
    return AlignedViews(
        names=scored,
        preds=[preds[name] for name in scored],
        trues=[np.asarray(annotations[name]) for name in scored],
        background=background,
        without_annotation=[name for name in names if name not in annotations],
        without_prediction=without,
    )


def sizes(maps: Sequence[np.ndarray]) -> list[str]:
    """Return the sizes that occur, as `640x480`."""
    return sorted({f"{view.shape[1]}x{view.shape[0]}" for view in maps})
