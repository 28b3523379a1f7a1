"""What a protocol is given and what it returns, and the steps that protocols on annotated ids share."""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np

from unified_lift.evaluation.grounding import TextMasks
from unified_lift.metrics.base import Metric
from unified_lift.metrics.matched import MatchedScores, Profile, iou_from_counts, matched_scores
from unified_lift.metrics.panoptic import largest_area_background
from unified_lift.ops.overlaps import Overlaps, overlap_table, overlaps_of
from unified_lift.ops.resample import nearest

Labels = Mapping[str, np.ndarray]
"""View name -> ids, integers [H, W]."""
PromptMasks = Mapping[str, Mapping[str, np.ndarray]]
"""View name -> prompt -> mask, bool [H, W]."""


@dataclass(frozen=True, kw_only=True)
class PredictionBundle:
    """A model's answers on the views of a split.

    `likely_ids(view, threshold)` gives the ids whose probability is above it, int32 [H, W, K] with -1 in unused places;
    None: each pixel's id is certain. `find_prompts(view, prompts)` gives the masks that words alone find, if anything.
    """

    names: Sequence[str]  # all views of the split
    object_ids: Labels  # predicted; a view without them has no prediction
    counted: Labels = field(default_factory=dict)  # pixels that count, bool [H, W]; all of views that are not here
    likely_ids: Callable[[str, float], np.ndarray] | None = None
    find_prompts: Callable[[str, Sequence[str]], TextMasks] | None = None


@dataclass(frozen=True, kw_only=True)
class GroundTruth:
    """What predictions are compared with: annotated ids (0 = no object), or masks of text prompts; false if empty."""

    annotations: Labels = field(default_factory=dict)
    prompt_masks: PromptMasks = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.annotations or self.prompt_masks)


