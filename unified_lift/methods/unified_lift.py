"""Unified-Lift: contrastive features, an object-level codebook, and the matching that ties them (CVPR 2025).

Paper: Messy Rooms mean PQ_scene 69.0, LERF-Mask mIoU 80.9, Replica mIoU 41.6.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from unified_lift.errors import UserError
from unified_lift.kernels.assignment import hungarian
from unified_lift.kernels.association import associate, association_logits, codebook_terms, nearest_code
from unified_lift.kernels.contrastive import contrastive_loss
from unified_lift.kernels.uncertainty import uncertainty
from unified_lift.methods.base import (
    FinalFeatures,
    Method,
    MethodEntry,
    MethodSettings,
    StepInfo,
    TrainingViews,
    ViewPixels,
)
from unified_lift.methods.codebook import Overlaps, codebook_from_prototypes, joined_codes, random_codebook, support
from unified_lift.model.initialize import random_features
from unified_lift.ops.segments import segment_counts, segment_mean
from unified_lift.types import ZeroId

_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class UnifiedLiftSettings(MethodSettings):
    """Every component of the method. Defaults are the preset `unified_lift`; `released` and `paper` are YAML files."""

    num_codes: int = 0
    """L, rows of the codebook; 0 = as many as the data ask for. [ours] paper and released code: 256."""

    features_unit: bool = True
    """Start features as random unit vectors [OmniSeg3D-GS]; released: uniform in +-1.772."""
    feature_lr: float = 0.01
    """Rate of the features [OmniSeg3D-GS]; released: 2.5e-3."""
    feature_lr_decay: float = 0.1
    """Factor reached at the end of the schedule, log-linear. [ours] released: 1."""

    contrastive_samples: int = 32_768
    """Pixels drawn per view for Eq. 1 where more are rendered [released]."""
    temperature: float = 0.15
    """Temperature of Eq. 1; 0 = the released clip(10 phi, 0.5, 1). [ours] experiments.md; paper: none, that is 1."""
    min_pixels: int = 4
    """Segments with no more sampled pixels than this stay out of Eq. 1. [ours] released: 20."""
    detach_norm: bool = False
    """Take |F| as constant when normalising [released]. [ours] the true derivative."""
    unit_centres: bool = True
    """Normalise segment centres in Eq. 1. [ours] released: no."""
    mean_over_pixels: bool = True
    """Mean over pixels. [ours] released: sum over pixels / number of segments; same Adam step up to a factor."""
    weight_contrastive: float = 1.0
    """Weight of Eq. 1. [ours] released: 1e-6, which Adam's tiny eps cancels."""
    weight_norm: float = 0.0
    """Weight of mean (|F| - 1)^2 over pixels; released: 1e-6, absent from the paper."""

    codebook_init: Literal["data", "random"] = "data"
    """Start codes at the modes of the features. [ours] paper and released: random."""
    codebook_start: float = 0.6
    """Share of the schedule after which the codebook begins. [ours] paper and released: 0."""
    codebook_min_cosine: float = 0.92
    """Neighbourhood of a mode: narrow enough for hundreds of objects; what it splits is put together again. [ours]"""
    codebook_min_members: int = 2
    """A mode needs this many consistent segments. [ours]"""
    codebook_min_together: float = 0.35
    """Modes that lie in one segment in less than this share of the views that show both stay two objects. [ours]"""
    codebook_min_evidence: float = 1.1
    """Modes are one object's if that share and their cosine add up to this; 3 = never. [ours]"""
    codebook_min_support: float = 0.5
    """A code is dropped if less than this share of its pixels lie in segments it dominates: it grew from a cut or
    merged mask, beside the code of the whole object. [ours]"""
    codebook_background_weight: float = 0.25
    """What a pixel counts in this that lies in a segment of the background, where id 0 is one: missed objects hide
    there. [ours]"""
    codebook_min_consistency: float = 0.6
    """A segment whose mean unit feature is shorter than this is mixed and founds no code. [ours]"""
    codebook_min_pixels: int = 10
    """A segment with no more pixels than this founds no code. [ours]"""
    codebook_lr: float = 5e-4
    """Rate of the codebook [paper 4.1]."""
    association_temperature: float = 0.1
    """Temperature of cosine association (Eq. 2); 0 = raw dot product [paper, released]."""
    area_aware: bool = True
    """Match by Eq. 5 (sum over pixels); otherwise Eq. 3 (mean)."""
    matching_floor: float = 0.0
    """Way out: a segment whose mean association is below this is left without code; 0 = none [paper, released]."""
    weight_class: float = 1.0
    """Weight of Eq. 4. [ours] paper: 1e-3; released: 1e-4."""
    concentration: bool = True
    """Use Eq. 6."""
    weight_concentration: float = 0.1
    """Weight of Eq. 6 [paper]; released: 1."""

    vote_power: float = 2.0
    """Once trained, replace the feature that a Gaussian learnt by the mean of all codes, weighted by the share of its
    blending weight in the pixels of each code to this power; 0 = keep what it learnt. [ours] paper, released: 0."""

    sharpen_steps: int = -1
    """Steps that train these means to explain the codes of the training pixels; -1 = every view twice, at least
    300, but no more than draw each pixel 1.5 times. [ours] 0 = none [paper, released]."""

    label_filter: bool = True
    """Use Eq. 7: pixels more uncertain than `max_uncertainty` do not train the codebook."""
    max_uncertainty: float = 0.8
    """tau of Eq. 7; a pixel is kept if its uncertainty is strictly below [paper 4.1]."""
    filter_temperature: float = 0.1
    """Temperature of Eq. 7 [released; its clip is never active]."""
    filter_start: float = 0.1
    """Share of the schedule before which nothing is filtered. [ours] released: 0."""
    filter_contrastive: bool = False
    """Let the filter drop pixels from Eq. 1 as well. [ours] off: see experiments.md."""

    def check(self) -> None:
        """Raise a UserError naming the flag whose value makes no sense."""
        super().check()
        self.require_at_least(0, "num_codes", "vote_power")
        self.require_at_least(-1, "sharpen_steps")


