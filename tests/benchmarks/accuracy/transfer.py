"""Weights with folded batch norms, written into a network that has batch norms: they become the identity plus a bias.

Needs torch alone: it runs in the peers' environment, which holds nothing of the product.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

#: The largest difference between two networks' features, relative to the largest feature, that rounding explains.
TOLERANCE = 1e-4


def norm_after(conv: str) -> str:
    """Return the name of the batch norm that follows a convolution in torchvision's and timm's ResNets."""
    if conv.endswith("downsample.0"):
        return f"{conv[:-1]}1"
    head, _, number = conv.rpartition("conv")
    return f"{head}bn{number}"


def identity_norm_state(folded: Mapping[str, Tensor], epsilon: float = 1e-5) -> dict[str, Tensor]:
    """Return the state with batch norms that computes just what the `folded` one (`*.weight` and `*.bias`) does.

    With mean 0, variance 1 and `gamma = sqrt(1 + epsilon)` a batch norm only adds `beta`, the folded bias.
    """
    state: dict[str, Tensor] = {}
    for name, weight in folded.items():
        if not name.endswith(".weight"):
            continue
        conv = name.removesuffix(".weight")
        bias, norm = folded[f"{conv}.bias"].float(), norm_after(conv)
        state[name] = weight.float()
        state[f"{norm}.weight"] = torch.full_like(bias, math.sqrt(1.0 + epsilon))
        state[f"{norm}.bias"] = bias
        state[f"{norm}.running_mean"] = torch.zeros_like(bias)
        state[f"{norm}.running_var"] = torch.ones_like(bias)
    return state


def load_folded(network: nn.Module, folded: Mapping[str, Tensor]) -> None:
    """Write `folded` weights into a ResNet with batch norms, all that it has up to its last layer.

    Raises:
        ValueError: a weight of the network is not in `folded`, or is of another shape.
    """
    epsilons = {module.eps for module in network.modules() if isinstance(module, nn.BatchNorm2d)}
    if len(epsilons) != 1:
        raise ValueError(f"batch norms with epsilons {sorted(epsilons)}: one was expected")
    offered = identity_norm_state(folded, epsilons.pop())
    wanted = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    missing = sorted(wanted.keys() - offered.keys())
    if missing:
        raise ValueError(f"the weights have no {missing[0]}: another backbone's")
    for name, value in wanted.items():
        if offered[name].shape != value.shape:
            raise ValueError(f"{name} is {tuple(offered[name].shape)}, the network wants {tuple(value.shape)}")
    network.load_state_dict({name: offered[name] for name in wanted}, strict=False)


def largest_difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest absolute difference of any level, relative to that level's largest feature.

    Raises:
        ValueError: the shapes differ.
    """
    worst = 0.0
    for ours, theirs in zip(expected, found, strict=True):
        if ours.shape != theirs.shape:
            raise ValueError(f"features of shape {tuple(theirs.shape)}, expected {tuple(ours.shape)}")
        worst = max(worst, float((ours - theirs).abs().max() / ours.abs().max()))
    return worst
