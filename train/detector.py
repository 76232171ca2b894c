"""What every method gives: a detector, and where it prompts its network, a prompt bank."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from torch import Tensor, nn

from edge.frames import F32
from edge.manifest import CompareSpec, InputSpec, ModelSpec
from edge.validation import map_shape
from train.backbones import Backbone
from train.config import TrainConfig

if TYPE_CHECKING:
    from train.prepared import PreparedImages
    from train.trainer import Trainer


class Detector(nn.Module, ABC):
    """The frozen extractor `phi` and a trained network that says what `phi` would see on a good part.

    `forward` is the core, what runs between *before* and *after*: from the inputs that `input_shapes` names, batch
    first, it gives `F_X` at every scale of the comparison, finest first, then `F_Y` likewise.
    """

    phi: Backbone

    @abstractmethod
    def spec(self, precision: str = "fp32") -> ModelSpec:
        """Describe this model for the bundle."""

    def describe(self, x: Tensor, descriptor: F32) -> F32:
        """Return what an image's prompt is chosen by, given `X` `(1, 3, H, W)` and its descriptor from *before*."""
        return descriptor

    @property
    @abstractmethod
    def learnt(self) -> dict[str, nn.Module]:
        """What training changes and a run folder keeps, by name."""

    def train(self, mode: bool = True) -> Detector:
        """Switch mode; `phi` stays frozen in evaluation mode."""
        super().train(mode)
        self.phi.eval()
        return self


@dataclass(frozen=True)
class Bank:
    """The prompt bank: `features` by name `(K, *shape)`, `descriptors` float32 `(K, D)`, and the files' `names`."""

    features: dict[str, Tensor]
    descriptors: F32
    names: list[str]


D = TypeVar("D", bound=Detector)


@dataclass(frozen=True)
class Method(Generic[D]):
    """One way to train a detector.

    Attributes:
        build: makes the untrained detector around an extractor.
        fit: trains it on the good images, and on coarse anomalies where there are any; returns its bank, if it has one.
        epochs: passes over the images where a run states neither epochs nor minutes.
        batch: good images per step, unless a run says otherwise.
        learning_rate: peak of the schedule, unless a run says otherwise.
        self_epochs: epochs of `--weights self` for each epoch of the method.
        takes: settings that not every method knows.
    """

    build: Callable[[TrainConfig, Backbone], D]
    fit: Callable[[Trainer, D, PreparedImages, PreparedImages | None], Bank | None]
    epochs: int
    batch: int
    learning_rate: float
    self_epochs: float
    takes: tuple[str, ...] = ()


def input_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return the core's inputs in order, each with its shape without the batch: `x`, maybe `h`, maybe `prompt_*`."""
    size = spec.input
    shapes: dict[str, tuple[int, ...]] = {"x": (3, size.height, size.width)}
    if spec.core.uses_map:
        shapes["h"] = map_shape(spec)
    return shapes | {f"prompt_{name}": shape for name, shape in spec.core.prompt_features.items()}


def output_names(spec: ModelSpec) -> list[str]:
    """Return the core's outputs in order: `fx_0 …`, then `fy_0 …`."""
    return [f"{side}_{level}" for side in ("fx", "fy") for level in range(len(spec.compare.scales))]


def compare_spec(size: InputSpec, scales: Sequence[tuple[int, int]]) -> CompareSpec:
    """Return the comparison of features of these `(channels, stride)`, finest first, for images of this size."""
    # Smoothing and top-k are stated for 256 x 256 and keep covering the same part of the image.
    side = math.sqrt(size.height * size.width) / 256
    return CompareSpec(
        scales=tuple((channels, size.height // stride, size.width // stride) for channels, stride in scales),
        sigma=4.0 * side,
        top_k=max(1, round(100 * side * side)),
    )
