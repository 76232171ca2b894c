"""A finished run, ready to score images with PyTorch: the reference that every exported form is held against."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from edge.errors import TrainingError
from edge.frames import F32, U8
from edge.inspection.native import Comparer, nearest
from edge.manifest import ModelSpec
from train.backbones import backbone_from_state
from train.config import TrainConfig
from train.evaluate import Scored
from train.prepared import Preparer
from train.redi.model import ReDi
from train.runfolder import RunFolder


@dataclass
class TrainedModel:
    """The model, its prompt bank and where they came from."""

    config: TrainConfig
    model: ReDi
    bank: dict[str, Tensor]
    descriptors: F32
    prompt_names: list[str]
    digests: list[str]
    provenance: dict[str, str]

    @property
    def spec(self) -> ModelSpec:
        """The model's description for the bundle."""
        return self.model.spec()

    def scorer(self, core: nn.Module | None = None) -> TorchScorer:
        """Return a scorer around the model, or around `core`, another form of it with the same inputs and outputs."""
        return TorchScorer(core or self.model, self.spec, self.bank, self.descriptors)


def load_trained(folder: RunFolder) -> TrainedModel:
    """Load a finished run.

    Raises:
        TrainingError: it is not finished, or its files are damaged.
    """
    config = folder.config()
    saved, backbone = folder.load("model.pt"), folder.load("backbone.pth")
    if saved is None or backbone is None:
        raise TrainingError(f"{folder.path}: training has not finished", "run the same train-run command to resume it")
    try:
        model = ReDi(backbone_from_state(backbone["state"], "backbone.pth"), config.input, config.map)
        model.recover.load_state_dict(saved["recover"])
        model.frb.load_state_dict(saved["frb"])
        bank = {"key": saved["prompt_key"], "value": saved["prompt_value"]}
        descriptors = saved["descriptors"].numpy()
        names, digests = list(saved["prompt_names"]), list(saved["digests"])
    except (KeyError, RuntimeError) as error:
        raise TrainingError(f"{folder.path / 'model.pt'}: damaged, {error}", "train again") from error
    model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return TrainedModel(
        config, model, bank, descriptors, names, digests, dict(folder.read_json("run.json")["provenance"])
    )


class TorchScorer:
    """Scores images as the station does, with PyTorch in the place of the core's engine."""

    def __init__(self, core: nn.Module, spec: ModelSpec, bank: dict[str, Tensor], descriptors: F32) -> None:
        self._core, self._bank, self._descriptors = core, bank, descriptors
        self._prepare = Preparer(spec.input, spec.map)
        self._compare = Comparer(spec.compare, spec.input.height, spec.input.width)
        self._mask = np.zeros((spec.input.height, spec.input.width // 8), np.uint8)
        self._shape = (spec.input.height, spec.input.width)

    def features(self, image: U8) -> tuple[Tensor, ...]:
        """Return the core's outputs for one BGR image: `F_X` then `F_Y`, batch 1."""
        self._prepare(image)
        chosen, _ = nearest(self._prepare.descriptor, self._descriptors)
        with torch.no_grad():
            outputs: tuple[Tensor, ...] = self._core(
                torch.from_numpy(self._prepare.x)[None].contiguous(memory_format=torch.channels_last),
                torch.from_numpy(self._prepare.h)[None],
                self._bank["key"][chosen][None],
                self._bank["value"][chosen][None],
            )
        return outputs

    def score(self, image: U8) -> Scored:
        """Score one BGR image of any size."""
        features = [f.float().contiguous().numpy() for f in self.features(image)]
        half = len(features) // 2
        anomaly_map = np.zeros(self._shape, np.float32)
        result = self._compare(features[:half], features[half:], float("inf"), anomaly_map, self._mask)
        return Scored(result.score, result.peak, anomaly_map)
