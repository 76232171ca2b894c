from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from edge.manifest import InputSpec, MapSpec
from train.backbones import ResNet18, freeze
from train.redi.model import ReDi
from train.redi.recover import PromptFeatures, Recover


def make(**switches: Any) -> ReDi:
    torch.manual_seed(0)
    backbone = ResNet18()
    freeze(backbone)
    return ReDi(backbone, InputSpec(height=64, width=96), MapSpec(), **switches).eval()


@pytest.fixture(scope="module")
def model() -> ReDi:
    return make()


@pytest.fixture(scope="module")
def plain() -> ReDi:
    """The features themselves come out."""
    return make(density_weight=0, expected=False, level=False)


def inputs(batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 3, 64, 96), torch.rand(batch, 9, 8, 12)


@pytest.mark.parametrize("name", ["model", "plain"])
def test_outputs_have_the_shapes_that_the_spec_states(name: str, request: pytest.FixtureRequest) -> None:
    model: ReDi = request.getfixturevalue(name)
    spec = model.spec()
    x, h = inputs()
    with torch.no_grad():
        prompt = model.recover.prompt(*inputs())
        outputs = model(x, h, *prompt)
    assert [tuple(o.shape[1:]) for o in outputs] == [*spec.compare.scales, *spec.compare.scales]
    assert {n: tuple(p.shape[1:]) for n, p in zip(PromptFeatures._fields, prompt, strict=True)} == dict(
        spec.core.prompt_features
    )


def test_recovery_never_sees_the_test_image(plain: ReDi) -> None:
    assert list(inspect.signature(Recover.forward).parameters) == ["self", "h", "prompt"]
    with torch.no_grad():
        prompt = plain.recover.prompt(*inputs())
        h = inputs()[1]
        one = plain(torch.randn(1, 3, 64, 96), h, *prompt)
        two = plain(torch.randn(1, 3, 64, 96), h, *prompt)
    for a, b in zip(one[3:], two[3:], strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one[0], two[0])


def test_features_are_those_of_two_passes(plain: ReDi) -> None:
    x, h = inputs(2)
    with torch.no_grad():
        prompt = plain.recover.prompt(*inputs(2))
        found = plain(x, h, *prompt)
        apart = (*plain.phi(x), *plain.frb(plain.recovered_features(h, prompt)))
    for a, b in zip(found, apart, strict=True):
        torch.testing.assert_close(a, b)


def test_the_prompt_and_the_map_both_reach_the_recovered_image(model: ReDi) -> None:
    with torch.no_grad():
        first, second = model.recover.prompt(*inputs()), model.recover.prompt(*inputs())
        h, other = inputs()[1], inputs()[1]
        base = model.recover(h, first)
        assert base.shape == (1, 3, 64, 96)
        assert not torch.allclose(base, model.recover(h, second))
        assert not torch.allclose(base, model.recover(other, first))


def test_phi_stays_frozen_in_training_mode(model: ReDi) -> None:
    model.train()
    try:
        assert not model.phi.training
        assert not any(p.requires_grad for p in model.phi.parameters())
        assert model.frb.training
    finally:
        model.eval()


def test_gradients_of_each_stage_reach_only_its_own_network(model: ReDi) -> None:
    x, h = inputs(2)
    recovered = model.recover(h, model.recover.prompt(*inputs(2)))
    (recovered - x).square().mean().backward()
    assert all(p.grad is not None for p in model.recover.parameters())
    assert all(p.grad is None for p in model.frb.parameters())
    model.zero_grad(set_to_none=True)
