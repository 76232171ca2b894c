"""What the auto-encoder and the discriminators are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class InstanceNorm(nn.Module):
    """Instance norm with a learnt scale and shift per channel, in float32 whatever the precision around it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Shape `(N, C, H, W)` is kept; every image needs two positions or more."""
        return F.instance_norm(x.float(), weight=self.weight.float(), bias=self.bias.float()).to(x.dtype)


def conv_norm(inside: int, out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution and instance norm; `stride=-2` doubles the size by a transposed convolution."""
    if stride < 0:
        conv: nn.Module = nn.ConvTranspose2d(inside, out, -stride, -stride, bias=False)
    else:
        conv = nn.Conv2d(inside, out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, InstanceNorm(out))


class Residual(nn.Module):
    """ResNet's block with instance norms, of two 3x3 convolutions, or of 1x1, 3x3 and 1x1 where `inner` is given.

    Args:
        inside: channels in.
        out: channels out.
        stride: 1, 2, or -2, which doubles the size as reverse distillation's decoder does.
        inner: channels of the bottleneck; None: there is none.
    """

    def __init__(self, inside: int, out: int, stride: int = 1, inner: int | None = None) -> None:
        super().__init__()
        if inner is None:
            steps = [conv_norm(inside, out, 3, stride), conv_norm(out, out, 3)]
        else:
            steps = [conv_norm(inside, inner, 1), conv_norm(inner, inner, 3, stride), conv_norm(inner, out, 1)]
        self.steps = nn.ModuleList(steps)
        same = stride == 1 and inside == out
        self.shortcut = nn.Identity() if same else conv_norm(inside, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, inside, H, W)` to `(N, out, H / stride, W / stride)`."""
        y = x
        for step in self.steps[:-1]:
            y = torch.relu(step(y))
        return torch.relu(self.steps[-1](y) + self.shortcut(x))


def residual_stage(inside: int, out: int, stride: int, blocks: int, inner: int | None) -> nn.Sequential:
    """`blocks` residual blocks, of which the first changes channels and size."""
    rest = (Residual(out, out, 1, inner) for _ in range(blocks - 1))
    return nn.Sequential(Residual(inside, out, stride, inner), *rest)
