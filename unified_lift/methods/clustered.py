"""What methods share that learn features first and find the objects afterwards, by clustering them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from unified_lift.errors import UserError
from unified_lift.methods.base import LiftData, Method, MethodSettings, Observation, Segmentation
from unified_lift.metrics.panoptic import pq_scene
from unified_lift.ops.clustering import Box, box_without_outliers, centroid_logits, hdbscan_centroids, require_hdbscan
from unified_lift.ops.draws import StepGenerator
from unified_lift.types import ZeroId

_EPS = 1e-6
_MAX_DISTANCES = 2**24  # of pixels from centroids at once: 64 MiB
_CANDIDATE, _CHOSEN = "candidate/", "chosen/"  # of keys of the saved state


@dataclass(frozen=True, kw_only=True)
class ClusteredSettings(MethodSettings):
    """How the clusters are found and which of them are taken."""

    cluster_sizes: tuple[int, ...] = (5, 10, 15, 20, 30, 40, 60, 80, 120, 190)
    """Values of HDBSCAN's min_cluster_size that are tried, in points of the sample. [ours] Contrastive Lift: 10 to 190
    by 10 of 50,000 points, which is 4 to 76 of 20,000; an object of a room of 400 has some tens of them."""
    cluster_sample: int = 20_000
    """Pixels that are clustered, of all training views. [ours] Contrastive Lift: 50,000; 20,000 take some three seconds
    for each size, an eighth of that."""
    cluster_space: Literal["unit", "box"] = "unit"
    """What is clustered: `unit` = features scaled to length 1 [ours]; `box` = without those beyond three sigma in any
    dimension, every dimension scaled to [0, 1] [Contrastive Lift]."""
    score_pixels: int = 4_096
    """Labelled pixels of each training view on which the sizes are compared; the sample is drawn from them. [ours]"""
    confidence_temperature: float = 0.1
    """Confidence = softmax of -distance^2 / (2 x this) over the centroids; for unit features cosine / this. It ranks
    pixels, and changes no id. [ours]"""

    def check(self) -> None:
        """Raise a UserError naming the flag whose value makes no sense."""
        super().check()
        if not self.cluster_sizes or min(self.cluster_sizes) < 2:
            raise UserError(f"--cluster_sizes must be one or more numbers from 2 on, received {self.cluster_sizes}")
        for name, value, least in (("cluster_sample", self.cluster_sample, 2), ("score_pixels", self.score_pixels, 1)):
            if value < least:
                raise UserError(f"--{name} must be at least {least}, received {value}")
        if self.confidence_temperature <= 0:
            raise UserError(f"--confidence_temperature must be positive, received {self.confidence_temperature}")


class ClusteredMethod(Method):
    """Features whose clusters are the objects: HDBSCAN after the last step, every pixel to the nearest centroid.

    HDBSCAN's answer hangs on min_cluster_size. So several are tried, and the one is taken whose ids agree best with the
    2D masks of the training views: the mean over views of the panoptic quality against the masks, view by view, as
    mask ids mean nothing from view to view. No annotation is read. All are kept as `candidates`, so that an evaluation
    can tell what the best choice in hindsight would have scored.

    Source: the clustering protocol of Contrastive Lift, which Unified-Lift applies to OmniSeg3D-GS.
    """

    settings: ClusteredSettings

    def __init__(self, settings: ClusteredSettings, *, zero_id: ZeroId, seed: int) -> None:
        """Create the method for a dataset in which id 0 means `zero_id`; it knows no objects until `finish`."""
        super().__init__(settings, zero_id=zero_id, seed=seed)
        self.draws = StepGenerator(seed)
        self.centroids = torch.zeros(0, self.feature_dim)
        """Of the chosen candidate, in the space that is clustered, [L, C]."""
        self._found: dict[str, Tensor] = {}
        self._chosen: str | None = None
        self._box: Box | None = None
        self._sweep: list[dict[str, float]] = []

    def clustered_part(self, features: Tensor) -> Tensor:
        """Return what of features [..., D] is clustered, [..., C]; all of them unless a method says otherwise."""
        return features

    # ---- before and after the training ----

    def prepare(self, data: LiftData) -> None:
        """See that the clustering will be possible, before anything is trained."""
        require_hdbscan()

    @torch.no_grad()
    def finish(self, observe: Callable[[], Iterable[Observation]]) -> None:
        """Cluster rendered features of all training views and choose among the sizes.

        Raises:
            UserError: There is nothing to cluster, or no cluster for any size.
        """
        s, per_view = self.settings, [self._labelled(view, *seen) for view, seen in enumerate(observe())]
        per_view = [(features, slot) for features, slot in per_view if len(slot)]
        if not per_view:
            raise UserError("no training view has a labelled pixel to cluster; check --object_path and --zero_id")
        features = torch.cat([features for features, _ in per_view])
        chosen = torch.randperm(len(features), generator=self.draws.at(-1, torch.device("cpu")))[: s.cluster_sample]
        sample = features[chosen.to(features.device)]
        kept = None
        if s.cluster_space == "box":
            kept, self._box = box_without_outliers(self.clustered_part(sample))
        points = self._points(sample if kept is None else sample[kept])
        slots = [slot.cpu().numpy() for _, slot in per_view]
        found, self._sweep = {}, []
        for size in sorted(set(s.cluster_sizes)):
            centroids = hdbscan_centroids(points, min_cluster_size=size)
            score = 0.0
            if len(centroids):
                found[f"min_cluster_size={size}"] = centroids
                score = _agreement(self._assigned(features, centroids).object_ids.cpu().numpy(), slots)
            self._sweep.append({"min_cluster_size": size, "clusters": len(centroids), "pseudo_label_pq": score})
        if not found:
            raise UserError(
                f"HDBSCAN finds no cluster with --cluster_sizes {' '.join(map(str, s.cluster_sizes))} among "
                f"{len(points)} points: smaller sizes, a larger --cluster_sample, or more --lift_iterations"
            )
        best = max((row for row in self._sweep if row["clusters"]), key=lambda row: row["pseudo_label_pq"])
        self._found, self._chosen = found, f"min_cluster_size={best['min_cluster_size']}"  # of equals the smallest
        self.centroids = found[self._chosen]

    def summary(self) -> dict[str, Any]:
        """Return every size tried, its number of clusters and its agreement with the masks, and the name chosen."""
        return {"cluster_sweep": [dict(row) for row in self._sweep], "chosen": self._chosen}

    # ---- ids ----

    @property
    def num_objects(self) -> int:
        """Return the number of clusters; 0 before `finish`."""
        return len(self.centroids)

    def segment(self, features: Tensor) -> Segmentation:
        """Return the cluster with the nearest centroid for features [..., D]."""
        if not len(self.centroids):
            zeros = torch.zeros(features.shape[:-1], device=features.device)
            return Segmentation(zeros.long(), zeros)
        ids, confidence = self._assigned(features.reshape(-1, features.shape[-1]), self.centroids)
        return Segmentation(ids.view(features.shape[:-1]), confidence.view(features.shape[:-1]))

    def association(self, features: Tensor) -> Tensor:
        """Return the softmax over the clusters for features [..., D], [..., L]."""
        logits = self._logits(features.reshape(-1, features.shape[-1]), self.centroids)
        return torch.softmax(logits, dim=1).view(*features.shape[:-1], len(self.centroids))

    @property
    def candidates(self) -> tuple[str, ...]:
        """Return the names of the sizes for which there are clusters, rising; none before `finish`."""
        return tuple(self._found)

    @property
    def chosen_candidate(self) -> str | None:
        """Return the name of the size that `segment` uses."""
        return self._chosen

    def with_candidate(self, name: str) -> ClusteredMethod:
        """Return a method that segments with the clusters of the size of that name.

        Raises:
            KeyError: There is no such candidate.
        """
        other = copy.copy(self)
        if name != self._chosen:  # whose clusters may be renumbered by now
            other.centroids, other._chosen = self._found[name], name
        return other

    def _labelled(self, view: int, features: Tensor, slot: Tensor, num_segments: int) -> tuple[Tensor, Tensor]:
        """Return features and slots of at most `score_pixels` labelled pixels of a view."""
        rows = (slot >= 0).nonzero()[:, 0]
        if len(rows) > self.settings.score_pixels:
            shuffled = torch.randperm(len(rows), generator=self.draws.at(-2 - view, torch.device("cpu")))
            rows = rows[shuffled[: self.settings.score_pixels].to(rows.device)]
        return features[rows], slot[rows]

    def _points(self, features: Tensor) -> Tensor:
        """Return features [P, D] in the space that is clustered, [P, C]."""
        part = self.clustered_part(features)
        return normalize(part, dim=1, eps=_EPS) if self._box is None else self._box(part)

    def _logits(self, features: Tensor, centroids: Tensor) -> Tensor:
        if self._box is None:
            centroids = normalize(centroids, dim=1, eps=_EPS)
        return centroid_logits(self._points(features), centroids, temperature=self.settings.confidence_temperature)

    def _assigned(self, features: Tensor, centroids: Tensor) -> Segmentation:
        """Return ids and confidence of features [P, D] among centroids [L, C], L at least 1."""
        parts = features.split(max(1, _MAX_DISTANCES // len(centroids)))
        confidence, ids = zip(*(torch.softmax(self._logits(part, centroids), dim=1).max(dim=1) for part in parts))
        return Segmentation(torch.cat(ids), torch.cat(confidence))

    # ---- state ----

    def to(self, device: torch.device) -> None:
        """Move the centroids to `device`."""
        super().to(device)
        self._set_objects(self.object_state())

    def reorder(self, order: Tensor) -> None:
        """Renumber the clusters of the chosen size: id i becomes what id `order[i]` was."""
        self.centroids = self.centroids[order]

    def object_state(self) -> dict[str, Tensor]:
        """Return the centroids that `segment` uses, those of every size, and the box if there is one.

        The name of the chosen size is that of an empty tensor: the file holds tensors only.
        """
        state = {"centroids": self.centroids} | {_CANDIDATE + name: value for name, value in self._found.items()}
        if self._chosen is not None:
            state[_CHOSEN + self._chosen] = torch.zeros(0)
        return state if self._box is None else state | {"box": torch.stack(self._box)}

    def load_object_state(self, state: Mapping[str, Tensor]) -> None:
        """Take what `object_state` returned."""
        self._set_objects(state)

    def state_dict(self) -> dict:
        """Return the generator and, after `finish`, clusters and sweep."""
        return super().state_dict() | {"objects": self.object_state(), "sweep": [dict(row) for row in self._sweep]}

    def load_state_dict(self, state: dict) -> None:
        """Take what `state_dict` returned."""
        super().load_state_dict({name: value for name, value in state.items() if name not in ("objects", "sweep")})
        self._set_objects(state["objects"])
        self._sweep = [dict(row) for row in state["sweep"]]

    def _set_objects(self, state: Mapping[str, Tensor]) -> None:
        moved = {name: value.to(self.device, copy=True) for name, value in state.items()}
        self.centroids = moved["centroids"]
        self._found = {k.removeprefix(_CANDIDATE): v for k, v in moved.items() if k.startswith(_CANDIDATE)}
        self._chosen = next((name.removeprefix(_CHOSEN) for name in moved if name.startswith(_CHOSEN)), None)
        self._box = Box(*moved["box"]) if "box" in moved else None


def _agreement(ids: np.ndarray, slots: list[np.ndarray]) -> float:
    """Return the mean over views of the panoptic quality of ids [sum of P] against the segments of each view, [P]."""
    scores, first = [], 0
    for slot in slots:
        one_class, own = np.zeros_like(slot), ids[first : first + len(slot)]
        scores.append(pq_scene(one_class, own, one_class, slot, things=[0], stuff=[]).pq)
        first += len(slot)
    return float(np.mean(scores))
