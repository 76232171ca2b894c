"""CKAAD's losses, as in its published code."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

#: The energy `m` that the discriminators push anomalies and reconstructions up to.
MARGIN = 5.0

#: The share `gamma` of reconstructions in what the discriminators push up; the rest are real anomalies.
GAMMA = 0.5

#: The weight `lambda` of the energy of reconstructions in the auto-encoder's loss.
ENERGY_WEIGHT = 0.02


def reconstruction_loss(features: Sequence[Tensor], rebuilt: Sequence[Tensor]) -> Tensor:
    """`sum_l mean_b (1 - cos(vec F^l, vec AE(F)^l))`: each image's whole level is one vector."""
    terms = [
        (1 - F.cosine_similarity(x.float().flatten(1), y.float().flatten(1), dim=1)).mean()
        for x, y in zip(features, rebuilt, strict=True)
    ]
    return torch.stack(terms).sum()


def energy_of(good: Sequence[Tensor], coarse: Sequence[Tensor], counts: tuple[int, int]) -> Tensor:
    """`sum_l mean D(G)^l`, from energies of the two parts of `G`, and of how many images either stands for.

    The parts are weighted by `counts`, not by their own sizes, as each of several processes holds but a share of one.
    """
    parts = zip(_means(good), _means(coarse), strict=True)
    return torch.stack([_mixed(a, b, counts) for a, b in parts]).sum()


def discriminator_loss(
    good: Sequence[Tensor],
    coarse: Sequence[Tensor],
    good_rebuilt: Sequence[Tensor],
    coarse_rebuilt: Sequence[Tensor],
    counts: tuple[int, int],
) -> Tensor:
    """`L_D = sum_l mean D(F+) + (1 - gamma) mean [m - D(F-)]_+ + gamma mean [m - D(G)]_+`.

    All arguments are energies per level; `G` is both kinds of reconstructions, see `energy_of`.
    """
    low = torch.stack(_means(good)).sum()
    high = torch.stack(_means(_short(coarse))).sum()
    rebuilt = energy_of(_short(good_rebuilt), _short(coarse_rebuilt), counts)
    return low + (1 - GAMMA) * high + GAMMA * rebuilt


def _short(energies: Sequence[Tensor]) -> list[Tensor]:
    return [torch.relu(MARGIN - energy) for energy in energies]


def _means(energies: Sequence[Tensor]) -> list[Tensor]:
    return [energy.mean() for energy in energies]


def _mixed(good: Tensor, coarse: Tensor, counts: tuple[int, int]) -> Tensor:
    return (counts[0] * good + counts[1] * coarse) / sum(counts)
