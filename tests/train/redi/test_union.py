from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edge.errors import TrainingError
from edge.manifest import InputSpec, MapSpec
from train.backbones import ResNet18
from train.config import TrainConfig
from train.datasets import Sample
from train.prepared import PreparedImages, prepare
from train.redi.bank import assign_prompts, k_centre
from train.redi.method import fit
from train.redi.model import ReDi
from train.redi.phases import DiscriminatePhase, encode_bank
from train.redi.union import UnionPhase, nearest_prompts

SIZE = InputSpec(height=64, width=64)


@pytest.fixture(scope="module")
def images(tiny_photos: Path) -> PreparedImages:
    samples = [Sample(path, 0, "good") for path in sorted(tiny_photos.glob("*.png"))]
    return prepare(samples, SIZE, MapSpec(), torch.device("cpu"))


@pytest.fixture
def model() -> ReDi:
    torch.manual_seed(0)
    return ReDi(ResNet18(), SIZE, MapSpec())


def phases(model: ReDi, images: PreparedImages, weight: float = 0.02) -> tuple[DiscriminatePhase, UnionPhase]:
    bank = k_centre(images.descriptors, 4)
    prompts = assign_prompts(images.descriptors, bank)
    coarse = PreparedImages(
        images.x[:3].flip(3), images.h[:3].flip(3), images.descriptors[:3], images.names[:3], images.digests[:3]
    )
    model.eval()
    encoded = encode_bank(model, images, bank)
    return DiscriminatePhase(model, images, encoded, prompts, 1.0), UnionPhase(
        model, images, encoded, prompts, 1.0, coarse, nearest_prompts(images, bank, coarse), weight
    )


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.named_parameters()}


def changed(before: dict[str, torch.Tensor], module: torch.nn.Module) -> bool:
    return any(not torch.equal(value, before[name]) for name, value in module.named_parameters())


def test_each_update_moves_its_own_networks_only(model: ReDi, images: PreparedImages) -> None:
    _, union = phases(model, images)
    rows, rng = np.arange(4), np.random.default_rng(0)
    networks = {"patches": union.patches, "frb": model.frb, "recover": model.recover, "phi": model.phi}
    for update, moved in zip(union.updates(1e-2), ("patches", "frb"), strict=True):
        before = {name: state(network) for name, network in networks.items()}
        optimiser = torch.optim.Adam(update.module.parameters(), update.peak)
        optimiser.zero_grad()
        update.loss(rows, rng).backward()
        assert all(parameter.grad is None for parameter in model.phi.parameters())
        optimiser.step()
        assert {name for name, network in networks.items() if changed(before[name], network)} == {moved}


def test_without_weight_the_frb_learns_what_it_learns_alone(model: ReDi, images: PreparedImages) -> None:
    alone, union = phases(model, images, weight=0.0)
    rows, rng = np.arange(4), np.random.default_rng(0)
    union.updates(1e-3)[0].loss(rows, rng)
    torch.testing.assert_close(union.loss(rows, rng), alone.loss(rows, rng))


def test_energy_adds_to_the_loss_of_the_frb(model: ReDi, images: PreparedImages) -> None:
    alone, union = phases(model, images, weight=1.0)
    rows, rng = np.arange(4), np.random.default_rng(0)
    union.updates(1e-3)[0].loss(rows, rng)
    assert union.loss(rows, rng).item() > alone.loss(rows, rng).item() + 1e-6


@pytest.mark.parametrize("other", [{"frb": False}, {"prompt": "random"}])
def test_coarse_marks_need_the_frb_and_nearest_prompts(
    other: dict[str, object], model: ReDi, images: PreparedImages
) -> None:
    class Bare:
        config = TrainConfig(data="x", **other)  # type: ignore[arg-type]

    with pytest.raises(TrainingError, match="coarse"):
        fit(Bare(), model, images, images)  # type: ignore[arg-type]
