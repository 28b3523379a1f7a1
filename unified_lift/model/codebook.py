"""First values of the codebook: random rows, or the modes of the features themselves."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unified_lift.shapes import check_shapes

_CHUNK = 1_024  # prototypes compared with all others at a time: M may be tens of thousands, and M x M numbers too many


def random_codebook(num_codes: int, feature_dim: int, *, generator: torch.Generator) -> Tensor:
    """Return rows uniform in [-1/sqrt(D), 1/sqrt(D)], [L, D]: the start of a bias-free 1x1 convolution [released]."""
    bound = feature_dim**-0.5
    return (torch.rand(num_codes, feature_dim, generator=generator) * 2 - 1) * bound


def codebook_from_prototypes(
    prototypes: Tensor, weights: Tensor, *, min_cosine: float, min_members: int, max_codes: int | None = None
) -> Tensor:
    """Return unit codes at the density peaks of the prototypes, so that L follows from the data.

    Greedy: the prototype with most neighbours above `min_cosine` among those not taken yet; its neighbours are
    averaged into a code and taken; stop below `min_members`.

    Source: ours (docs/experiments.md).
    Args:
        prototypes: Unit mean feature of each (view, segment), [M, D].
        weights: Weight of each in the average, [M].
        min_cosine: Neighbourhood radius.
        min_members: A code needs that many prototypes, usually from as many views.
        max_codes: Upper bound on L.
    Returns:
        Codes, largest first, [L, D]; L may be 0.
    """
    check_shapes({"prototypes": (prototypes, "M D"), "weights": (weights, "M")})
    members = torch.cat([(part @ prototypes.T >= min_cosine).sum(dim=1) for part in prototypes.split(_CHUNK)])
    free = torch.ones(len(prototypes), dtype=torch.bool, device=prototypes.device)
    codes: list[Tensor] = []
    while max_codes is None or len(codes) < max_codes:
        counts = torch.where(free, members, -1)
        if not len(counts) or int(counts.max()) < min_members:
            break
        peak = counts.argmax()
        taken = free & (prototypes @ prototypes[peak] >= min_cosine)
        taken[peak] = True  # whatever rounding says
        chosen = prototypes[taken]
        codes.append(normalize((chosen * weights[taken, None]).sum(dim=0), dim=0))
        free &= ~taken
        for part in chosen.split(_CHUNK):
            members = members - (part @ prototypes.T >= min_cosine).sum(dim=0)
    return torch.stack(codes) if codes else prototypes.new_zeros(0, prototypes.shape[1])


def merged_codes(codes: Tensor, sizes: Tensor, presence: Tensor, *, min_cosine: float, max_conflict: float) -> Tensor:
    """Return the codes with those of one object put together.

    An object whose features spread wider than the neighbourhood of a mode starts as several codes. They are alike, and
    since a mask of the object has one of them as its most frequent, they seldom hold two masks of one view; two objects
    side by side do. Greedy: the most alike pair that seldom meets is averaged, until there is none.

    Source: ours (docs/experiments.md).
    Args:
        codes: Unit codes, [L, D].
        sizes: Weight of each in an average, such as its pixels, [L].
        presence: 1 for the views in which a segment has the code as its most frequent, else 0, [L, C].
        min_cosine: What counts as alike.
        max_conflict: Views with both / views of the one seen less often, at most.
    Returns:
        Codes in their order, an average in the place of its larger part, [<= L, D].
    """
    check_shapes({"codes": (codes, "L D"), "sizes": (sizes, "L"), "presence": (presence, "L C")})
    codes, sizes, presence = codes.clone(), sizes.clone().float(), presence.clone().float()
    alive = torch.ones(len(codes), dtype=torch.bool, device=codes.device)
    while len(codes) > 1:
        views = presence.sum(dim=1)
        conflict = presence @ presence.T / torch.minimum(views[:, None], views).clamp(min=1)
        cosine = torch.where((conflict <= max_conflict) & alive & alive[:, None], codes @ codes.T, -1.0)
        cosine.fill_diagonal_(-1.0)
        best = int(cosine.argmax())
        a, b = divmod(best, len(codes))
        if cosine[a, b] < min_cosine:
            break
        if sizes[a] < sizes[b]:
            a, b = b, a
        codes[a] = normalize(codes[a] * sizes[a] + codes[b] * sizes[b], dim=0)
        sizes[a] += sizes[b]
        presence[a] = torch.maximum(presence[a], presence[b])
        alive[b] = False
    return codes[alive]
