"""What a protocol is given and what it returns, and the steps that protocols on annotated ids share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from unified_lift.evaluation.grounding import TextMasks
from unified_lift.metrics.masks import overlap_table
from unified_lift.metrics.matched import MatchedScores, iou_from_counts, match_matrix, matched_scores
from unified_lift.metrics.panoptic import largest_area_background

# Ids below this many pixels in the scene are left out of the second F1, which stray pixels cannot move.
MIN_SEGMENT_PIXELS = 100
FROM_PIXELS = f"scene_from_{MIN_SEGMENT_PIXELS}_px"

Labels = Mapping[str, np.ndarray]
"""View name -> ids, integers [H, W]."""
PromptMasks = Mapping[str, Mapping[str, np.ndarray]]
"""View name -> prompt -> mask, bool [H, W]."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model's answers on the views of a split, and the truth about them. A protocol takes what it needs.

    Attributes:
        names: The views of the split, all of them.
        object_ids: Predicted object ids; a view without them has no prediction.
        annotations: True ids, 0 = not an object.
        prompt_masks: True masks of text prompts.
        likely_ids: (view, threshold) -> ids whose probability is above it, int32 [H, W, K] with -1 in unused places;
            None = only `object_ids` are known, and each pixel's id is certain.
        ground: (view, prompts) -> masks of the prompts found by their words alone; None = nothing does that.
    """

    names: Sequence[str]
    object_ids: Labels
    annotations: Labels = field(default_factory=dict)
    prompt_masks: PromptMasks = field(default_factory=dict)
    likely_ids: Callable[[str, float], np.ndarray] | None = None
    ground: Callable[[str, Sequence[str]], TextMasks] | None = None

    def likely(self, name: str, *, threshold: float) -> np.ndarray:
        """Return the ids whose probability in a view is above the threshold, [H, W, K], see `likely_ids`."""
        if self.likely_ids is None:
            return np.asarray(self.object_ids[name])[..., None]
        return self.likely_ids(name, threshold)


@dataclass(frozen=True, kw_only=True)
class ProtocolResult:
    """Scores of one model on one scene; fractions in [0, 1]. A score that does not apply is absent.

    Attributes:
        scene: Name -> score or count, such as PQ_scene, mIoU, F1, num_objects_true.
        per_view: By view: its own scores; how they relate to those of the scene is the protocol's word.
        report: How the scores came about, ready for JSON: views, missing files, thresholds, sizes, counts, the score
            of every object or prompt, warnings.
        masks: View -> prompt -> predicted mask, bool [H, W], where prompts are what is predicted.
    """

    scene: dict[str, float]
    per_view: dict[str, dict[str, float]]
    report: dict[str, object]
    masks: PromptMasks = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One benchmark.

    Attributes:
        name: Key in `PROTOCOLS`.
        truth: What it compares with.
        headline: The scores by which models are ranked: of these names, the first that the result has.
        score: Returns the scores. Raises ValueError where there is no truth or sizes differ.
    """

    name: str
    truth: Literal["annotations", "prompt_masks"]
    headline: tuple[str, ...]
    score: Callable[[Subject], ProtocolResult]

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

    names: tuple[str, ...]
    preds: tuple[np.ndarray, ...]
    trues: tuple[np.ndarray, ...]
    background: int
    without_annotation: tuple[str, ...]
    without_prediction: tuple[str, ...]


def aligned(subject: Subject) -> AlignedViews:
    """Return the label maps of the annotated views, missing predictions filled with background.

    Raises:
        ValueError: No annotated view, or a prediction of another size than its annotation.
    """
    names, predictions, annotations = subject.names, subject.object_ids, subject.annotations
    scored = tuple(name for name in names if name in annotations)
    if not scored:
        raise ValueError(f"none of the {len(names)} views has an annotation, so there is nothing to score")
    for name in scored:
        if name in predictions and predictions[name].shape != annotations[name].shape:
            raise ValueError(
                f"view {name}: prediction {predictions[name].shape} and annotation {annotations[name].shape} differ in "
                "size; render at the size of the annotations"
            )
    # The rule speaks of all held-out views, annotated or not.
    present = [np.asarray(predictions[name]) for name in names if name in predictions]
    background = largest_area_background(present) if present else 0
    return AlignedViews(
        names=scored,
        preds=tuple(
            np.asarray(predictions[name])
            if name in predictions
            else np.full(annotations[name].shape, background, dtype=np.int32)
            for name in scored
        ),
        trues=tuple(np.asarray(annotations[name]) for name in scored),
        background=background,
        without_annotation=tuple(name for name in names if name not in annotations),
        without_prediction=tuple(name for name in scored if name not in predictions),
    )


