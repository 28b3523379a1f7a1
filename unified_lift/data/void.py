"""Which ids of masks mean "in no mask" where that is not 0: -1 or 255, as many programs write them."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unified_lift.data.masks import StoredMask
from unified_lift.errors import UserError

_TOPS = (255, 65535)  # -1 in files of 8 and 16 bits, and what segmentation benchmarks ignore
_LEAST_GAP = 32  # between such an id and the largest of an object, which else may have come to it by counting


class TellingIds(NamedTuple):
    """The ids of a mask file that tell what is void: the negative ones, and all where 255 or 65535 is the largest."""

    path: Path
    largest: int
    negative: Collection[int]
    all: Collection[int]


def telling_ids(path: Path, mask: StoredMask) -> TellingIds:
    """Return those of a stored mask."""
    negative = [-1] if mask.lowest == -1 else []
    if mask.lowest < -1:
        negative = np.unique(mask.ids[mask.ids < 0]).tolist()
    is_top = mask.highest in _TOPS and mask.lowest >= 0
    return TellingIds(path, mask.highest, negative, np.unique(mask.ids).tolist() if is_top else [])


def void_ids(masks: Sequence[TellingIds], wanted: str) -> tuple[frozenset[int], str]:
    """Return the ids that mean "in no mask" in all masks of a scene, and what was decided; "" = nothing to decide.

    `auto`: a negative id, if only one occurs; else 255 or 65535 if it is the largest, far above the others, and two of
    those follow on one another, so that they were counted. `none`: no id; else ids, separated by commas.
    A UserError: `wanted` is none of these, or negative ids remain.
    """
    if not masks:
        return frozenset(), ""
    asked, negative = f"--void_id {wanted}", {value for mask in masks for value in mask.negative}
    found: set[int] = set()
    if wanted == "auto":
        seen = {value for mask in masks for value in mask.all} - {top := max(mask.largest for mask in masks)}
        is_top = top in _TOPS and not negative
        counted = any(value + 1 in seen for value in seen) and max(seen) + _LEAST_GAP <= top
        found = set(negative) if len(negative) == 1 else {top} if is_top and counted else set()
        if not found and is_top and seen - {0}:
            return frozenset(), f"id {top} of the masks is a segment like others; --void_id {top} if it means no mask"
    elif wanted != "none":
        try:
            found = {int(word) for word in wanted.split(",")}
            if not -(2**31) <= min(found) <= max(found) < 2**31:
                raise ValueError
        except ValueError:
            raise UserError(f"{asked}: choose auto, none or an id such as 255 (several: 0,255)") from None
    require_void(masks, found, wanted)
    if not found:
        return frozenset(), "" if wanted == "auto" else f"masks have no void id ({asked})"
    zero = "" if 0 in found else ", and 0 is a segment like others"
    return frozenset(found), f"pixels of id {', '.join(map(str, sorted(found)))} are in no mask{zero} ({asked})"


def require_void(masks: Sequence[TellingIds], void: Collection[int], wanted: str) -> None:
    """Raise a UserError where masks have negative ids that are not void; `wanted` is what the user asked for."""
    negative = {value: mask.path for mask in masks for value in mask.negative}
    if left := sorted(set(negative) - set(void)):
        fix = f"use --void_id={','.join(map(str, sorted(negative)))} if they mean no mask, or write ids from 0 on"
        what = f"ids must lie in 0..2^31-1, received {left[0]} (--void_id {wanted})"
        raise UserError(f"{negative[left[0]]}: {what}; {fix}")


def void_to_zero(segments: Tensor, void: Collection[int]) -> None:
    """Make void ids 0 and count all others up by one, in place, if there are any; int32 [H, W]."""
    if not void:
        return
    is_void = torch.isin(segments, torch.tensor(sorted(void), dtype=segments.dtype))
    segments.add_(1)[is_void] = 0
