"""ResNet-18, ResNet-50 and WideResNet-50-2 up to layer 3, with torchvision's parameter names.

He et al. 2016 and Zagoruyko and Komodakis 2016.  `phi` is always built with its batch norms folded into the
convolutions: it is frozen, so nothing is lost, and the exported graph is what was trained against.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import msgspec
import torch
from torch import Tensor, nn

from edge.manifest import InputSpec

M = TypeVar("M", bound=nn.Module)

#: `(channels, stride)` of the features after layer1, layer2 and layer3.
Scales = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

#: RGB 0-1, ImageNet mean and deviation: what torchvision's and timm's ResNets were trained on.
IMAGENET = InputSpec()

#: BGR minus the means of Caffe's ImageNet models, in the same unit range: `X * 255 * std` is their 0-255 input.
CAFFE = InputSpec(
    order="bgr",
    mean=(103.939 / 255, 116.779 / 255, 123.68 / 255),
    std=(IMAGENET.std[2], IMAGENET.std[1], IMAGENET.std[0]),
)


@dataclass(frozen=True)
class Architecture:
    """What tells one backbone from another.

    Attributes:
        title: name for people.
        blocks: residual blocks in layer1, layer2 and layer3.
        inner: channels inside layer1's blocks; doubles with every layer.
        bottleneck: 1x1, 3x3, 1x1 blocks with four times `64, 128, 256` channels; else two 3x3 convolutions.
        stride_first: a layer's stride sits on the first 1x1 convolution, as in Caffe, not on the 3x3.
        inputs: order and normalisation of the images; its size says nothing.
    """

    title: str
    blocks: tuple[int, int, int]
    inner: int = 64
    bottleneck: bool = True
    stride_first: bool = False
    inputs: InputSpec = IMAGENET

    @property
    def scales(self) -> Scales:
        """Channels and strides of the three features."""
        times = 4 if self.bottleneck else 1
        return ((64 * times, 4), (128 * times, 8), (256 * times, 16))


#: By the names that `--backbone` takes.
ARCHITECTURES = {
    "resnet18": Architecture("ResNet-18", (2, 2, 2), bottleneck=False),
    "resnet50": Architecture("ResNet-50", (3, 4, 6)),
    "wide_resnet50_2": Architecture("WideResNet-50-2", (3, 4, 6), inner=128),
    "resnet50_caffe": Architecture("Caffe-layout ResNet-50", (3, 4, 6), stride_first=True, inputs=CAFFE),
}

RESNET18_SCALES = ARCHITECTURES["resnet18"].scales


def _norm(channels: int, norm: bool) -> nn.Module:
    return nn.BatchNorm2d(channels) if norm else nn.Identity()


def _shortcut(inside: int, out: int, stride: int, norm: bool) -> nn.Module:
    if stride == 1 and inside == out:
        return nn.Identity()
    layers: list[nn.Module] = [nn.Conv2d(inside, out, 1, stride, bias=not norm)]
    if norm:
        layers.append(nn.BatchNorm2d(out))
    return nn.Sequential(*layers)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inside: int, out: int, stride: int, norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, out, 3, stride, 1, bias=not norm)
        self.bn1 = _norm(out, norm)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=not norm)
        self.bn2 = _norm(out, norm)
        self.downsample = _shortcut(inside, out, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, inside, h, w)` to `(N, out, h / stride, w / stride)`."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; `stride_first` is Caffe's place for the stride."""

    def __init__(self, inside: int, inner: int, out: int, stride: int, norm: bool, stride_first: bool) -> None:
        super().__init__()
        first, second = (stride, 1) if stride_first else (1, stride)
        self.conv1 = nn.Conv2d(inside, inner, 1, first, bias=not norm)
        self.bn1 = _norm(inner, norm)
        self.conv2 = nn.Conv2d(inner, inner, 3, second, 1, bias=not norm)
        self.bn2 = _norm(inner, norm)
        self.conv3 = nn.Conv2d(inner, out, 1, bias=not norm)
        self.bn3 = _norm(out, norm)
        self.downsample = _shortcut(inside, out, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, inside, h, w)` to `(N, out, h / stride, w / stride)`."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class Backbone(nn.Module):
    """One of `ARCHITECTURES` up to layer 3.

    Args:
        name: key of `ARCHITECTURES`.
        norm: keep batch norms, to be trained; False is the folded, frozen form used everywhere but in self-training.

    Attributes:
        name: as given.
        scales: `(channels, stride)` of each feature, finest first.
    """

    def __init__(self, name: str, norm: bool = False) -> None:
        super().__init__()
        self.name = name
        self._architecture = ARCHITECTURES[name]
        self.scales = self._architecture.scales
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=not norm)
        self.bn1 = _norm(64, norm)
        self.layer1 = self._layer(0, 64, 1, norm)
        self.layer2 = self._layer(1, self.scales[0][0], 2, norm)
        self.layer3 = self._layer(2, self.scales[1][0], 2, norm)
        # Images and recovered images stay in unit range; what Caffe's weights were trained on is made here.
        raw = self._architecture.inputs is CAFFE
        self.gain: Tensor | None
        self.register_buffer("gain", 255 * torch.tensor(CAFFE.std).view(1, 3, 1, 1) if raw else None, persistent=False)
        if not norm:
            freeze(self)

    def _layer(self, level: int, inside: int, stride: int, norm: bool) -> nn.Sequential:
        spec, out, inner = self._architecture, self.scales[level][0], self._architecture.inner << level
        blocks: list[nn.Module] = []
        for place in range(spec.blocks[level]):
            here, step = (inside, stride) if place == 0 else (out, 1)
            if spec.bottleneck:
                blocks.append(Bottleneck(here, inner, out, step, norm, spec.stride_first))
            else:
                blocks.append(BasicBlock(here, out, step, norm))
        return nn.Sequential(*blocks)

    @property
    def channels(self) -> tuple[int, int, int]:
        """Channels of each feature, finest first."""
        (fine, _), (middle, _), (coarse, _) = self.scales
        return fine, middle, coarse

    def input_spec(self, height: int, width: int) -> InputSpec:
        """Return how images of this size are to be prepared for this backbone."""
        return msgspec.structs.replace(self._architecture.inputs, height=height, width=width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map images `(N, 3, H, W)`, prepared as `input_spec` says, to features at strides 4, 8 and 16."""
        if self.gain is not None:
            x = x * self.gain
        x = torch.relu(self.bn1(self.conv1(x)))
        x = nn.functional.max_pool2d(x, 3, 2, 1)
        one = self.layer1(x)
        two = self.layer2(one)
        return one, two, self.layer3(two)


class ResNet18(Backbone):
    """The small backbone."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__("resnet18", norm)


def freeze(module: M) -> M:
    """Put `module` in evaluation mode and stop its gradients; returns it."""
    return module.eval().requires_grad_(False)