def view_facts(views: AlignedViews) -> dict[str, object]:
    """Return which views were scored at which size, for a report."""
    return {
        "views": list(views.names),
        "missing_annotations": list(views.without_annotation),
        "missing_predictions": list(views.without_prediction),
        "num_missing_predictions": len(views.without_prediction),
        "resolution": sizes(views.trues),
    }


def sizes(maps: Sequence[np.ndarray]) -> list[str]:
    """Return the sizes that occur, as `640x480`."""
    return sorted({f"{view.shape[1]}x{view.shape[0]}" for view in maps})


def view_warnings(*, without_annotation: Sequence[str], without_prediction: Sequence[str]) -> list[str]:
    """Return sentences on views that lack something."""
    found = []
    if without_prediction:
        found.append(f"{len(without_prediction)} views have no prediction and count as all background")
    if without_annotation:
        found.append(f"{len(without_annotation)} views have no annotation and were left out")
    return found


def matching_profiles(views: AlignedViews, matched: MatchedScores) -> dict[str, dict[str, float]]:
    """Return the scores of every matching profile, and of `scene` without ids of a few stray pixels.

    Args:
        matched: Of the profile `scene`.
    """
    profiles = {"scene": matched}
    for name in ("scene_masked", "viewmean"):
        profiles[name] = matched_scores(views.preds, views.trues, profile=name)
    _, true_ids, counts = scene_table(views)
    rows = counts.sum(axis=1) >= MIN_SEGMENT_PIXELS
    columns = (counts.sum(axis=0) >= MIN_SEGMENT_PIXELS) & (true_ids != 0)
    if columns.any():
        # Areas stay those of the whole scene: small ids lose their row, not their pixels.
        profiles[FROM_PIXELS] = match_matrix(iou_from_counts(counts)[rows][:, columns].T)
    keys = ("miou", "f1", "precision", "recall", "tp", "num_pred", "num_true")
    return {name: {key: getattr(scores, key) for key in keys} for name, scores in profiles.items()}


def scene_table(views: AlignedViews) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return predicted ids, true ids and the pixels each pair shares over all views."""
    return overlap_table(
        np.concatenate([view.reshape(-1) for view in views.preds]),
        np.concatenate([view.reshape(-1) for view in views.trues]),
    )


def object_list(views: AlignedViews, matched: MatchedScores) -> list[dict[str, float | None]]:
    """Return every true object with its area in pixels, its partner (None without) and their IoU."""
    partner = {pair[0]: (pair[1], iou) for pair, iou in zip(matched.pairs, matched.pair_iou, strict=True)}
    _, true_ids, counts = scene_table(views)
    objects = []
    for true_id, area in zip(true_ids.tolist(), counts.sum(axis=0).tolist(), strict=True):
        if true_id != 0:
            pred_id, iou = partner.get(true_id, (None, 0.0))
            objects.append({"true_id": true_id, "pred_id": pred_id, "iou": iou, "area": area})
    return objects


def scores_of_views(views: AlignedViews, matched: MatchedScores | None) -> dict[str, dict[str, float]]:
    """Return mIoU over the true objects that a view shows, their number and their share of the pixels.

    Partners are those of the scene; an object without one, or whose partner is not in the view, counts 0.
    """
    partner = dict(matched.pairs) if matched is not None else {}
    result = {}
    for name, pred, true in zip(views.names, views.preds, views.trues, strict=True):
        pred_ids, true_ids, counts = overlap_table(pred, true)
        iou = iou_from_counts(counts)
        row_of = {int(pred_id): row for row, pred_id in enumerate(pred_ids)}
        values = []
        for column, true_id in enumerate(true_ids.tolist()):
            if true_id != 0:
                row = row_of.get(partner.get(true_id))
                values.append(float(iou[row, column]) if row is not None else 0.0)
        scores: dict[str, float] = {"num_objects": len(values), "object_share": float(np.mean(true != 0))}
        if values:
            scores["mIoU"] = float(np.mean(values))
        result[name] = scores
    return result
