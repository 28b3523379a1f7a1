"""The method of the paper and of its released code: Eq. 1 to 8."""

import math

import torch
from torch import Tensor, nn

from unified_lift.kernels.assignment import hungarian
from unified_lift.kernels.association import associate, association_logits, codebook_terms, nearest_code
from unified_lift.kernels.contrastive import contrastive_loss, uncertainty
from unified_lift.methods.base import FinalFeatures, Method, StepInfo, TrainingViews, ViewPixels
from unified_lift.methods.unified_lift.codebook import codebook_from_views, final_codes
from unified_lift.methods.unified_lift.settings import UnifiedLiftSettings
from unified_lift.model.initialize import random_features
from unified_lift.ops.segments import segment_counts
from unified_lift.types import ZeroId

_MIN_VOTE_COSINE = 0.5  # a pixel less like every code of its place speaks for none


class UnifiedLift(Method):
    """Every component is a setting, so that presets give the paper's or the released method."""

    settings: UnifiedLiftSettings
    allows_joint = is_local = True
    object_tables = ("codebook",)  # [L, D]; saved alone, as the released code does
    # What pixels vote by, of K >= L pieces of objects; none where codes began at random.
    working_tables = ("pieces", "places", "owners")  # unit code [K, D], centre and reach [K, 4], object [K] of each
    codebook: Tensor
    pieces: Tensor
    places: Tensor
    owners: Tensor

    def __init__(self, settings: UnifiedLiftSettings, *, zero_id: ZeroId, seed: int) -> None:
        super().__init__(settings, zero_id=zero_id, seed=seed)
        self.codebook = nn.Parameter(torch.zeros(0, settings.feature_dim))
        self.register_buffer("pieces", torch.zeros(0, settings.feature_dim))
        self.register_buffer("places", torch.zeros(0, 4))
        self.register_buffer("owners", torch.zeros(0, dtype=torch.int64))
        # Of the last step, read only when logged: pixels that Eq. 7 keeps (None: it did not run); codes and slots.
        self._reliable: Tensor | None = None
        self._matching: tuple[Tensor, Tensor] | None = None

    def initial_features(self, count: int) -> Tensor:
        return random_features(count, self.feature_dim, unit=self.settings.features_unit, generator=self.generator)

    def rates(self, progress: float) -> dict[str, float]:
        decay = math.exp(math.log(self.settings.feature_lr_decay) * progress)
        return {"features": self.settings.feature_lr * decay, "codebook": self.settings.codebook_lr}

    def before_step(self, progress: float, views: TrainingViews) -> None:
        """Start the codebook once its time has come; `views` is called only if the data are asked."""
        s = self.settings
        if len(self.codebook) or "no_objects" in self.summary or progress < s.codebook_start:
            return
        if s.codebook_init == "random":
            drawn = torch.rand(s.num_codes or 256, self.feature_dim, generator=self.generator)
            codes = (drawn * 2 - 1) * self.feature_dim**-0.5  # as a bias-free 1x1 convolution begins [released]
        else:
            weight = 1.0 if self.ignore_zero else s.codebook_background_weight
            found = codebook_from_views(views, s, background_weight=weight)
            if not len(found.owners):
                fix = "--lift_iterations, --codebook_init random, or lower --codebook_min_{consistency,pixels,members}"
                self.summary["no_objects"] = f"no segment is consistent enough; check the masks, or try more {fix}"
                return
            codes = found.codebook()
            self._set_tensor("pieces", found.pieces.codes)
            self._set_tensor("places", found.pieces.places())
            self._set_tensor("owners", found.owners)
        self._set_tensor("codebook", codes)

    def finish(self, views: TrainingViews) -> None:
        """Start the codebook of a lift that was too short to do so on the way."""
        self.before_step(1.0, views)

    def losses(self, pixels: ViewPixels, info: StepInfo) -> dict[str, Tensor]:
        """Return the terms of Eq. 8 for one view.

        Gradient: Eq. 1 reaches the features only; Eq. 4 and 6 reach the codebook only (features detached).
        """
        s = self.settings
        trusted = self._trusted(pixels._replace(features=pixels.features.detach()), info.progress)
        contrasted = pixels._replace(slot=trusted) if s.filter_contrastive else pixels
        terms = {"contrastive": self._contrastive(contrasted)}
        if s.weight_norm:
            terms["norm"] = (pixels.features.norm(dim=1) - 1).square().mean()
        if len(self.codebook):
            terms |= self._codebook_terms(pixels._replace(features=pixels.features.detach()), trusted)
        return terms

    def graph_key(self, progress: float, num_pixels: int) -> tuple[int, bool] | None:
        """Return the number of codes and whether labels are filtered; None where Eq. 1 draws pixels."""
        if num_pixels > self.settings.contrastive_samples:
            return None
        return len(self.codebook), progress >= self.settings.filter_start

    @property
    def statistics(self) -> dict[str, float]:
        """Return the share of pixels that Eq. 7 drops and the number of codes in use."""
        filtered = 0.0 if self._reliable is None else 1 - float(self._reliable.float().mean())
        if self._matching is None:
            return {"filtered_ratio": filtered}
        codes, slot = self._matching
        used = (codes >= 0) & (segment_counts(slot, len(codes)) > 0)
        return {"filtered_ratio": filtered, "objects_used": float(used.sum())}

    def _contrastive(self, pixels: ViewPixels) -> Tensor:
        """Return Eq. 1 of at most `contrastive_samples` pixels."""
        s, (features, slot, num_segments, *_) = self.settings, pixels
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

    def _trusted(self, pixels: ViewPixels, progress: float) -> Tensor:
        """Return the slots of the pixels that Eq. 7 lets train the codebook, -1 for the others, [P]."""
        s, self._reliable = self.settings, None
        asked = len(self.codebook) or s.filter_contrastive
        if not (s.label_filter and asked and pixels.num_segments) or progress < s.filter_start:
            return pixels.slot
        self._reliable = uncertainty(*pixels[:3], temperature=s.filter_temperature) < s.max_uncertainty
        return torch.where(self._reliable, pixels.slot, -1)

    def _codebook_terms(self, pixels: ViewPixels, trusted: Tensor) -> dict[str, Tensor]:
        """Return Eq. 4 and 6 of the trusted pixels, with the codes that Eq. 3 or 5 gives the segments."""
        s, (features, slot, num_segments, *_) = self.settings, pixels
        temperature = s.association_temperature or None
        association = associate(
            features, self.codebook, slot, num_segments, temperature=temperature, area_aware=s.area_aware
        )
        no_match_cost = None
        if s.matching_floor:
            counts = segment_counts(slot, num_segments).float()
            no_match_cost = s.matching_floor * (counts if s.area_aware else torch.ones_like(counts))
        codes = hungarian(association.scores, no_match_cost=no_match_cost)
        self._matching = (codes, slot)
        class_term, concentration = codebook_terms(
            features, self.codebook, association, codes, trusted, temperature=temperature, unit_codes=bool(temperature)
        )
        return {"class": class_term} | ({"concentration": concentration} if s.concentration else {})

    def vote(self, features: Tensor, points: Tensor) -> Tensor:
        """Return the object of the nearest piece of those whose place a pixel shows, -1 where it shows none."""
        if not len(self.pieces):
            return super().vote(features, points)
        cosine, piece = nearest_code(features, self.pieces, points=points, places=self.places)
        return torch.where(cosine >= _MIN_VOTE_COSINE, self.owners[piece], -1)

    def reorder(self, order: Tensor) -> None:
        super().reorder(order)
        self._set_tensor("owners", torch.argsort(order)[self.owners])

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits of the association of features [P, D] with every code (Eq. 2), [P, L]."""
        return association_logits(features, self.codebook, temperature=self.settings.association_temperature or None)

    def final_features(self) -> FinalFeatures | None:
        """Return what turns label voting into features, unless Gaussians keep what they learnt."""
        s, codes = self.settings, final_codes(self.codebook.detach())
        return FinalFeatures(codes, s.vote_power, s.sharpen_steps) if s.vote_power else None
