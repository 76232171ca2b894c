"""CKAAD's energy discriminators: low energy where features are those of good parts.  They are not exported."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.ckaad.blocks import InstanceNorm

#: Slope of LeakyReLU below zero.
SLOPE = 0.1

#: The image discriminator halves the fused features until their shorter side is at most this, then takes the mean.
SMALLEST_SIDE = 4


class PatchDiscriminator(nn.Module):
    """An energy for every position of one level: 1x1 convolutions without bias on features of unit length."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(channels, 1, 1, bias=False),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return `|score|`, float32 `(N, 1, H, W)`, of features `(N, C, H, W)`."""
        energy: Tensor = self.body(F.normalize(features.float(), dim=1)).float().abs()
        return energy


class ImageDiscriminator(nn.Module):
    """One energy for the whole image: all levels brought to the coarsest, fused, brought down to one position.

    Args:
        scales: `(channels, stride)` of the levels, finest first.
        size: `(height, width)` of the images.
    """

    def __init__(self, scales: Sequence[tuple[int, int]], size: tuple[int, int]) -> None:
        super().__init__()
        last, stride = scales[-1]
        self.levels = nn.ModuleList(
            nn.Sequential(*(_halve(a[0], b[0]) for a, b in zip(scales[level:-1], scales[level + 1 :], strict=True)))
            for level in range(len(scales))
        )
        side = min(size) // stride // 2
        fuse = [_halve(last * len(scales), last)]
        while side > SMALLEST_SIDE:
            fuse.append(_halve(last, last))
            side //= 2
        self.fuse = nn.Sequential(*fuse)
        self.score = nn.Sequential(nn.Linear(last, last // 4), nn.Linear(last // 4, 1))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return `|score|`, float32 `(N, 1)`, of features `(N, C, H, W)`, finest first."""
        coarse = [halve(f) for halve, f in zip(self.levels, features, strict=True)]
        energy: Tensor = self.score(self.fuse(torch.cat(coarse, 1)).mean((2, 3))).float().abs()
        return energy


def _halve(inside: int, out: int) -> nn.Sequential:
    conv = nn.Conv2d(inside, out, 3, 2, 1, bias=False)
    return nn.Sequential(conv, InstanceNorm(out), nn.LeakyReLU(SLOPE))


class Discriminators(nn.Module):
    """A patch discriminator per level, and one of the image.

    Args:
        scales: `(channels, stride)` of the levels, finest first.
        size: `(height, width)` of the images.
    """

    def __init__(self, scales: Sequence[tuple[int, int]], size: tuple[int, int]) -> None:
        super().__init__()
        self.patches = nn.ModuleList(PatchDiscriminator(channels) for channels, _ in scales)
        self.image = ImageDiscriminator(scales, size)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the energies of features `(N, C, H, W)`: `(N, 1, H, W)` of every level, then the image's `(N, 1)`."""
        return [*(d(f) for d, f in zip(self.patches, features, strict=True)), self.image(features)]
