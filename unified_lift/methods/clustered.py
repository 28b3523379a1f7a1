"""What methods share that learn features first and find the objects afterwards, by clustering them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from unified_lift.errors import UserError
from unified_lift.methods.base import LiftData, Method, MethodSettings, TrainingViews, ViewPixels
from unified_lift.metrics.panoptic import pq_scene
from unified_lift.ops.segments import segment_sum
from unified_lift.settings.limits import Range
from unified_lift.types import ZeroId

_EPS = 1e-6
_CPU = torch.device("cpu")
_CANDIDATE, _CHOSEN = "candidate/", "chosen/"  # of keys of the saved state


@dataclass(frozen=True, kw_only=True)
class ClusteredSettings(MethodSettings):
    """How the clusters are found and which of them are taken."""

    feature_lr: Annotated[float, Range(0)] = 0.01
    """Rate of the features, constant [OmniSeg3D-GS]; for contrastive_lift_gs, whose original trains networks: [ours]"""
    cluster_sizes: Annotated[tuple[int, ...], Range(2)] = (5, 10, 15, 20, 30, 40, 60, 80, 120, 190)
    """Values of HDBSCAN's min_cluster_size that are tried, in points of the sample. [ours] Contrastive Lift: 10 to 190
    by 10 of 50,000 points, which is 4 to 76 of 20,000."""
    cluster_sample: Annotated[int, Range(2)] = 20_000
    """Pixels that are clustered, of all training views. [ours] Contrastive Lift: 50,000; 20,000 take some three seconds
    for each size, an eighth of that."""
    cluster_space: Literal["unit", "box"] = "unit"
    """What is clustered: `unit` = features scaled to length 1 [ours]; `box` = without those beyond three sigma in any
    dimension, every dimension scaled to [0, 1] [Contrastive Lift]."""
    score_pixels: Annotated[int, Range(1)] = 4_096
    """Labelled pixels of each training view on which the sizes are compared; the sample is drawn from them. [ours]"""
    confidence_temperature: Annotated[float, Range(above=0)] = 0.1
    """Confidence = softmax of -distance^2 / (2 x this) over the centroids; for unit features cosine / this. It ranks
    pixels, and changes no id. [ours]"""

    def check(self) -> None:
        super().check()
        if not self.cluster_sizes:
            raise UserError("--cluster_sizes must be one or more numbers, received none")


class ClusteredMethod(Method):
    """Features whose clusters are the objects: HDBSCAN after the last step, every pixel to the nearest centroid.

    HDBSCAN's answer hangs on min_cluster_size. So several are tried, and the one is taken whose ids agree best with the
    2D masks of the training views, by the mean panoptic quality over views; no annotation is read. All are kept as
    `candidates`, so that an evaluation can tell what an oracle would have scored, which chooses with the annotations.

    Source: the clustering protocol of Contrastive Lift, which Unified-Lift applies to OmniSeg3D-GS.
    """

    settings: ClusteredSettings
    object_tables = ("centroids",)
    centroids: Tensor  # of the chosen candidate, in the space that is clustered, [L, C]
    box: Tensor | None  # what becomes 0 and the width of what becomes [0, 1] where `cluster_space` is a box, [2, C]

    def __init__(self, settings: ClusteredSettings, *, zero_id: ZeroId, seed: int) -> None:
        super().__init__(settings, zero_id=zero_id, seed=seed)
        self.register_buffer("centroids", torch.zeros(0, self.feature_dim))
        self.register_buffer("box", None)
        self._found: dict[str, Tensor] = {}  # name -> centroids of every candidate
        self.chosen: str | None = None  # name of the candidate that `segment` uses

    def clustered_part(self, features: Tensor) -> Tensor:
        """Return what of features [..., D] is clustered, [..., C]."""
        return features

    def rates(self, progress: float) -> dict[str, float]:
        return {"features": self.settings.feature_lr}

    def prepare(self, data: LiftData) -> None:
        require_hdbscan()  # before anything is trained

    @torch.no_grad()
    def finish(self, views: TrainingViews) -> None:
        s, labelled = self.settings, [self._labelled(view, pixels) for view, pixels in enumerate(views())]
        features, slots = torch.cat([seen for seen, _ in labelled]), [slot for _, slot in labelled if len(slot)]
        if not slots:
            raise UserError("no training view has a labelled pixel to cluster; check --object_path and --zero_id")
        chosen = torch.randperm(len(features), generator=self.step_rng.at(-1, _CPU))[: s.cluster_sample]
        sample = features[chosen.to(features.device)]
        if s.cluster_space == "box":
            kept, self.box = box_without_outliers(self.clustered_part(sample))
            sample = sample[kept]
        points, sweep, self._found = self._points(sample), [], {}
        for size in sorted(set(s.cluster_sizes)):
            self.centroids, score = hdbscan_centroids(points, min_cluster_size=size), 0.0
            if self.num_objects:
                self._found[f"min_cluster_size={size}"] = self.centroids
                score = _agreement(self.segment(features).object_ids, slots)
            sweep.append({"min_cluster_size": size, "clusters": self.num_objects, "pseudo_label_pq": score})
        if not self._found:
            raise UserError(
                f"HDBSCAN finds no cluster with --cluster_sizes {' '.join(map(str, s.cluster_sizes))} among "
                f"{len(points)} points: smaller sizes, a larger --cluster_sample, or more --lift_iterations"
            )
        best = max((row for row in sweep if row["clusters"]), key=lambda row: row["pseudo_label_pq"])
        self.chosen = f"min_cluster_size={best['min_cluster_size']}"  # of equals the smallest
        self.centroids = self._found[self.chosen]
        self.summary = {"cluster_sweep": sweep, "chosen": self.chosen}

    def logits(self, features: Tensor) -> Tensor:
        """Return -|x - c|^2 / (2 temperature) up to a number of each point x for centroids c; the nearest's is largest.

        Between unit vectors it is the cosine / temperature.
        """
        centroids = self.centroids if self.box is not None else normalize(self.centroids, dim=1, eps=_EPS)
        nearness = self._points(features) @ centroids.T - centroids.square().sum(dim=1) / 2
        return nearness / self.settings.confidence_temperature

    def candidates(self) -> dict[str, Method]:
        methods: dict[str, Method] = {}
        # The clusters of the chosen size may be renumbered by now.
        for name, centroids in (self._found | {self.chosen: self.centroids} if self.chosen else {}).items():
            methods[name] = type(self)(self.settings, zero_id="ignore", seed=0).to(self.centroids.device)
            methods[name].load_object_state(self.object_state() | {"centroids": centroids})
        return methods

    def _labelled(self, view: int, pixels: ViewPixels) -> tuple[Tensor, Tensor]:
        """Return features and slots of at most `score_pixels` labelled pixels of a view."""
        features, slot = pixels[:2]
        entries = (slot >= 0).nonzero()[:, 0]
        if len(entries) > self.settings.score_pixels:
            shuffled = torch.randperm(len(entries), generator=self.step_rng.at(-2 - view, _CPU))
            entries = entries[shuffled[: self.settings.score_pixels].to(entries.device)]
        return features[entries], slot[entries]

    def _points(self, features: Tensor) -> Tensor:
        """Return features [P, D] in the space that is clustered, [P, C]."""
        part = self.clustered_part(features)
        return normalize(part, dim=1, eps=_EPS) if self.box is None else (part - self.box[0]) / self.box[1]

    def object_state(self) -> dict[str, Tensor]:
        """Return the centroids that `segment` uses, those of every size, and the box if there is one."""
        state = {"centroids": self.centroids} | {_CANDIDATE + name: value for name, value in self._found.items()}
        if self.chosen is not None:
            state[_CHOSEN + self.chosen] = torch.zeros(0)  # the file holds tensors only: their names tell
        return state if self.box is None else state | {"box": self.box}

    def load_object_state(self, state: Mapping[str, Tensor]) -> None:
        moved = {name: value.to(self.centroids.device, copy=True) for name, value in state.items()}
        self.centroids, self.box = moved["centroids"], moved.get("box")
        self._found = {k.removeprefix(_CANDIDATE): v for k, v in moved.items() if k.startswith(_CANDIDATE)}
        self.chosen = next((name.removeprefix(_CHOSEN) for name in moved if name.startswith(_CHOSEN)), None)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return super().state_dict() | {"objects": self.object_state(), "sweep": self.summary.get("cluster_sweep", [])}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        super().load_state_dict(state_dict)
        self.load_object_state(state_dict["objects"])
        if self.chosen is not None:
            self.summary = {"cluster_sweep": state_dict["sweep"], "chosen": self.chosen}


def _agreement(ids: Tensor, slots: list[Tensor]) -> float:
    """Return the mean over views of the panoptic quality of ids [sum of P] against the segments of each view, [P]."""
    views = zip(ids.cpu().split([len(slot) for slot in slots]), (slot.cpu() for slot in slots), strict=True)
    maps = [(np.zeros(len(true), int), own.numpy(), true.numpy()) for own, true in views]
    return float(np.mean([pq_scene(one, own, one, true, things=[0], stuff=[]).pq for one, own, true in maps]))


def require_hdbscan() -> Any:
    """Return scikit-learn's class HDBSCAN; a UserError where it is missing or older than 1.3."""
    try:
        from sklearn.cluster import HDBSCAN
    except ImportError:
        raise UserError(
            "scikit-learn 1.3 or newer is missing, which clusters the features of this --method; "
            'pip install "unified-lift[baselines]"'
        ) from None
    return HDBSCAN


