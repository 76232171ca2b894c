"""ReDi whole: frozen `phi`, the recover network, the Feature Recovery Block, and the core that is exported."""

from __future__ import annotations

import math

from torch import Tensor, nn

from edge.manifest import CompareSpec, CoreSpec, InputSpec, MapSpec, ModelSpec
from train.backbones import RESNET18_SCALES, ResNet18
from train.redi.discriminate import FeatureRecoveryBlock, Features
from train.redi.recover import PromptFeatures, Recover

INPUT_NAMES = ("x", "h", "prompt_key", "prompt_value")
OUTPUT_NAMES = ("fx_0", "fx_1", "fx_2", "fy_0", "fy_1", "fy_2")


class ReDi(nn.Module):
    """The detector.  `forward` is the core of the design: what runs between *before* and *after*.

    Args:
        backbone: the folded extractor; frozen here.
        input_spec: size and normalisation of the images.
        map_spec: the self-generated map.
    """

    def __init__(self, backbone: ResNet18, input_spec: InputSpec, map_spec: MapSpec) -> None:
        super().__init__()
        self.input_spec, self.map_spec = input_spec, map_spec
        cells = (input_spec.height // map_spec.cell, input_spec.width // map_spec.cell)
        self.phi = backbone.eval().requires_grad_(False)
        self.recover = Recover(map_spec.orientations, map_spec.cell, cells)
        self.frb = FeatureRecoveryBlock((64, 128, 256))

    def train(self, mode: bool = True) -> ReDi:
        """Switch mode; `phi` stays frozen in evaluation mode."""
        super().train(mode)
        self.phi.eval()
        return self

    def forward(self, x: Tensor, h: Tensor, prompt_key: Tensor, prompt_value: Tensor) -> tuple[Tensor, ...]:
        """Return `F_X` then `F_Y`, three scales each, finest first."""
        y = self.recover(h, PromptFeatures(prompt_key, prompt_value))
        return (*self.phi(x), *self.frb(self.phi(y)))

    def recovered_features(self, h: Tensor, prompt: PromptFeatures) -> Features:
        """`R_Y = phi(Y)`: what the FRB is trained on."""
        features: Features = self.phi(self.recover(h, prompt))
        return features

    def spec(self, precision: str = "fp32") -> ModelSpec:
        """Describe this model for the bundle."""
        size = self.input_spec
        # Smoothing and top-k are stated for 256 x 256 and keep covering the same part of the image.
        side = math.sqrt(size.height * size.width) / 256
        scales = tuple((channels, size.height // stride, size.width // stride) for channels, stride in RESNET18_SCALES)
        return ModelSpec(
            method="redi",
            backbone="resnet18",
            input=self.input_spec,
            map=self.map_spec,
            compare=CompareSpec(scales=scales, sigma=4.0 * side, top_k=max(1, round(100 * side * side))),
            core=CoreSpec(precision=precision, uses_prompt=True, prompt_features=self.recover.prompt_shapes._asdict()),
        )
