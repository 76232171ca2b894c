"""The losses `L_Rec`, `L_D` and `L_S`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def ssim(a: Tensor, b: Tensor, window: int = 8, data_range: float = 1.0) -> Tensor:
    """Mean structural similarity of images `(N, C, H, W)`, Wang et al. 2004, over uniform windows at half overlap.

    A uniform window on a stride is what a CPU can afford in a training loop; statistics and constants are the paper's.
    """

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, window, window // 2)

    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mu_a, mu_b = mean(a), mean(b)
    var_a = mean(a * a) - mu_a * mu_a
    var_b = mean(b * b) - mu_b * mu_b
    covariance = mean(a * b) - mu_a * mu_b
    luminance = (2 * mu_a * mu_b + c1) / (mu_a * mu_a + mu_b * mu_b + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return (luminance * structure).mean()


def recovery_loss(recovered: Tensor, image: Tensor) -> Tensor:
    """`L_Rec = MSE + (1 - SSIM)`, both on images of unit grey range `(N, 3, H, W)`."""
    # SSIM's differences of squares need float32.
    recovered, image = recovered.float(), image.float()
    return F.mse_loss(recovered, image) + 1 - ssim(recovered, image)


def alignment_loss(reference: Sequence[Tensor], recovered: Sequence[Tensor]) -> Tensor:
    """`L_D = sum_l mean_hw (1 - cos(F_X^l, F_Y^l))`, cosine over channels."""
    terms = [(1 - F.cosine_similarity(x, y.float(), dim=1)).mean() for x, y in zip(reference, recovered, strict=True)]
    return torch.stack(terms).sum()


def self_correlation(features: Tensor, side: int = 16) -> Tensor:
    """`S(F)_ij`: cosine between positions i and j, `(N, P, P)`, after pooling to at most `side` x `side` positions."""
    height, width = features.shape[2:]
    if max(height, width) > side:
        features = F.adaptive_avg_pool2d(features, (min(side, height), min(side, width)))
    unit = F.normalize(features.flatten(2), dim=1)
    return torch.bmm(unit.transpose(1, 2), unit)


def correlation_loss(reference: Sequence[Tensor], recovered: Sequence[Tensor], side: int = 16) -> Tensor:
    """`L_S = sum_l mean_ij |S(F_X^l) - S(F_Y^l)|`."""
    terms = [
        (self_correlation(x, side) - self_correlation(y, side)).abs().mean()
        for x, y in zip(reference, recovered, strict=True)
    ]
    return torch.stack(terms).sum()
