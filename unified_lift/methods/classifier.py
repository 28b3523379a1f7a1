"""What methods share that read ids off features with a linear classifier: its head, and training by known classes.

`IdentityClassifier` is the head alone. `KnownClasses` is for methods that know before the lift to which object each
segment of each view belongs: they say so in `segment_classes`, the rest is done here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from unified_lift.errors import UserError
from unified_lift.kernels.assignment import pseudo_labels
from unified_lift.kernels.identity import identity_loss, knn_loss
from unified_lift.methods.base import LiftData, Method, MethodSettings, Segmentation
from unified_lift.model.initialize import random_features
from unified_lift.ops.draws import StepGenerator
from unified_lift.ops.neighbors import nearest_points
from unified_lift.types import ZeroId

_MAX_LOGITS = 2**24  # of pixels for classes at once: 64 MiB for each of a few tensors


class SegmentClasses(NamedTuple):
    """The object of every segment of every training view, as a method knows it before the lift.

    Attributes:
        of_view: For each view of `LiftData.views`, in its order: class of each segment in [0, num_classes), -1 = its
            pixels train nothing, int64 [S].
        num_classes: L.
    """

    of_view: list[Tensor]
    num_classes: int


@dataclass(frozen=True, kw_only=True)
class ClassifierSettings(MethodSettings):
    """What every method with a classifier has."""

    feature_lr: float = 2.5e-3
    """Rate of the features [Gaussian Grouping]."""
    head_lr: float = 5e-4
    """Rate of the classifier [Gaussian Grouping]."""


@dataclass(frozen=True, kw_only=True)
class KnownClassesSettings(ClassifierSettings):
    """What every method has whose classes are known before the lift."""

    weight_knn: float = 2.0
    """Weight of the term that makes neighbouring Gaussians agree; 0 = without [Gaussian Grouping]."""
    knn_interval: int = 5
    """Steps from one such term to the next [Gaussian Grouping]."""
    knn_neighbours: int = 5
    """Nearest Gaussians that an anchor is compared with, itself the first [Gaussian Grouping]."""
    knn_anchors: int = 1_000
    """Gaussians compared with their neighbours at a time [Gaussian Grouping]."""

    def check(self) -> None:
        """Raise a UserError naming the flag whose value makes no sense."""
        super().check()
        for name in ("knn_interval", "knn_neighbours", "knn_anchors"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, received {getattr(self, name)}")


class IdentityClassifier(Method):
    """A linear head on rendered features: a score for every class; the id of a pixel is the class that scores highest.

    The head is there once `start_head` was called, by `prepare` at the earliest: until then nothing is known.
    """

    settings: ClassifierSettings

    def __init__(self, settings: ClassifierSettings, *, zero_id: ZeroId, seed: int) -> None:
        """Create the method for a dataset in which id 0 means `zero_id`, without head."""
        super().__init__(settings, zero_id=zero_id, seed=seed)
        self.weight = torch.zeros(0, settings.feature_dim).requires_grad_(True)
        self.bias = torch.zeros(0).requires_grad_(True)

    @property
    def num_objects(self) -> int:
        """Return the number of classes L."""
        return len(self.weight)

    def initial_features(self, count: int) -> Tensor:
        """Return start features [count, D], uniform in +-1.772 [Gaussian Grouping]."""
        return random_features(count, self.feature_dim, unit=False, generator=self.generator)

    def parameters(self) -> dict[str, Tensor]:
        """Return weight [L, D] and bias [L] of the head."""
        return {"weight": self.weight, "bias": self.bias}

    def rates(self, progress: float) -> dict[str, float]:
        """Return the rates of features and head, which are constant."""
        head = self.settings.head_lr
        return {"features": self.settings.feature_lr, "weight": head, "bias": head}

    def start_head(self, num_classes: int) -> None:
        """Draw the head as a 1x1 convolution of torch begins; one that a checkpoint has brought stays.

        Raises:
            UserError: The one that a checkpoint has brought has another number of classes.
        """
        if self.num_objects == 0:
            bound = self.feature_dim**-0.5
            weight, bias = (
                (torch.rand(*shape, generator=self.generator) * 2 - 1) * bound
                for shape in ((num_classes, self.feature_dim), (num_classes,))
            )
            self.weight, self.bias = (x.to(self.device).requires_grad_(True) for x in (weight, bias))
        if self.num_objects != num_classes:
            raise UserError(
                f"--resume: the checkpoint knows {self.num_objects} classes, the masks have {num_classes}; "
                "give the masks it was trained with, or start a new -m folder"
            )

    def logits(self, features: Tensor) -> Tensor:
        """Return the score of every class for features [..., D], [..., L]."""
        return linear(features, self.weight, self.bias)

    def segment(self, features: Tensor) -> Segmentation:
        """Return the class with the largest score for features [..., D]; confidence: its softmax."""
        if not self.num_objects:
            zeros = torch.zeros(features.shape[:-1], device=features.device)
            return Segmentation(zeros.long(), zeros)
        parts = features.reshape(-1, features.shape[-1]).split(max(1, _MAX_LOGITS // self.num_objects))
        confidence, ids = zip(*(torch.softmax(self.logits(part), dim=1).max(dim=1) for part in parts))
        return Segmentation(torch.cat(ids).view(features.shape[:-1]), torch.cat(confidence).view(features.shape[:-1]))

    def association(self, features: Tensor) -> Tensor:
        """Return the probability of every class for features [..., D], [..., L]."""
        return torch.softmax(self.logits(features), dim=-1)

    def reorder(self, order: Tensor) -> None:
        """Permute the classes: row i becomes what row `order[i]` was."""
        self.weight, self.bias = (x.detach()[order].clone().requires_grad_(True) for x in (self.weight, self.bias))

    def object_state(self) -> dict[str, Tensor]:
        """Return the head as Gaussian Grouping saves it, as a 1x1 convolution: weight [L, D, 1, 1] and bias [L]."""
        return {"weight": self.weight.detach()[:, :, None, None], "bias": self.bias.detach()}

    def load_object_state(self, state: Mapping[str, Tensor]) -> None:
        """Take what `object_state` returned, or Gaussian Grouping's classifier.pth."""
        super().load_object_state({"weight": state["weight"].flatten(1), "bias": state["bias"]})