@torch.no_grad()
def hdbscan_centroids(points: Tensor, *, min_cluster_size: int) -> Tensor:
    """Return the mean of each cluster of points [M, D], weighted by how surely each belongs to it, float32 [L, D].

    Points with NaN or infinite numbers belong to none. L = 0: nothing is dense enough.
    Source: HDBSCAN (Campello et al. 2013) as Contrastive Lift calls it: min_samples 1, a single cluster allowed.
    """
    hdbscan = require_hdbscan()
    if len(points) < 2:  # which scikit-learn refuses
        return points.new_zeros(0, points.shape[1], dtype=torch.float32)
    values = points.double().cpu()
    # copy=True: older versions may write into the array they are given, newer ones warn where nothing is said
    found = hdbscan(min_cluster_size=min_cluster_size, min_samples=1, allow_single_cluster=True, copy=True)
    found.fit(values.numpy())
    labels = torch.from_numpy(found.labels_).long().clamp(min=-1)  # -1: noise; -2, -3: not finite
    weights, count = torch.from_numpy(found.probabilities_)[:, None], int(labels.max()) + 1
    centroids = segment_sum(weights * values, labels, count) / segment_sum(weights, labels, count)
    return centroids.float().to(points.device)


def box_without_outliers(points: Tensor) -> tuple[Tensor, Tensor]:
    """Return which of points [M, D] lie near the mean, bool [M], and the box around them: its corner and sides, [2, D].

    Near is within three standard deviations in every dimension [Contrastive Lift]; if no point is, all are kept.
    """
    deviation = (points - points.mean(dim=0)).abs()
    kept = (deviation <= 3.0 * points.std(dim=0, correction=0)).all(dim=1)
    kept |= ~kept.any()  # in many dimensions each point may be far out in one of them
    low, high = torch.aminmax(points[kept], dim=0)
    return kept, torch.stack([low, (high - low).clamp(min=1e-12)])  # all points may agree in a dimension