class UnifiedLift(Method):
    """The method of the paper and of its released code, by settings alone."""

    settings: UnifiedLiftSettings
    allows_joint = True
    object_tables = ("codebook",)
    codebook: Tensor

    def __init__(self, settings: UnifiedLiftSettings, *, zero_id: ZeroId, seed: int) -> None:
        super().__init__(settings, zero_id=zero_id, seed=seed)
        self.codebook = nn.Parameter(torch.zeros(0, settings.feature_dim))
        # Of the last step, read only when logged: pixels that Eq. 7 keeps (None: it did not run); codes and slots.
        self._reliable: Tensor | None = None
        self._matching: tuple[Tensor, Tensor] | None = None

    @property
    def statistics(self) -> dict[str, float]:
        """Return the share of pixels that Eq. 7 drops and the number of codes in use, of the last step."""
        filtered = 0.0 if self._reliable is None else 1 - float(self._reliable.float().mean())
        if self._matching is None:
            return {"filtered_ratio": filtered}
        codes, slot = self._matching
        used = (codes >= 0) & (segment_counts(slot, len(codes)) > 0)
        return {"filtered_ratio": filtered, "objects_used": float(used.sum())}

    def initial_features(self, count: int) -> Tensor:
        """Return start features, [count, D]."""
        return random_features(count, self.feature_dim, unit=self.settings.features_unit, generator=self.generator)

    def rates(self, progress: float) -> dict[str, float]:
        """Return the rates of features and codebook at `progress` in [0, 1]."""
        decay = math.exp(math.log(self.settings.feature_lr_decay) * progress)
        return {"features": self.settings.feature_lr * decay, "codebook": self.settings.codebook_lr}

    def before_step(self, progress: float, views: TrainingViews) -> None:
        """Start the codebook once its time has come; `views` is called only if the data are asked."""
        if len(self.codebook) or progress < self.settings.codebook_start:
            return
        if self.settings.codebook_init == "data":
            codes = self._codes_from_data(views())
            codes = self._settled(codes, views()) if len(codes) else codes
            if len(codes) == 0:
                raise UserError(
                    "no segment is consistent enough to found a code: more --lift_iterations, --codebook_init random, "
                    "or lower --codebook_min_consistency, --codebook_min_pixels, --codebook_min_members, "
                    "--codebook_min_support"
                )
        else:
            codes = random_codebook(self.settings.num_codes or 256, self.feature_dim, generator=self.generator)
        self._set_tensor("codebook", codes)

    def losses(self, pixels: ViewPixels, info: StepInfo) -> dict[str, Tensor]:
        """Return the terms of Eq. 8 for one view.

        Gradient: Eq. 1 reaches the features only; Eq. 4 and 6 reach the codebook only (features detached).
        """
        features, slot, num_segments = pixels
        s = self.settings
        trusted = self._trusted(features.detach(), slot, num_segments, info.progress)
        contrasted = trusted if s.filter_contrastive else slot
        terms = {"contrastive": self._contrastive(features, contrasted, num_segments)}
        if s.weight_norm:
            terms["norm"] = (features.norm(dim=1) - 1).square().mean()
        if len(self.codebook):
            terms |= self._codebook_terms(features.detach(), slot, num_segments, trusted)
        return terms

    def graph_key(self, progress: float, num_pixels: int) -> tuple[int, bool] | None:
        """Return the number of codes and whether labels are filtered; None where Eq. 1 draws pixels."""
        if num_pixels > self.settings.contrastive_samples:
            return None
        return len(self.codebook), progress >= self.settings.filter_start

    def association(self, features: Tensor) -> Tensor:
        """Return the association of features [P, D] with every code (Eq. 2), [P, L]."""
        temperature = self.settings.association_temperature or None
        return torch.softmax(association_logits(features, self.codebook, temperature=temperature), dim=1)

    def final_features(self) -> FinalFeatures | None:
        """Return what turns votes into features, unless Gaussians keep what they learnt."""
        s = self.settings
        codes = normalize(self.codebook.detach(), dim=1, eps=_EPS)
        return FinalFeatures(codes, s.vote_power, s.sharpen_steps) if s.vote_power else None

    def object_state(self) -> Tensor:
        """Return the codebook [L, D], as the released code saves it."""
        return self.codebook.detach()

    def load_object_state(self, state: Tensor) -> None:
        """Take a codebook."""
        self._set_tensor("codebook", state)

    def _contrastive(self, features: Tensor, slot: Tensor, num_segments: int) -> Tensor:
        s = self.settings
        if len(slot) > s.contrastive_samples:
            generator = self._next_draw(slot.device)
            chosen = torch.randint(len(slot), (s.contrastive_samples,), generator=generator, device=slot.device)
            features, slot = features.index_select(0, chosen), slot.index_select(0, chosen)
        return contrastive_loss(
            features,
            slot,
            num_segments,
            temperature=s.temperature or None,
            min_pixels=s.min_pixels,
            detach_norm=s.detach_norm,
            unit_centres=s.unit_centres,
            mean_over_pixels=s.mean_over_pixels,
        )

    def _trusted(self, features: Tensor, slot: Tensor, num_segments: int, progress: float) -> Tensor:
        """Return the slots of the pixels that Eq. 7 lets train the codebook, -1 for the others, [P]."""
        s = self.settings
        asked = len(self.codebook) or s.filter_contrastive
        if not (s.label_filter and asked and num_segments) or progress < s.filter_start:
            self._reliable = None
            return slot
        unsure = uncertainty(features, slot, num_segments, temperature=s.filter_temperature)
        self._reliable = unsure < s.max_uncertainty
        return torch.where(self._reliable, slot, -1)

    def _codebook_terms(self, features: Tensor, slot: Tensor, num_segments: int, trusted: Tensor) -> dict[str, Tensor]:
        s = self.settings
        temperature = s.association_temperature or None
        association = associate(
            features, self.codebook, slot, num_segments, temperature=temperature, area_aware=s.area_aware
        )
        codes = self._match(association.scores, slot, num_segments)
        self._matching = (codes, slot)
        class_term, concentration = codebook_terms(
            features, self.codebook, association, codes, trusted, temperature=temperature, unit_codes=bool(temperature)
        )
        return {"class": class_term} | ({"concentration": concentration} if s.concentration else {})

    def _match(self, scores: Tensor, slot: Tensor, num_segments: int) -> Tensor:
        floor = self.settings.matching_floor
        if not floor:
            return hungarian(scores)
        counts = segment_counts(slot, num_segments).float()
        return hungarian(scores, floors=floor * (counts if self.settings.area_aware else torch.ones_like(counts)))

    def _settled(self, codes: Tensor, observations: Iterable[ViewPixels]) -> Tensor:
        """Return one code for each object: modes of one object joined, without those that their own pixels deny."""
        s = self.settings

        def tables() -> Iterator[Tensor]:
            for features, slot, num_segments in observations:
                pair = (slot + 1) * len(codes) + nearest_code(features, codes)  # row 0: pixels without label
                yield torch.bincount(pair, minlength=(num_segments + 1) * len(codes)).view(-1, len(codes))[1:]  # [S, L]

        overlaps = Overlaps.of_views(tables())
        objects = joined_codes(
            codes,
            overlaps,
            min_together=s.codebook_min_together,
            min_evidence=s.codebook_min_evidence,
            min_pixels=s.codebook_min_pixels,
        )
        weight = 1.0 if self.ignore_zero else s.codebook_background_weight
        share, _ = support(overlaps, objects, background_weight=weight)
        sizes = torch.zeros(len(codes)).index_add_(0, overlaps.code, overlaps.pixels).clamp(min=1).to(codes.device)
        mean = codes.new_zeros(len(share), codes.shape[1])
        mean.index_add_(0, objects.to(codes.device), codes * sizes[:, None])
        return normalize(mean[(share >= s.codebook_min_support).to(codes.device)], dim=1)

    def _codes_from_data(self, observations: Iterable[ViewPixels]) -> Tensor:
        prototypes, weights = [], []
        for features, slot, num_segments in observations:
            mean = segment_mean(normalize(features, dim=1, eps=_EPS), slot, num_segments)
            counts = segment_counts(slot, num_segments)
            consistent = mean.norm(dim=1) > self.settings.codebook_min_consistency
            consistent &= counts > self.settings.codebook_min_pixels
            prototypes.append(normalize(mean[consistent], dim=1))
            weights.append(counts[consistent].float().sqrt())
        return codebook_from_prototypes(
            torch.cat(prototypes),
            torch.cat(weights),
            min_cosine=self.settings.codebook_min_cosine,
            min_members=self.settings.codebook_min_members,
            max_codes=self.settings.num_codes or None,
        )


METHOD = MethodEntry("unified_lift", UnifiedLiftSettings, UnifiedLift)