class KnownClasses(IdentityClassifier):
    """A classifier trained by classes that are known before the lift, as Gaussian Grouping trains its own.

    Terms: "identity", cross-entropy of the labelled pixels / ln L; every few steps "knn", which makes neighbouring
    Gaussians agree. Only `segment_classes` is to be written.
    """

    settings: KnownClassesSettings

    def __init__(self, settings: KnownClassesSettings, *, zero_id: ZeroId, seed: int) -> None:
        """Create the method for a dataset in which id 0 means `zero_id`, without head."""
        super().__init__(settings, zero_id=zero_id, seed=seed)
        self.weights = {"knn": settings.weight_knn}
        self.draws = StepGenerator(seed)
        self.classes: list[Tensor] = []
        """Class of each segment of each view, -1 = none, int64 [S] each; made by `prepare`, also of a resumed run."""
        self.neighbours = torch.zeros(0, 0, dtype=torch.int64)
        """Nearest Gaussians of each, [N, K]; made by `prepare` if they are asked for."""

    @abstractmethod
    def segment_classes(self, data: LiftData) -> SegmentClasses:
        """Return the class of every segment; it must follow from `data` and the settings alone."""

    def prepare(self, data: LiftData) -> None:
        """Ask for the classes and, unless a checkpoint has brought one, draw the head.

        Raises:
            UserError: No segment of any view has a class; or as `start_head`.
        """
        of_view, num_classes = self.segment_classes(data)
        if not any(bool((classes >= 0).any()) for classes in of_view):
            raise UserError("--object_path: no pixel of any mask has a label; check the masks, or --zero_id segment")
        self.classes = [classes.to(self.device) for classes in of_view]
        if self.settings.weight_knn:
            self.neighbours = nearest_points(data.means, self.settings.knn_neighbours).to(self.device)
        self.start_head(num_classes)

    def losses(
        self, features: Tensor, slot: Tensor, num_segments: int, progress: float, *, view: int
    ) -> dict[str, Tensor]:
        """Return the identity term of the pixels whose segment has a class."""
        return {"identity": identity_loss(self.logits(features), pseudo_labels(self.classes[view], slot))}

    def gaussian_terms(self, features: Tensor, means: Tensor, step: int) -> dict[str, Tensor]:
        """Return the term of neighbouring Gaussians at every `knn_interval`-th step."""
        s = self.settings
        if not s.weight_knn or (step + 1) % s.knn_interval:
            return {}
        draws = self.draws.at(step, features.device)
        term = knn_loss(features, self.neighbours, self.weight, self.bias, num_anchors=s.knn_anchors, generator=draws)
        return {"knn": term}

    def reorder(self, order: Tensor) -> None:
        """Permute the classes, also those of the segments."""
        super().reorder(order)
        row = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        self.classes = [torch.where(classes >= 0, row[classes.clamp(min=0)], -1) for classes in self.classes]
