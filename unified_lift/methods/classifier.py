"""Methods that read ids off features with a linear classifier: its head, and training by known classes."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from unified_lift.errors import UserError
from unified_lift.kernels.assignment import pseudo_labels
from unified_lift.kernels.identity import identity_loss, knn_loss, nearest_points
from unified_lift.methods.base import LiftData, Method, MethodSettings, StepInfo, ViewPixels
from unified_lift.model.initialize import random_features
from unified_lift.settings.limits import Range
from unified_lift.types import ZeroId


@dataclass(frozen=True, kw_only=True)
class ClassifierSettings(MethodSettings):
    """What every method with a classifier has."""

    feature_lr: Annotated[float, Range(0)] = 2.5e-3
    """Rate of the features [Gaussian Grouping]."""
    head_lr: Annotated[float, Range(0)] = 5e-4
    """Rate of the classifier [Gaussian Grouping]."""


@dataclass(frozen=True, kw_only=True)
class KnownClassesSettings(ClassifierSettings):
    """What every method has whose classes are known before the lift."""

    weight_knn: Annotated[float, Range(0)] = 2.0
    """Weight of the term that makes neighbouring Gaussians agree; 0 = without [Gaussian Grouping]."""
    knn_interval: Annotated[int, Range(1)] = 5
    """Steps from one such term to the next [Gaussian Grouping]."""
    knn_neighbours: Annotated[int, Range(1)] = 5
    """Nearest Gaussians that an anchor is compared with, itself the first [Gaussian Grouping]."""
    knn_anchors: Annotated[int, Range(1)] = 1_000
    """Gaussians compared with their neighbours at a time [Gaussian Grouping]."""


class IdentityClassifier(Method):
    """A linear head on rendered features, which `prepare` starts at the earliest: until then nothing is known."""

    settings: ClassifierSettings
    object_tables = ("weight", "bias")

    def __init__(self, settings: ClassifierSettings, *, zero_id: ZeroId, seed: int) -> None:
        super().__init__(settings, zero_id=zero_id, seed=seed)
        self.weight, self.bias = nn.Parameter(torch.zeros(0, settings.feature_dim)), nn.Parameter(torch.zeros(0))

    def initial_features(self, count: int) -> Tensor:
        """Return start features, uniform in +-1.772 [Gaussian Grouping]."""
        return random_features(count, self.feature_dim, unit=False, generator=self.generator)

    def rates(self, progress: float) -> dict[str, float]:
        return {"features": self.settings.feature_lr} | dict.fromkeys(self.object_tables, self.settings.head_lr)

    def start_head(self, num_classes: int) -> None:
        """Draw the head as a 1x1 convolution of torch begins; one that a checkpoint has brought stays if it fits."""
        if self.num_objects == 0:
            for name, shape in (("weight", (num_classes, self.feature_dim)), ("bias", (num_classes,))):
                drawn = torch.rand(*shape, generator=self.generator)
                self._set_tensor(name, (drawn * 2 - 1) * self.feature_dim**-0.5)
        if self.num_objects != num_classes:
            raise UserError(
                f"--resume: the checkpoint knows {self.num_objects} classes, the masks have {num_classes}; "
                "give the masks it was trained with, or start a new -m folder"
            )

    def logits(self, features: Tensor) -> Tensor:
        return linear(features, self.weight, self.bias)

    def object_state(self) -> dict[str, Tensor]:
        """Return the head as Gaussian Grouping saves it, as a 1x1 convolution: weight [L, D, 1, 1] and bias [L]."""
        return {"weight": self.weight.detach()[:, :, None, None], "bias": self.bias.detach()}

    def load_object_state(self, state: Mapping[str, Tensor]) -> None:
        """Take what `object_state` returned, or Gaussian Grouping's classifier.pth."""
        super().load_object_state({"weight": state["weight"].flatten(1), "bias": state["bias"]})


class KnownClasses(IdentityClassifier):
    """A classifier trained by classes that are known before the lift, as Gaussian Grouping trains its own."""

    settings: KnownClassesSettings
    classes: list[Tensor]  # of each segment of each view, -1 = none, int64 [S] each; made by `prepare`
    neighbours: Tensor  # nearest Gaussians of each, [N, K]; made by `prepare` if they are asked for

    @abstractmethod
    def segment_classes(self, data: LiftData) -> tuple[list[Tensor], int]:
        """Return the class of every segment and the number of classes L, which follow from data and settings alone.

        For each view of `data.views`, in its order, int64 [S] in [0, L); -1 = its pixels train nothing.
        """

    def prepare(self, data: LiftData) -> None:
        """Ask for the classes and draw the head; a UserError where no segment has a class, or as `start_head`."""
        of_view, num_classes = self.segment_classes(data)
        if not any(bool((classes >= 0).any()) for classes in of_view):
            raise UserError("--object_path: no pixel of any mask has a label; check the masks, or --zero_id segment")
        device = data.means.device
        self.classes = [classes.to(device) for classes in of_view]
        if self.settings.weight_knn:
            self.neighbours = nearest_points(data.means, self.settings.knn_neighbours).to(device)
        self.start_head(num_classes)

    def losses(self, pixels: ViewPixels, info: StepInfo) -> dict[str, Tensor]:
        """Return the identity term of the pixels whose segment has a class, and every few steps that of neighbours."""
        labels, s = pseudo_labels(self.classes[info.view], pixels.slot), self.settings
        terms = {"identity": identity_loss(self.logits(pixels.features), labels)}
        if s.weight_knn and (info.step + 1) % s.knn_interval == 0:
            generator = self.step_rng.at(info.step, pixels.features.device)
            head = (self.weight, self.bias)
            terms["knn"] = knn_loss(
                info.gaussian_features, self.neighbours, *head, num_anchors=s.knn_anchors, generator=generator
            )
        return terms
