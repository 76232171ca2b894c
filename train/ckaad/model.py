"""CKAAD's detector: frozen `phi` and an auto-encoder of its features.  Discriminators serve training alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from edge.manifest import CoreSpec, InputSpec, MapSpec, ModelSpec
from train.backbones import ARCHITECTURES, Backbone
from train.ckaad.blocks import conv_norm, residual_stage
from train.detector import Detector, compare_spec

#: Residual blocks of the encoder, as in reverse distillation.
ENCODER_BLOCKS = 3


class AutoEncoder(nn.Module):
    """Features of a good part in, the same features out, through a bottleneck at twice the coarsest stride.

    Reverse distillation's layout (Deng and Li 2022) with instance norms: 3x3 stride-2 convolutions bring every level to
    the coarsest one's size and channels, a residual stage halves that, and a decoder that mirrors the backbone grows it
    again.

    Args:
        backbone: name of the extractor.
        layers: which of its layers, 1 to 3, in a row.
    """

    def __init__(self, backbone: str, layers: Sequence[int]) -> None:
        super().__init__()
        net = ARCHITECTURES[backbone]
        channels = [net.scales[layer - 1][0] for layer in layers]
        last = channels[-1]

        def inner(out: int) -> int | None:
            return out * net.inner // net.scales[0][0] if net.bottleneck else None

        self.fuse = nn.ModuleList(_down(channels[level:]) for level in range(len(channels)))
        self.encode = residual_stage(last * len(channels), 2 * last, 2, ENCODER_BLOCKS, inner(2 * last))
        self.decode = nn.ModuleList(
            residual_stage(2 * out, out, -2, blocks, inner(out))
            # Deepest first, in numbers of blocks as the backbone has them from its first layer on.
            for out, blocks in zip(reversed(channels), net.blocks, strict=False)
        )

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Map features, finest first, to their reconstructions, the same shapes."""
        fused = [down(f) for down, f in zip(self.fuse, features, strict=True)]
        x = self.encode(torch.cat(fused, 1))
        outputs: list[Tensor] = []
        for stage in self.decode:
            x = stage(x)
            outputs.insert(0, x)
        return tuple(outputs)


def _down(channels: Sequence[int]) -> nn.Sequential:
    steps: list[nn.Module] = []
    for inside, out in pairwise(channels):
        steps += [conv_norm(inside, out, 3, 2), nn.ReLU(inplace=True)]
    return nn.Sequential(*steps)


class Ckaad(Detector):
    """The detector.  `forward` is the core: the image alone goes in, there is neither map nor prompt.

    Args:
        backbone: the folded extractor; frozen here.
        input_spec: size and normalisation of the images.
        map_spec: what *before* makes besides, unused here.
        layers: whose features are reconstructed, of 1, 2 and 3, in a row.
        method: its name in the bundle.
    """

    def __init__(
        self, backbone: Backbone, input_spec: InputSpec, map_spec: MapSpec, layers: Sequence[int], method: str
    ) -> None:
        super().__init__()
        self.input_spec, self.map_spec, self.layers, self.method = input_spec, map_spec, tuple(layers), method
        self.phi = backbone.eval().requires_grad_(False)
        self.autoencoder = AutoEncoder(backbone.name, layers)

    @property
    def learnt(self) -> dict[str, nn.Module]:
        """The auto-encoder."""
        return {"autoencoder": self.autoencoder}

    @property
    def scales(self) -> tuple[tuple[int, int], ...]:
        """Channels and strides of the layers in use, finest first."""
        return tuple(self.phi.scales[layer - 1] for layer in self.layers)

    def extract(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return `phi(x)` at the layers in use."""
        features = self.phi(x)
        return tuple(features[layer - 1] for layer in self.layers)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return `F_X`, then its reconstruction `F_Y`, finest first."""
        features = self.extract(x)
        return (*features, *self.autoencoder(features))

    def spec(self, precision: str = "fp32") -> ModelSpec:
        """Describe this model for the bundle."""
        return ModelSpec(
            method=self.method,
            backbone=self.phi.name,
            input=self.input_spec,
            map=self.map_spec,
            compare=compare_spec(self.input_spec, self.scales),
            core=CoreSpec(precision=precision, uses_map=False, uses_prompt=False),
        )
