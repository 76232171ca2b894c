"""ReDi whole: frozen `phi`, the recover network, the Feature Recovery Block, and the core that is exported."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edge.frames import F32
from edge.manifest import CoreSpec, InputSpec, MapSpec, ModelSpec
from train.backbones import Backbone
from train.detector import Detector, compare_spec
from train.redi.discriminate import FeatureRecoveryBlock, Features
from train.redi.maps import make_map, map_channels
from train.redi.recover import PromptFeatures, Recover
from train.redi.statistics import FeatureStatistics

#: What a station does for each way to choose: of a fixed prompt's bank of one, the only entry is the nearest.
_CHOICES = {"nearest-hog": "nearest", "fixed": "nearest", "none": "nearest"}


class ReDi(Detector):
    """The detector.  `forward` is the core of the design: what runs between *before* and *after*.

    Args:
        backbone: the folded extractor; frozen here.
        input_spec: size and normalisation of the images.
        map_spec: the self-generated map.
        prompt: how prompts are chosen, one of `train.config.PROMPTS`; `none`: recover from the map alone.
        frb: False compares with the features of the recovered image as they are, `F_Y = R_Y`.
        density_weight: how much rare features count; 0: not at all.
        expected: False takes angles as they are, wherever recovery usually does badly.
        level: False takes angles and rare features as they are, however rough the whole part is.
        memory: how many typical features of good parts places are compared with.
        marked: True looks for what marked images have, too, `train.redi.evidence`.
        drawn: True looks for what drawn defects have, too, `train.redi.drawn`.
    """

    def __init__(
        self,
        backbone: Backbone,
        input_spec: InputSpec,
        map_spec: MapSpec,
        *,
        prompt: str = "nearest-hog",
        frb: bool = True,
        density_weight: float = 1.0,
        expected: bool = True,
        level: bool = True,
        memory: int = 0,
        marked: bool = False,
        drawn: bool = False,
    ) -> None:
        super().__init__()
        self.input_spec, self.map_spec, self.prompt = input_spec, map_spec, prompt
        cells = (input_spec.height // map_spec.cell, input_spec.width // map_spec.cell)
        self.phi = backbone.eval().requires_grad_(False)
        self.map = make_map(input_spec, map_spec)
        self.recover = Recover(map_channels(map_spec), map_spec.cell, cells, prompted=prompt != "none")
        self.frb = FeatureRecoveryBlock(backbone.channels) if frb else nn.Identity()
        scales = compare_spec(input_spec, backbone.scales).scales
        self.statistics = FeatureStatistics(scales, density_weight, expected, marked, level, memory, drawn)

    @property
    def learnt(self) -> dict[str, nn.Module]:
        """The networks of both stages, and the statistics that are taken after them."""
        return {"recover": self.recover, "frb": self.frb, "statistics": self.statistics}

    def forward(self, x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """Return what is compared, `F_X` then `F_Y` at three scales each, finest first; see `train.redi.statistics`.

        `others` are HOG where it is the map, then `prompt_key` and `prompt_value` where there is a prompt.
        """
        h, prompt = (others[0], others[1:]) if self.map is None else (self.map(x), others)
        y = self.recover(h, PromptFeatures(*prompt) if prompt else None)
        # One pass over both: runtimes do not fuse biases that two passes share.
        both = [scale.chunk(2) for scale in self.phi(torch.cat([x, y]))]
        reference, recovered = zip(*both, strict=True)
        features: tuple[Tensor, ...] = self.statistics(reference, self.frb(recovered))
        return features

    def recovered_features(self, h: Tensor, prompt: PromptFeatures) -> Features:
        """`R_Y = phi(Y)`: what the FRB is trained on."""
        features: Features = self.phi(self.recover(h, prompt))
        return features

    def describe(self, x: Tensor, descriptor: F32) -> F32:
        """Return what the prompt is chosen by: HOG's descriptor, or that of layer 3 of `phi`."""
        if self.prompt != "nearest-features":
            return descriptor
        features: F32 = self.feature_descriptors(x)[0]
        return features

    @torch.no_grad()
    def feature_descriptors(self, x: Tensor) -> F32:
        """Return `phi`'s coarsest features, averaged over each image, as unit vectors `(N, C)`."""
        features: Features = self.phi(x)
        means: F32 = F.normalize(features[-1].float().mean((2, 3)), dim=1).cpu().numpy()
        return means

    def spec(self, precision: str = "fp32") -> ModelSpec:
        """Describe this model for the bundle."""
        scales = [(self.statistics.channels(channels), stride) for channels, stride in self.phi.scales]
        return ModelSpec(
            method="redi",
            backbone=self.phi.name,
            input=self.input_spec,
            map=self.map_spec,
            compare=compare_spec(self.input_spec, scales),
            core=CoreSpec(
                precision=precision,
                uses_map=self.map is None,
                uses_prompt=self.recover.prompted,
                prompt_choice=_CHOICES.get(self.prompt, self.prompt),
                prompt_features=self.recover.prompt_shapes._asdict() if self.recover.prompted else {},
            ),
        )
