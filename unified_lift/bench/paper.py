"""The numbers of the paper's Tables 1 to 4, fractions in [0, 1]; quoted, not measured.

Source: Unified-Lift, CVPR 2025, Tables 1 to 4. "best": HDBSCAN's smallest cluster was tuned on the evaluation itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Published:
    """A row of a table of the paper.

    Attributes:
        name: As the paper calls it.
        mean: Metric -> mean over the scenes.
        scenes: Scene -> metric -> value, where the paper tells them.
        hours: Training time on one RTX 3090, as the paper words it.
    """

    name: str
    mean: Mapping[str, float]
    scenes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    hours: str = ""


MESSY_SCENES = tuple(f"{room}_{count}" for room in ("old_room", "large_corridor") for count in (25, 50, 100, 500))


def _pair(name: str, metrics: tuple[str, str], first: float, second: float) -> Published:
    return Published(name=name, mean=dict(zip(metrics, _fractions(first, second), strict=True)))


def _messy(name: str, hours: str, *percent: float) -> Published:
    """Return a row of Table 3: eight scenes, then their mean as printed."""
    *scenes, mean = _fractions(*percent)
    return Published(
        name=name,
        mean={"PQ_scene": mean},
        scenes={scene: {"PQ_scene": value} for scene, value in zip(MESSY_SCENES, scenes, strict=True)},
        hours=hours,
    )


def _fractions(*percent: float) -> list[float]:
    return [round(value / 100, 3) for value in percent]  # as typed: 41.6 / 100 is not 0.416


_MASKS, _MATCHED = ("mIoU", "mBIoU"), ("mIoU", "F1")
PUBLISHED: dict[str, dict[str, Published]] = {
    "1": {
        "lerf": _pair("LERF", _MASKS, 37.2, 29.3),
        "langsplat": _pair("LangSplat", _MASKS, 57.6, 53.6),
        "gaussian_grouping": _pair("Gaussian Grouping", _MASKS, 72.8, 67.6),
        "gaga": _pair("Gaga", _MASKS, 74.7, 72.2),
        "omniseg3d_gs": _pair("OmniSeg3D-GS (best)", _MASKS, 74.7, 71.8),
        "panoptic_lifting_gs": _pair("Panoptic-Lifting-GS", _MASKS, 70.7, 65.8),
        "unified_lift": _pair("Unified-Lift", _MASKS, 80.9, 77.1),
    },
    "2": {
        "gaussian_grouping": _pair("Gaussian Grouping", _MATCHED, 23.6, 30.4),
        "omniseg3d_gs": _pair("OmniSeg3D-GS (best)", _MATCHED, 39.1, 35.9),
        "panoptic_lifting_gs": _pair("Panoptic-Lifting-GS", _MATCHED, 25.3, 32.9),
        "unified_lift": _pair("Unified-Lift", _MATCHED, 41.6, 43.9),
    },
    "3": {
        "panoptic_lifting": _messy(
            "Panoptic Lifting (NeRF)", "at least 20", 73.2, 69.9, 64.3, 51.0, 65.5, 71.0, 61.8, 49.0, 63.2
        ),
        "contrastive_lift": _messy(
            "Contrastive Lift (NeRF)", "at least 20", 78.9, 75.8, 69.1, 55.0, 76.5, 75.5, 68.7, 52.5, 69.0
        ),
        "omniseg3d_gs": _messy("OmniSeg3D-GS (best)", "about 1", 80.1, 72.4, 61.4, 46.8, 74.9, 79.6, 63.9, 48.5, 66.0),
        "panoptic_lifting_gs": _messy(
            "Panoptic-Lifting-GS", "about 1", 67.5, 65.1, 59.4, 46.1, 62.2, 65.3, 57.5, 45.5, 58.6
        ),
        "unified_lift": _messy("Unified-Lift", "about 1", 79.1, 72.2, 65.9, 53.9, 77.0, 78.9, 70.7, 54.1, 69.0),
    },
    "4": {
        "1_end_to_end": _pair("previous end-to-end", _MATCHED, 25.3, 32.9),
        "2_codebook": _pair("codebook baseline", _MATCHED, 29.5, 39.2),
        "3_concentration": _pair("+ concentration", _MATCHED, 36.3, 41.3),
        "4_area_aware": _pair("+ area-aware mapping", _MATCHED, 39.2, 41.0),
        "5_filter": _pair("+ noisy-label filter", _MATCHED, 41.6, 43.9),
    },
    "rooms": {},
}
"""Table -> row -> what the paper prints."""
