"""The Feature Recovery Block (FRB): features of the recovered image in, features of the normal image out.

Multi-scale fusion, a one-class bottleneck and a residual decoder, in the layout of reverse distillation (RD4AD, Deng
and Li 2022), thinned so that it costs about two fifths of one pass over ResNet-18.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from train.redi.recover import Residual, Upsample, conv_norm

Features = tuple[Tensor, Tensor, Tensor]


class FeatureRecoveryBlock(nn.Module):
    """Recover normal features at three scales.

    Args:
        channels: channels of the three scales, finest first.
        width: channels of the bottleneck, at twice the coarsest stride.
    """

    def __init__(self, channels: tuple[int, int, int], width: int = 256) -> None:
        super().__init__()
        fine, middle, coarse = channels
        self.down1 = conv_norm(fine, 64, 3, 2)
        self.mix2 = conv_norm(64 + middle, 128, 1)
        self.down2 = conv_norm(128, 128, 3, 2)
        self.mix3 = conv_norm(128 + coarse, 128, 1)
        self.bottleneck = nn.Sequential(conv_norm(128, width, 3, 2), Residual(width))
        self.up3 = nn.Sequential(Upsample(width, 128), Residual(128))
        self.out3 = nn.Conv2d(128, coarse, 1)
        self.up2 = nn.Sequential(Upsample(128, 96), Residual(96))
        self.out2 = nn.Conv2d(96, middle, 1)
        self.up1 = nn.Sequential(Upsample(96, 48), Residual(48))
        self.out1 = nn.Conv2d(48, fine, 1)

    def forward(self, features: Features) -> Features:
        """Map features `R_Y` to `F_Y`, the same three shapes."""
        fine, middle, coarse = features
        x = self.mix2(torch.cat([self.down1(fine), middle], 1))
        x = self.mix3(torch.cat([self.down2(x), coarse], 1))
        three = self.up3(self.bottleneck(x))
        two = self.up2(three)
        one = self.up1(two)
        return self.out1(one), self.out2(two), self.out3(three)
