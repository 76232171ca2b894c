"""What each update moves, and what it leaves alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edge.manifest import InputSpec, MapSpec
from train.backbones import Backbone
from train.ckaad.model import Ckaad
from train.ckaad.phase import AdversarialPhase, ReconstructPhase
from train.prepared import PreparedImages
from train.trainer import Phase

ROWS = np.arange(4)


def images(count: int, seed: int) -> PreparedImages:
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(size=(count, 3, 64, 64))).half()
    names = [f"{number}.png" for number in range(count)]
    return PreparedImages(x, torch.zeros(count, 9, 8, 8), np.ones((count, 9), np.float32), names, names)


def model() -> Ckaad:
    """Of two layers: a quarter of the weights that three have."""
    torch.manual_seed(0)
    return Ckaad(Backbone("resnet18"), InputSpec(height=64, width=64), MapSpec(), (1, 2), "ckaad")


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(before: dict[str, Tensor], module: nn.Module) -> bool:
    return all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def take(phase: Phase, steps: int = 1, only: int | None = None) -> list[list[float]]:
    """Take steps as the trainer does, or of each step only the first `only` updates."""
    updates = phase.updates(1e-3)
    optimisers = [torch.optim.Adam(update.module.parameters(), update.peak, betas=(0.5, 0.999)) for update in updates]
    losses: list[list[float]] = []
    for step in range(steps):
        rng = np.random.default_rng(step)
        losses.append([])
        for update, optimiser in list(zip(updates, optimisers, strict=True))[:only]:
            loss = update.loss(ROWS, rng)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses[-1].append(loss.item())
    return losses


@pytest.mark.parametrize("coarse", [None, images(3, 1)], ids=["bent", "coarse"])
def test_discriminators_move_first_and_alone_then_the_auto_encoder(coarse: PreparedImages | None) -> None:
    detector = model()
    phase = AdversarialPhase(detector, images(5, 0), coarse)
    judges, phi, coder = state(phase.discriminators), state(detector.phi), state(detector.autoencoder)
    take(phase, only=1)
    assert not same(judges, phase.discriminators)
    assert same(coder, detector.autoencoder)
    assert all(p.grad is None for p in detector.autoencoder.parameters())

    judges = state(phase.discriminators)
    update = phase.updates(1e-3)[1]
    phase.discriminators.zero_grad(set_to_none=True)
    update.loss(ROWS, np.random.default_rng(0)).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for p in phase.discriminators.parameters()), "the energy passes through, no further"
    assert all(p.requires_grad for p in phase.discriminators.parameters())
    torch.optim.Adam(update.module.parameters(), 1e-3).step()
    assert not same(coder, detector.autoencoder)
    assert same(judges, phase.discriminators)
    assert same(phi, detector.phi)


def test_the_energy_reaches_the_auto_encoder() -> None:
    weights = []
    for weight in (0.0, 1.0):
        detector = model()
        torch.manual_seed(1)
        take(AdversarialPhase(detector, images(5, 0), images(3, 1), weight))
        weights.append(state(detector.autoencoder))
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_without_energy_ckaad_is_plain_reconstruction() -> None:
    adversarial, plain = model(), model()
    taken = take(AdversarialPhase(adversarial, images(5, 0), None, weight=0.0), steps=3)
    losses = take(ReconstructPhase(plain, images(5, 0)), steps=3)
    assert [pair[-1] for pair in taken] == pytest.approx([value for (value,) in losses], rel=1e-5)
    for name, value in plain.autoencoder.state_dict().items():
        torch.testing.assert_close(value, adversarial.autoencoder.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_discriminators_learn_to_tell_coarse_anomalies_from_good_features() -> None:
    detector = model()
    good, coarse = images(5, 0), images(4, 1)
    coarse.x += 2 * torch.sin(torch.arange(64) / 2).half()
    phase = AdversarialPhase(detector, good, coarse)
    first, *_, last = take(phase, steps=8, only=1)
    assert last[0] < first[0]
    with torch.no_grad():
        low, high = (phase.discriminators(detector.extract(part.images(np.arange(4)))) for part in (good, coarse))
    assert all(above.mean() > below.mean() for above, below in zip(high, low, strict=True))


def test_caching_changes_nothing_that_matters() -> None:
    phases = [ReconstructPhase(model(), images(5, 0)) for _ in range(2)]
    phases[0].cache.fill(2)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        values = [phase.loss(ROWS, rng).item() for phase in phases]
    assert values[0] == pytest.approx(values[1], rel=1e-3)
