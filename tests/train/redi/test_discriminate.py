from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from train.backbones import Backbone
from train.config import BACKBONES
from train.redi.discriminate import FeatureRecoveryBlock


def operations(module: nn.Module, *inputs: object) -> tuple[int, tuple[torch.Tensor, ...]]:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        outputs = module(*inputs)
    return counter.get_total_flops(), outputs


@pytest.mark.parametrize("name", BACKBONES)
def test_the_frb_gives_back_the_features_shapes_for_less_than_half_a_pass(name: str) -> None:
    backbone = Backbone(name)
    frb = FeatureRecoveryBlock(backbone.channels).eval()
    extraction, features = operations(backbone, torch.zeros(1, 3, 64, 96))
    recovery, recovered = operations(frb, features)
    assert [f.shape for f in recovered] == [f.shape for f in features]
    assert 0.1 < recovery / extraction < 0.5
