"""Association of features with the codebook (Eq. 2) and the two terms that train it (Eq. 4, Eq. 6)."""

import math
from collections.abc import Iterator
from ctypes import POINTER, Structure, byref, c_float, c_int32, c_void_p
from typing import Any, NamedTuple

import torch
from diff_gaussian_rasterization.native import CUDA, address, place
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy, normalize
from torch.utils.checkpoint import checkpoint

from unified_lift.kernels.assignment import association_scores, mean_scores, pseudo_labels
from unified_lift.kernels.fused import PIXELS, SIZE, pixels_of, runs_on, workspace
from unified_lift.kernels.identity import identity_loss
from unified_lift.ops.blocks import boxes_of, z_order
from unified_lift.shapes import check_shapes

_EPS = 1e-6
_CHUNK, _MAX_LOGITS = 65_536, 2**24  # pixels compared with all codes at a time, and most numbers of these
# So few codes are all compared with all pixels, as looking for the near ones costs more: on a GPU launches, whatever
# there is to compare, so there pixels times codes decide.
_FEW_CODES, _FEW_PAIRS = 128, 2**28
_BOXES, _MIN_BOX = 64, 64  # in how many boxes points are put, and fewest points of one


class Association(NamedTuple):
    """How the pixels and segments of one view fit the codes of a codebook (Eq. 2 with Eq. 3 or 5), without gradient."""

    scores: Tensor  # how well each segment fits each code, [S, L]
    log_normaliser: Tensor  # natural logarithm of what the exponentials of a pixel are divided by, [P]
    best: Tensor  # code with the largest share of each pixel, integer [P]


class _Codebook(Structure):
    _fields_ = [
        ("codes", c_void_p), ("count", c_int32), ("temperature", c_float),
        ("area_aware", c_int32), ("unit_codes", c_int32),
    ]  # fmt: skip


_VIEW = [PIXELS, POINTER(_Codebook)]
CUDA.declare(dict.fromkeys(("dgr_cuda_association_bytes", "dgr_cuda_terms_bytes"), [*_VIEW, SIZE]), returns=None)
CUDA.declare({"dgr_cuda_association": _VIEW + [c_void_p] * 4})
CUDA.declare(dict.fromkeys(("dgr_cuda_terms", "dgr_cuda_terms_backward"), _VIEW + [c_void_p] * 6))


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


