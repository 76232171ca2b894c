"""Batch norms with values that a wrong folding would show."""

from __future__ import annotations

from typing import Any

from torch import nn


def randomise(model: nn.Module) -> None:
    """Give the batch norms values that folding must get right."""
    norms: list[Any] = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.running_mean.uniform_(-0.5, 0.5)
        norm.running_var.uniform_(0.5, 2.0)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