@dataclass(frozen=True, kw_only=True)
class ProtocolResult:
    """Scores of one model on one scene; fractions in [0, 1]. A score that does not apply is absent."""

    scores: dict[str, float] = field(default_factory=dict)  # name -> score or count of the scene
    per_view: dict[str, dict[str, float]] = field(default_factory=dict)  # name -> view -> score
    report: dict[str, Any] = field(default_factory=dict)  # how the scores came about, ready for JSON
    masks: PromptMasks = field(default_factory=dict)  # predicted ones, where prompts are what is predicted
    text: TextMasks | None = None  # what words alone found in the reference view, where they were used


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One benchmark; its `score` raises a ValueError where there is no ground truth or sizes differ."""

    name: str
    ground_truth: Literal["annotations", "prompt_masks"]  # the field of `GroundTruth` that it compares with
    headline: tuple[str, ...]  # the scores by which models are ranked: of these names, the first that the result has
    score: Callable[[PredictionBundle, GroundTruth], ProtocolResult]
    metrics: tuple[Metric, ...] = ()  # scores of its own that `unified_lift.metrics` does not declare

    def headline_of(self, scores: Mapping[str, float]) -> str | None:
        """Return the name of the score that ranks models, None where there is none."""
        return next((name for name in self.headline if name in scores), None)


@dataclass(frozen=True, kw_only=True)
class AlignedViews:
    """Label maps of the annotated views, at the size of their annotations, and what was decided about them."""

    names: Sequence[str]
    preds: Sequence[np.ndarray]
    trues: Sequence[np.ndarray]
    background: int  # predicted id with the largest area over all views of the split, annotated or not
    without_annotation: Sequence[str]  # left out
    without_prediction: Sequence[str]  # count as all background
    counted: Labels = field(default_factory=dict)  # as in `PredictionBundle`

    @cached_property
    def pairs(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the predicted and the true id of every pixel that counts, [P] each, of every view."""
        found = []
        for name, pred, true in zip(self.names, self.preds, self.trues, strict=True):
            counted = self.counted.get(name)
            found.append((pred.ravel(), true.ravel()) if counted is None else (pred[counted], true[counted]))
        return found

    @cached_property
    def pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the predicted and the true id of every pixel of all views that counts, [P] each."""
        preds, trues = zip(*self.pairs, strict=True)
        return np.concatenate(preds), np.concatenate(trues)

    @cached_property
    def overlaps(self) -> Overlaps:
        """Return which predicted and true ids share pixels over all views."""
        return Overlaps.merged([overlaps_of(pred, true) for pred, true in self.pairs])

    @cached_property
    def matched(self) -> dict[str, MatchedScores]:
        """Return the matching under every profile that applies; none without a true object."""
        found: dict[str, MatchedScores] = {}
        if (self.overlaps.true_ids != 0).any():
            for profile in get_args(Profile):
                with contextlib.suppress(ValueError):  # no object may have 100 pixels
                    found[profile] = matched_scores(*zip(*self.pairs, strict=True), profile=profile)
        return found

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
        lacking = {
            "views have no prediction and count as all background": self.without_prediction,
            "views have no annotation and were left out": self.without_annotation,
        }
        return [f"{len(views)} {what}" for what, views in lacking.items() if views]

    def result(
        self, protocol: str, scores: Mapping[str, float], *, warnings: Iterable[str] = (), **facts: object
    ) -> ProtocolResult:
        """Return scores of the scene with those of its views, all matchings and every true object in the report."""
        report = {"protocol": protocol, **self.facts(), **facts, "warnings": [*warnings, *self.warnings()]}
        partner: dict[int, int] = {}
        if self.matched:
            report["matching"] = {
                profile: {key: value for key, value in vars(matched).items() if key not in ("pairs", "pair_iou")}
                for profile, matched in self.matched.items()
            }
            partner = dict(self.matched["scene"].pairs)
            iou = dict(zip(partner, self.matched["scene"].pair_iou, strict=True))
            areas = dict(zip(self.overlaps.true_ids.tolist(), self.overlaps.areas()[1].tolist(), strict=True))
            report["objects"] = [
                {"true_id": true_id, "pred_id": partner.get(true_id), "iou": iou.get(true_id, 0.0), "area": area}
                for true_id, area in areas.items()
                if true_id != 0
            ]
        else:
            report["warnings"].append("no true object occurs in the scored views, so mIoU and F1 do not apply")
        return ProtocolResult(scores=dict(scores), per_view=self._per_view(partner), report=report)

    def _per_view(self, partner: Mapping[int, int]) -> dict[str, dict[str, float]]:
        """Return mIoU of the true objects in each view with their partners in the scene, their number and share."""
        scores: dict[str, dict[str, float]] = {"num_objects": {}, "object_share": {}}
        for name, (pred, true) in zip(self.names, self.pairs, strict=True):
            pred_ids, true_ids, counts = overlap_table(pred, true)
            iou = dict(zip(pred_ids.tolist(), iou_from_counts(counts), strict=True))
            nothing = np.zeros(len(true_ids))  # of an object without partner in the view
            values = [iou.get(partner.get(i), nothing)[column] for column, i in enumerate(true_ids.tolist()) if i != 0]
            scores["num_objects"][name], scores["object_share"][name] = len(values), float(np.mean(true != 0))
            if values:
                scores.setdefault("mIoU", {})[name] = float(np.mean(values))
        return scores


def aligned(predictions: PredictionBundle, ground_truth: GroundTruth) -> AlignedViews:
    """Return the annotated views, missing predictions filled with background; a ValueError: none, or sizes differ."""
    names, annotations = predictions.names, ground_truth.annotations
    preds = {name: np.asarray(predictions.object_ids[name]) for name in names if name in predictions.object_ids}
    scored = [name for name in names if name in annotations and np.any(predictions.counted.get(name, True))]
    if not scored:
        raise ValueError(f"none of the {len(names)} views has an annotation, so there is nothing to score")
    background = largest_area_background(list(preds.values())) if preds else 0
    without = [name for name in scored if name not in preds]
    preds |= {name: np.full(annotations[name].shape, background, dtype=np.int32) for name in without}
    for name in scored:
        if (size := preds[name].shape) != (expected := annotations[name].shape):
            raise ValueError(f"view {name}: prediction {size} differs from annotation {expected}; render at that size")
    return AlignedViews(
        names=scored,
        preds=[preds[name] for name in scored],
        trues=[np.asarray(annotations[name]) for name in scored],
        background=background,
        without_annotation=[name for name in names if name not in annotations],
        without_prediction=without,
        counted={
            name: nearest(counted, *annotations[name].shape)
            for name, counted in predictions.counted.items()
            if name in scored
        },
    )


def sizes(maps: Iterable[np.ndarray]) -> list[str]:
    """Return the sizes that occur, as `640x480`."""
    return sorted({f"{view.shape[1]}x{view.shape[0]}" for view in maps})