def nearest_code(
    features: Tensor, codebook: Tensor, *, points: Tensor | None = None, places: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the largest cosine similarity of each feature [P, D] with a code, [P], and that code, int64 [P].

    Pixels at `points` [P, 3] farther from a centre than its reach, `places` [L, 4], do not show the code; -2 = no code.
    Of many codes only those are compared within whose reach some point may be.
    """
    codes = normalize(codebook, dim=1, eps=_EPS)
    few = _FEW_CODES if features.device.type == "cpu" else max(_FEW_CODES, _FEW_PAIRS // max(len(features), 1))
    if points is None or places is None or len(codes) <= few or not len(points):
        return _nearest(features, codes, points, places)
    best = features.new_full((len(features),), -2.0)
    code = torch.zeros(len(features), dtype=torch.int64, device=features.device)
    for rows, near in _near_places(points, places, few):
        if len(near):
            parts = (values.index_select(0, rows) for values in (features, points))
            some, own = (values.index_select(0, near) for values in (codes, places))
            of_rows, place = _nearest(next(parts), some, next(parts), own)
            best.index_copy_(0, rows, of_rows)
            code.index_copy_(0, rows, near.index_select(0, place))
    return best, code


def _nearest(features: Tensor, codes: Tensor, points: Tensor | None, places: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return what `nearest_code` does, by comparing all pixels with all codes, which are unit."""
    found = []
    for part in _parts(len(features), len(codes)):
        cosine = normalize(features[part], dim=1, eps=_EPS) @ codes.T
        if points is not None and places is not None:
            middle = places[:, :3].mean(dim=0)  # squares of large coordinates round badly
            away = torch.cdist(points[part] - middle, places[:, :3] - middle)
            cosine = torch.where(away <= places[:, 3], cosine, -2.0)
        found.append(cosine.max(dim=1))
    cosine, code = (torch.cat(parts) for parts in zip(*found, strict=True))
    return cosine, code


def _near_places(points: Tensor, places: Tensor, few: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield some of the points [P, 3], and which of places [L, 4] have one of these within reach; both int64, rising.

    Points are taken by where they lie, all at once where no more than `few` places are near them.
    """
    order, near = z_order(points), torch.arange(len(places), device=places.device)
    for size in (len(points), max(_MIN_BOX, -(-len(points) // _BOXES))):
        low, high = boxes_of(points[order], size=size)
        centre, reach = places.index_select(0, near).split([3, 1], dim=1)
        gap = torch.maximum(low[:, None] - centre, centre - high[:, None]).clamp(min=0).norm(dim=2)
        is_near = gap <= 1.000001 * reach[:, 0]  # [boxes, places]
        found = near[is_near.nonzero()[:, 1]].split(is_near.sum(dim=1).tolist())
        if len(found) == 1 and len(found[0]) <= few:
            break
        near = near[is_near.any(dim=0)]
    for rows, own in zip(order.split(size), found, strict=True):
        yield rows, own


def _parts(count: int, width: int) -> Iterator[slice]:
    """Yield parts of `count` pixels that bound [P, L] for L = `width`, one at least."""
    size = max(1, min(_CHUNK, _MAX_LOGITS // width))
    yield from (slice(first, first + size) for first in range(0, max(count, 1), size))


@torch.no_grad()
def associate(
    features: Tensor, codebook: Tensor, slot: Tensor, num_segments: int, *, temperature: float | None, area_aware: bool
) -> Association:
    """Return how the pixels [P, D] and S segments of a view fit the codes [L, D].

    Source: Eq. 2, and Eq. 5 (`area_aware`) or Eq. 3.
    Args:
        slot: Segment of each pixel, int32 [P], -1 = none.
        temperature: As in `association_logits`.
        area_aware: As in `association_scores`.
    Raises:
        ValueError: Shapes, dtypes, devices or settings do not fit.
    Gradient: none.
    """
    check_shapes({"features": (features, "P D"), "slot": (slot, "P")})
    _check(codebook, features, temperature)
    if runs_on(features):
        return _fused(features, codebook, slot.contiguous(), num_segments, temperature, area_aware)
    found, total = [], features.new_zeros(())
    for part in _parts(len(features), len(codebook)):
        logits = association_logits(features[part], codebook, temperature=temperature)
        log_normaliser = torch.logsumexp(logits, dim=1)
        probabilities = (logits - log_normaliser[:, None]).exp_()
        total = total + association_scores(probabilities, slot[part], num_segments, area_aware=True)
        found.append((log_normaliser, probabilities.argmax(dim=1)))
    scores = total if area_aware else mean_scores(total, slot)
    return Association(scores, *(torch.cat(parts) for parts in zip(*found, strict=True)))


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
    """Return the class term (Eq. 4), which rests where every pixel agrees [released], and concentration (Eq. 6).

    Args:
        features, codebook, temperature: What `associate` took.
        association: What it returned, which the kernels need not compute again.
        codes: Code of each segment, int64 [S], -1 = none.
        slot: Segment of each pixel that trains the codebook, int32 [P]; -1 for the others.
        unit_codes: As in `concentration_loss`.
    Gradient: to the codebook only.
    """
    features = features.detach()
    _check(codebook, features, temperature)
    if codes.ndim != 1 or codes.dtype != torch.int64 or codes.device != features.device:
        raise ValueError(f"codes must be int64 [S] on {features.device}, got {codes.dtype} {list(codes.shape)}")
    if runs_on(features):
        return _Terms.apply(codebook, features, slot, codes, *association[1:], (temperature or 0.0, unit_codes))
    labels, parts = pseudo_labels(codes, slot), [*_parts(len(features), len(codebook))]
    if len(parts) == 1:
        logits = association_logits(features, codebook, temperature=temperature)
        class_term = identity_loss(logits, labels, rest_when_right=True)
    else:
        terms = (_class_term(features[part], codebook, labels[part], temperature) for part in parts)
        summed, labelled, wrong = (torch.stack(each).sum() for each in zip(*terms, strict=True))
        class_term = summed / labelled.clamp(min=1) / math.log(len(codebook)) * (wrong > 0)
    return class_term, concentration_loss(features, codebook, labels, unit_codes=unit_codes)


def _class_term(
    features: Tensor, codebook: Tensor, labels: Tensor, temperature: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the summed cross-entropy of some pixels, how many are labelled, and how many of these have another code.

    The logits are computed again for the gradient rather than kept.
    """

    def summed(codebook: Tensor) -> Tensor:
        logits = association_logits(features, codebook, temperature=temperature)
        return cross_entropy(logits, labels, ignore_index=-1, reduction="sum")

    with torch.no_grad():
        best = association_logits(features, codebook, temperature=temperature).argmax(dim=1)
    labelled = labels >= 0
    total = checkpoint(summed, codebook, use_reentrant=False, preserve_rng_state=False)
    return total, labelled.sum(), (labelled & (best != labels)).sum()


def concentration_loss(features: Tensor, codebook: Tensor, labels: Tensor, *, unit_codes: bool) -> Tensor:
    """Return the mean distance between unit features and the codes they were matched with.

    Source: Eq. 6.
    Args:
        features, codebook: [P, D] and [L, D]; detach the features to train the codebook alone.
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


def _check(codebook: Tensor, features: Tensor, temperature: float | None) -> None:
    check_shapes({"features": (features, "P D"), "codebook": (codebook, "L D")})
    if not len(codebook):
        raise ValueError("codebook must hold at least one code")
    if codebook.dtype != features.dtype or codebook.device != features.device:
        raise ValueError(f"codebook must be {features.dtype} on {features.device} like the features")
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")


def _fused(
    features: Tensor, codebook: Tensor, slot: Tensor, num_segments: int, temperature: float | None, area_aware: bool
) -> Association:
    features, codes = features.contiguous(), codebook.contiguous()
    px = pixels_of(features, slot, num_segments)
    book = _Codebook(address(codes), codes.shape[0], temperature or 0.0, area_aware)
    memory = workspace(features, CUDA.dgr_cuda_association_bytes, byref(px), byref(book))
    scores = features.new_empty(num_segments, codes.shape[0])
    out = Association(scores, features.new_empty(features.shape[0]), torch.empty_like(slot))
    CUDA.dgr_cuda_association(byref(px), byref(book), *map(address, (memory, *out)))
    return out


class _Terms(Function):
    @staticmethod
    def forward(
        ctx: Any, codebook: Tensor, features: Tensor, slot: Tensor, codes: Tensor, log_normaliser: Tensor, best: Tensor,
        options: tuple[float, bool],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        tensors = (features, slot, codebook, codes, log_normaliser, best)
        features, slot, book_rows, codes, log_normaliser, best = (t.detach().contiguous() for t in tensors)
        px = pixels_of(features, slot, codes.shape[0])
        book = _Codebook(address(book_rows), book_rows.shape[0], options[0], True, options[1])
        memory = workspace(features, CUDA.dgr_cuda_terms_bytes, byref(px), byref(book))
        class_term, concentration = features.new_empty(()), features.new_empty(())
        parts = (codes, log_normaliser, best, memory, class_term, concentration)
        CUDA.dgr_cuda_terms(byref(px), byref(book), *map(address, parts))
        ctx.save_for_backward(features, slot, book_rows, codes, log_normaliser)
        ctx.structs, ctx.workspace = (px, book), memory
        ctx.set_materialize_grads(False)
        return class_term, concentration

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, class_upstream: Tensor | None, upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        features, _, book_rows, codes, log_normaliser = ctx.saved_tensors
        px, book = ctx.structs
        px.stream = place(features)[1]
        out = torch.empty_like(book_rows)
        upstreams = (None if t is None else t.contiguous() for t in (class_upstream, upstream))
        parts = (codes, log_normaliser, ctx.workspace, *upstreams, out)
        CUDA.dgr_cuda_terms_backward(byref(px), byref(book), *map(address, parts))
        return out, None, None, None, None, None, None
