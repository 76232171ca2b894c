"""A finished run, ready to score images with PyTorch: the reference that every exported form is held against."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from edge.errors import TrainingError
from edge.frames import F32, U8
from edge.inspection.native import Comparer
from edge.inspection.prompts import choose_prompt
from edge.manifest import ModelSpec
from train.backbones import stored_backbone
from train.config import TrainConfig
from train.detector import Bank, Detector
from train.evaluate import Scored, whole_frame
from train.methods import find_method
from train.prepared import Preparer
from train.runfolder import RunFolder


@dataclass
class TrainedModel:
    """The model, its prompt bank where it has one, and where they came from."""

    config: TrainConfig
    model: Detector
    bank: Bank | None
    digests: list[str]
    provenance: dict[str, str]

    @property
    def spec(self) -> ModelSpec:
        """The model's description for the bundle."""
        return self.spec_in("fp32")

    def spec_in(self, precision: str) -> ModelSpec:
        """The same for weights of another precision; see `CoreSpec`."""
        return msgspec.structs.replace(self.model.spec(precision), canvas=self.config.canvas)

    def scorer(self, core: nn.Module | None = None) -> TorchScorer:
        """Return a scorer around the model, or around `core`, another form of it with the same inputs and outputs."""
        return TorchScorer(core or self.model, self.spec, self.bank, self.model.describe)


def load_trained(folder: RunFolder) -> TrainedModel:
    """Load a finished run.

    Raises:
        TrainingError: it is not finished, or its files are damaged.
    """
    config = folder.config()
    saved, backbone = folder.load("model.pt"), folder.load("backbone.pth")
    if saved is None or backbone is None:
        raise TrainingError(f"{folder.path}: training has not finished", "run the same train-run command to resume it")
    phi, _ = stored_backbone(backbone, str(folder.path / "backbone.pth"))
    config = msgspec.structs.replace(config, input=phi.input_spec(config.input.height, config.input.width))
    try:
        model: Detector = find_method(config).build(config, phi)
        for name, module in model.learnt.items():
            module.load_state_dict(saved["modules"][name])
        bank = _bank(saved["bank"])
        digests = list(saved["digests"])
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        raise TrainingError(f"{folder.path / 'model.pt'}: damaged, {error}", "train again") from error
    model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return TrainedModel(config, model, bank, digests, dict(folder.read_json("run.json")["provenance"]))


def _bank(saved: dict[str, Any] | None) -> Bank | None:
    if saved is None:
        return None
    return Bank(dict(saved["features"]), saved["descriptors"].numpy(), list(saved["names"]))


class TorchScorer:
    """Scores images as the station does, with PyTorch in the place of the core's engine.

    `describe` gives what the prompt is chosen by; see `Detector.describe`.
    """

    def __init__(
        self, core: nn.Module, spec: ModelSpec, bank: Bank | None, describe: Callable[[Tensor, F32], F32]
    ) -> None:
        self._core, self._bank, self._describe = core, bank, describe
        self._uses_map, self._choice = spec.core.uses_map, spec.core.prompt_choice
        self._prepare = Preparer(spec.input, spec.map, spec.canvas)
        self._compare = Comparer(spec.compare, spec.input.height, spec.input.width, spec.canvas)
        height, width = self._compare.shape
        self._mask = np.zeros((height, width // 8), np.uint8)

    def features(self, image: U8, tile: int = 0) -> tuple[Tensor, ...]:
        """Return the core's outputs for a tile of one BGR image: `F_X` then `F_Y`, batch 1."""
        self._prepare(image, tile)
        inputs = [torch.from_numpy(self._prepare.x)[None].contiguous(memory_format=torch.channels_last)]
        if self._uses_map:
            inputs.append(torch.from_numpy(self._prepare.h)[None])
        if self._bank is not None:
            described = self._describe(inputs[0], self._prepare.descriptor)
            chosen = choose_prompt(described, self._bank.descriptors, self._choice)
            inputs += [entries[chosen][None] for entries in self._bank.features.values()]
        with torch.no_grad():
            outputs: tuple[Tensor, ...] = self._core(*inputs)
        return outputs

    def score(self, image: U8) -> Scored:
        """Score one BGR image of any size."""
        canvas, anomaly_map = self._prepare.canvas, np.zeros(self._compare.shape, np.float32)
        area = canvas.area(*image.shape[:2])
        last = canvas.spec.tiles - 1
        for tile in range(last):
            self._compare.add(tile, *self._sides(image, tile), anomaly_map)
        found = self._compare.finish(*self._sides(image, last), area, math.inf, anomaly_map, self._mask)
        return Scored(found.score, found.peak, whole_frame(anomaly_map, area))

    def _sides(self, image: U8, tile: int) -> tuple[list[F32], list[F32]]:
        features = [f.float().contiguous().numpy() for f in self.features(image, tile)]
        half = len(features) // 2
        return features[:half], features[half:]
