"""Association of features with the codebook (Eq. 2) and the two terms that train it (Eq. 4, Eq. 6)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import nll_loss, normalize

from unified_lift.shapes import check_shapes

_EPS = 1e-6


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


def sparsity_loss(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of the association with the matched codes, divided by ln L.

    Source: Eq. 4 (the paper's L_class; the division by ln L is the released code's).
    Args:
        log_probabilities: Log-softmax of the association logits, [P, L].
        labels: Matched code of each pixel, int64 [P]; -1 takes no part.
    Returns:
        Scalar; 0 where no pixel is labelled or every pixel already agrees with its code [released].
    """
    check_shapes({"log_probabilities": (log_probabilities, "P L"), "labels": (labels, "P")})
    labelled = labels >= 0
    if bool(((log_probabilities.argmax(dim=1) == labels) | ~labelled).all()):
        return log_probabilities.sum() * 0
    return nll_loss(log_probabilities, labels, ignore_index=-1) / math.log(max(log_probabilities.shape[1], 2))


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
