"""Settings of the method."""

from dataclasses import dataclass
from typing import Annotated, Literal

from unified_lift.methods.base import MethodSettings
from unified_lift.settings.limits import Range


@dataclass(frozen=True, kw_only=True)
class UnifiedLiftSettings(MethodSettings):
    """Every component of the method. Defaults are the preset `unified_lift`; `released` and `paper` are YAML files."""

    num_codes: Annotated[int, Range(0, 10**6)] = 0
    """L, rows of the codebook; 0 = as many as the data ask for. [ours] paper and released code: 256."""

    features_unit: bool = True
    """Start features as random unit vectors [OmniSeg3D-GS]; released: uniform in +-1.772."""
    feature_lr: Annotated[float, Range(0)] = 0.01
    """Rate of the features [OmniSeg3D-GS]; released: 2.5e-3."""
    feature_lr_decay: Annotated[float, Range(1e-9)] = 0.1
    """Factor reached at the end of the schedule, log-linear. [ours] released: 1."""

    contrastive_samples: Annotated[int, Range(1)] = 32_768
    """Pixels drawn per view for Eq. 1 where more are rendered [released]."""
    temperature: Annotated[float, Range(0)] = 0.15
    """Temperature of Eq. 1; 0 = the released clip(10 phi, 0.5, 1). [ours] experiments.md; paper: none, that is 1."""
    min_pixels: Annotated[int, Range(0)] = 4
    """Segments with no more sampled pixels than this stay out of Eq. 1. [ours] released: 20."""
    detach_norm: bool = False
    """Take |F| as constant when normalising [released]. [ours] the true derivative."""
    unit_centres: bool = True
    """Normalise segment centres in Eq. 1. [ours] released: no."""
    mean_over_pixels: bool = True
    """Mean over pixels. [ours] released: sum over pixels / number of segments; same Adam step up to a factor."""
    weight_contrastive: Annotated[float, Range(0)] = 1.0
    """Weight of Eq. 1. [ours] released: 1e-6, which Adam's tiny eps cancels."""
    weight_norm: Annotated[float, Range(0)] = 0.0
    """Weight of mean (|F| - 1)^2 over pixels; released: 1e-6, absent from the paper."""

    codebook_init: Literal["data", "random"] = "data"
    """Start codes at the modes of the features. [ours] paper and released: random."""
    codebook_start: Annotated[float, Range(0)] = 0.95
    """Share of the schedule after which the codebook begins. [ours] paper and released: 0."""
    codebook_min_cosine: Annotated[float, Range(-1, 1)] = 0.92
    """Neighbourhood of a mode: narrow enough for hundreds of objects; what it splits is put together again. [ours]"""
    codebook_min_members: Annotated[int, Range(1)] = 2
    """A mode needs this many consistent segments. [ours]"""
    codebook_min_fit: Annotated[float, Range(-1, 2)] = 0.8
    """A pixel counts for the nearest code only if its feature is that similar to it. [ours]"""
    codebook_min_together: Annotated[float, Range(-1, 2)] = 0.35
    """Modes that lie in one segment in less than this share of the views that show both stay two objects. [ours]"""
    codebook_min_evidence: Annotated[float, Range(-2, 3)] = 1.4
    """Modes are one object's if that share and their cosine add up to this; lowered where masks cut objects. [ours]"""
    codebook_min_support: Annotated[float, Range(0)] = 0.45
    """A code is dropped if the share of its pixels in segments it dominates is below this part of the median: it grew
    from a cut or merged mask, beside the code of the whole object. [ours]"""
    codebook_background_weight: Annotated[float, Range(0)] = 0.25
    """What a pixel counts in this that lies in a segment of the background, where id 0 is one: missed objects hide
    there. [ours]"""
    codebook_min_consistency: Annotated[float, Range(0)] = 0.6
    """A segment whose mean unit feature is shorter than this is mixed and founds no code. [ours]"""
    codebook_min_pixels: Annotated[int, Range(0)] = 10
    """A segment with no more pixels than this founds no code. [ours]"""
    codebook_lr: Annotated[float, Range(0)] = 5e-4
    """Rate of the codebook [paper 4.1]."""
    association_temperature: Annotated[float, Range(0)] = 0.1
    """Temperature of cosine association (Eq. 2); 0 = raw dot product [paper, released]."""
    area_aware: bool = True
    """Match by Eq. 5 (sum over pixels); otherwise Eq. 3 (mean)."""
    matching_floor: Annotated[float, Range(-1e9)] = 0.0
    """No-match cost: a segment whose mean association is below it gets no code; 0 = none [paper, released]."""
    weight_class: Annotated[float, Range(0)] = 1.0
    """Weight of Eq. 4. [ours] paper: 1e-3; released: 1e-4."""
    concentration: bool = True
    """Use Eq. 6."""
    weight_concentration: Annotated[float, Range(0)] = 0.1
    """Weight of Eq. 6 [paper]; released: 1."""

    vote_power: Annotated[float, Range(0)] = 2.0
    """Once trained, replace the feature that a Gaussian learnt by the mean of all codes, weighted by the share of its
    blending weight in the pixels of each code to this power; 0 = keep what it learnt. [ours] paper, released: 0."""

    sharpen_steps: Annotated[int, Range(-1)] = -1
    """Steps that train these means to explain the codes of the training pixels; -1 = every view twice, at least
    300, but no more than draw each pixel 1.5 times. [ours] 0 = none [paper, released]."""

    label_filter: bool = True
    """Use Eq. 7: pixels more uncertain than `max_uncertainty` do not train the codebook."""
    max_uncertainty: Annotated[float, Range(-1)] = 0.8
    """tau of Eq. 7; a pixel is kept if its uncertainty is strictly below [paper 4.1]."""
    filter_temperature: Annotated[float, Range(above=0)] = 0.1
    """Temperature of Eq. 7 [released; its clip is never active]."""
    filter_start: Annotated[float, Range(0)] = 0.1
    """Share of the schedule before which nothing is filtered. [ours] released: 0."""
    filter_contrastive: bool = False
    """Let the filter drop pixels from Eq. 1 as well. [ours] off: see experiments.md."""
