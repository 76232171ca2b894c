"""The Feature Recovery Block (FRB): features of the recovered image in, features of the normal image out.

Multi-scale fusion, a one-class bottleneck and a residual decoder, in the layout of reverse distillation (RD4AD, Deng
and Li 2022), thinned so that it costs about three tenths of one pass over ResNet-18, and four tenths of one over
ResNet-50.
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
        width: channels of the bottleneck, at twice the coarsest stride; half again as many where the coarsest scale has
            more than 256 channels.
    """

    def __init__(self, channels: tuple[int, int, int], width: int = 256) -> None:
        super().__init__()
        fine, middle, coarse = channels
        # Four times the channels span more than the thin trunk can carry; half again as thick is affordable there.
        thin, slim, mid = (72, 144, 192) if coarse > 256 else (48, 96, 128)
        width = width * mid // 128
        self.down1 = conv_norm(fine, mid // 2, 3, 2)
        self.mix2 = conv_norm(mid // 2 + middle, mid, 1)
        self.down2 = conv_norm(mid, mid, 3, 2)
        self.mix3 = conv_norm(mid + coarse, mid, 1)
        self.bottleneck = nn.Sequential(conv_norm(mid, width, 3, 2), Residual(width))
        self.up3 = nn.Sequential(Upsample(width, mid), Residual(mid))
        self.out3 = nn.Conv2d(mid, coarse, 1)
        self.up2 = nn.Sequential(Upsample(mid, slim), Residual(slim))
        self.out2 = nn.Conv2d(slim, middle, 1)
        self.up1 = Upsample(slim, thin)
        self.out1 = nn.Conv2d(thin, fine, 1)

    def forward(self, features: Features) -> Features:
        """Map features `R_Y` to `F_Y`, the same three shapes."""
        fine, middle, coarse = features
        x = self.mix2(torch.cat([self.down1(fine), middle], 1))
        x = self.mix3(torch.cat([self.down2(x), coarse], 1))
        three = self.up3(self.bottleneck(x))
        two = self.up2(three)
        one = self.up1(two)
        return self.out1(one), self.out2(two), self.out3(three)
