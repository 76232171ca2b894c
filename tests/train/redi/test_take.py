"""What is drawn onto good images, as the classifier of drawn defects gets it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edge.cli import progress
from edge.frames import F32
from edge.manifest import InputSpec, MapSpec
from train.backbones import ResNet18
from train.datasets import Sample
from train.prepared import PreparedImages, prepare
from train.pseudo import PseudoAnomalies
from train.redi.drawn import Shown
from train.redi.memory import joined, vectors
from train.redi.model import ReDi
from train.redi.take import KEPT, _drawn

SIZE = InputSpec(height=64, width=64)


@pytest.fixture(scope="module")
def images(tiny_photos: Path) -> PreparedImages:
    samples = [Sample(path, 0, "good") for path in sorted(tiny_photos.glob("*.png"))]
    return prepare(samples, SIZE, MapSpec(), torch.device("cpu"))


@pytest.fixture(scope="module")
def model() -> ReDi:
    torch.manual_seed(0)
    return ReDi(ResNet18(), SIZE, MapSpec(), drawn=True).eval()


@torch.no_grad()
def drawn(model: ReDi, images: PreparedImages, count: int, seed: int = 0) -> tuple[Shown, Shown]:
    with progress() as bar:
        return _drawn(model, images, count, seed, bar)


def test_places_are_of_all_images_and_not_too_many_of_each(model: ReDi, images: PreparedImages) -> None:
    for shown in drawn(model, images, 30):
        assert shown.places.shape[1] == 64 + 128 + 256
        assert len(shown.places) == len(shown.images)
        assert shown.places.isfinite().all()
        assert set(shown.images.tolist()) == set(range(10))
        assert shown.images.bincount().max() <= 3 * KEPT


def test_a_defect_is_where_it_was_drawn_and_its_neighbourhood_is_neither(
    model: ReDi, images: PreparedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every defect is the same square, so the places that are kept are known."""

    def square(_: PseudoAnomalies, x: F32, __: np.random.Generator) -> np.ndarray:
        x[:, 16:24, 32:48] = 3
        visible = np.zeros(x.shape[1:], bool)
        visible[16:24, 32:48] = True
        return visible

    monkeypatch.setattr(PseudoAnomalies, "draw", square)
    defects, beside = drawn(model, images, 10)
    x = images.x.float().numpy()
    x[:, :, 16:24, 32:48] = 3
    with torch.no_grad():
        e = joined(model.phi(torch.from_numpy(x)), model.statistics.grid)
    # Of 8 x 8 places these two are covered, and two more around them lie too near to be good.
    wanted = vectors(e[:, :, 2:3, 4:6]).half()
    assert defects.images.tolist() == [image for image in range(10) for _ in range(2)]
    found = defects.places.view(10, 2, -1)
    assert all(_same(one, other) for one, other in zip(found, wanted, strict=True))
    far = torch.ones(8, 8, dtype=torch.bool)
    far[0:5, 2:8] = False
    assert beside.images.bincount().tolist() == [int(far.sum())] * 10
    assert all(
        _same(one, other)
        for one, other in zip(
            beside.places.view(10, int(far.sum()), -1), vectors(e)[:, far.flatten()].half(), strict=True
        )
    )


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two sets of rows are the same but for their order, rounding aside."""
    return bool((torch.cdist(one.float(), other.float()).min(1).values < 1e-2).all()) and len(one) == len(other)


def test_the_same_seed_draws_the_same(model: ReDi, images: PreparedImages) -> None:
    one, same, other = (drawn(model, images, 10, seed)[0].places for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert one.shape != other.shape or not torch.equal(one, other)


def test_few_are_drawn_of_images_that_are_many(model: ReDi, images: PreparedImages) -> None:
    defects, beside = drawn(model, images, 1)
    assert len(set(defects.images.tolist()) | set(beside.images.tolist())) == 2
