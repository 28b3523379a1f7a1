"""Association of features with the codebook (Eq. 2) and the two terms that train it (Eq. 4, Eq. 6)."""

from __future__ import annotations

import torch
from diff_gaussian_rasterization import Association, lifting
from torch import Tensor
from torch.nn.functional import normalize

from unified_lift.kernels.assignment import association_scores, pseudo_labels
from unified_lift.kernels.identity import identity_loss
from unified_lift.shapes import check_shapes

_EPS = 1e-6
_CHUNK = 65_536  # pixels compared with all codes at a time


def association_logits(features: Tensor, codebook: Tensor, *, temperature: float | None) -> Tensor:
    """Return the similarity of each feature with each code; its softmax is the association P_u.

    Source: Eq. 2.
    Args:
        features: [..., D].
        codebook: [L, D].
        temperature: None: raw dot product c . F [paper, released]; else cosine similarity / temperature [ours].
    Returns:
        Logits, [..., L].
    """
    if temperature is None:
        return features @ codebook.T
    return normalize(features, dim=-1, eps=_EPS) @ normalize(codebook, dim=-1, eps=_EPS).T / temperature


def nearest_code(features: Tensor, codebook: Tensor) -> Tensor:
    """Return the code with the largest cosine similarity to each feature [P, D], int64 [P]."""
    codes = normalize(codebook, dim=1, eps=_EPS)
    return torch.cat([(part @ codes.T).argmax(dim=1) for part in features.split(_CHUNK)])  # bounds [P, L]


@torch.no_grad()
def associate(
    features: Tensor, codebook: Tensor, slot: Tensor, num_segments: int, *, temperature: float | None, area_aware: bool
) -> Association:
    """Return how the pixels and segments of a view fit the codes.

    Source: Eq. 2, and Eq. 5 (`area_aware`) or Eq. 3.
    Args:
        features: [P, D].
        codebook: [L, D].
        slot: Segment of each pixel, int32 [P], -1 = none.
        num_segments: S.
        temperature: As in `association_logits`.
        area_aware: As in `association_scores`.
    Returns:
        scores [S, L], log_normaliser [P] and best code [P].
    Gradient: none.
    """
    check_shapes({"features": (features, "P D"), "codebook": (codebook, "L D"), "slot": (slot, "P")})
    if lifting.runs_on(features):
        return lifting.associate(features, codebook, slot, num_segments, temperature=temperature, area_aware=area_aware)
    logits = association_logits(features, codebook, temperature=temperature)  # [P, L]
    log_normaliser = torch.logsumexp(logits, dim=1)
    probabilities = (logits - log_normaliser[:, None]).exp_()
    scores = association_scores(probabilities, slot, num_segments, area_aware=area_aware)
    return Association(scores, log_normaliser, probabilities.argmax(dim=1))


def codebook_terms(
    features: Tensor,
    codebook: Tensor,
    association: Association,
    codes: Tensor,
    slot: Tensor,
    *,
    temperature: float | None,
    unit_codes: bool,
) -> tuple[Tensor, Tensor]:
    """Return the class term (Eq. 4) and the concentration term (Eq. 6).

    Args:
        features, codebook, temperature: What `associate` took.
        association: What it returned, which the kernels need not compute again.
        codes: Code of each segment, int64 [S], -1 = none.
        slot: Segment of each pixel that trains the codebook, int32 [P]; -1 for the others.
        unit_codes: As in `concentration_loss`.
    Gradient: to the codebook only.
    """
    features = features.detach()
    if lifting.runs_on(features):
        return lifting.codebook_terms(
            features, codebook, association, codes, slot, temperature=temperature, unit_codes=unit_codes
        )
    labels = pseudo_labels(codes, slot)
    logits = association_logits(features, codebook, temperature=temperature)
    return sparsity_loss(logits, labels), concentration_loss(features, codebook, labels, unit_codes=unit_codes)


def sparsity_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of the association with the matched codes, divided by ln L.

    Source: Eq. 4 (the paper's L_class; the division by ln L is the released code's).
    Args:
        logits: Association logits, [P, L].
        labels: Matched code of each pixel, int64 [P]; -1 takes no part.
    Returns:
        Scalar; 0 where no pixel is labelled or every pixel already agrees with its code [released].
    """
    return identity_loss(logits, labels, rest_when_right=True)


def concentration_loss(features: Tensor, codebook: Tensor, labels: Tensor, *, unit_codes: bool) -> Tensor:
    """Return the mean distance between unit features and the codes they were matched with.

    Source: Eq. 6.
    Args:
        features: [P, D]; detach them to train the codebook alone.
        codebook: [L, D].
        labels: Matched code of each pixel, int64 [P]; -1 takes no part.
        unit_codes: Compare with the normalised code, as cosine association does [ours].
    Returns:
        Scalar; 0 where no pixel is labelled.
    Differs: the paper's typesetting leaves the norm open; plain L2 of L2-normalised features as in the released code.
    """
    check_shapes({"features": (features, "P D"), "codebook": (codebook, "L D"), "labels": (labels, "P")})
    labelled = labels >= 0
    if not bool(labelled.any()):
        return codebook.sum() * 0
    codes = normalize(codebook, dim=1, eps=_EPS) if unit_codes else codebook
    features = features[labelled]
    x = features / (features.norm(dim=1, keepdim=True) + _EPS)
    difference = x - codes.index_select(0, labels[labelled])
    return torch.sqrt((difference * difference).sum(dim=1) + _EPS**2).mean()
