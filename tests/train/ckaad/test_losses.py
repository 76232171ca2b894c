"""The losses against a second reading of their formulas, in float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from train.ckaad.losses import discriminator_loss, energy_of, reconstruction_loss

F64 = NDArray[np.float64]

SHAPES = [(8, 6, 5), (16, 3, 2)]


def features(count: int, seed: int, spread: float = 1.0) -> list[torch.Tensor]:
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(spread * rng.normal(size=(count, *shape))).float() for shape in SHAPES]


def energies(count: int, seed: int) -> list[torch.Tensor]:
    """Per level, and of the image; about half are above the margin of 5."""
    rng = np.random.default_rng(seed)
    shapes: list[tuple[int, ...]] = [(count, 1, *shape[1:]) for shape in SHAPES]
    return [torch.from_numpy(rng.uniform(0, 10, shape)).float() for shape in [*shapes, (count, 1)]]


def wide(tensor: torch.Tensor) -> F64:
    return tensor.double().numpy()


def test_reconstruction_takes_each_level_of_an_image_as_one_vector() -> None:
    given, rebuilt = features(3, 0), features(3, 1)
    expected = 0.0
    for a, b in zip(map(wide, given), map(wide, rebuilt), strict=True):
        cosines = [float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum())) for x, y in zip(a, b, strict=True)]
        expected += 1 - float(np.mean(cosines))
    assert reconstruction_loss(given, rebuilt).item() == pytest.approx(expected, rel=1e-5)
    assert reconstruction_loss(given, given).item() == pytest.approx(0, abs=1e-6)
    assert reconstruction_loss(given, [3 * f for f in given]).item() == pytest.approx(0, abs=1e-6)


def test_the_discriminators_loss_is_the_published_sum() -> None:
    good, coarse, good_rebuilt, coarse_rebuilt = energies(4, 0), energies(2, 1), energies(4, 2), energies(2, 3)
    margin, gamma, expected = 5.0, 0.5, 0.0
    for level in range(3):
        generated = np.concatenate([wide(good_rebuilt[level]).ravel(), wide(coarse_rebuilt[level]).ravel()])
        expected += float(wide(good[level]).mean())
        expected += (1 - gamma) * float(np.maximum(margin - wide(coarse[level]), 0).mean())
        expected += gamma * float(np.maximum(margin - generated, 0).mean())
    assert discriminator_loss(good, coarse, good_rebuilt, coarse_rebuilt, (4, 2)).item() == pytest.approx(expected)


def test_the_energy_of_reconstructions_is_the_mean_over_both_kinds() -> None:
    good, coarse = energies(5, 0), energies(3, 1)
    together = [np.concatenate([wide(a).ravel(), wide(b).ravel()]) for a, b in zip(good, coarse, strict=True)]
    assert energy_of(good, coarse, (5, 3)).item() == pytest.approx(sum(float(level.mean()) for level in together))


def test_shares_of_the_good_images_add_up_to_all_of_them() -> None:
    """As two processes compute it: each has its share of the good images and all anomalies."""
    good, coarse = energies(6, 0), energies(2, 1)
    whole = energy_of(good, coarse, (6, 2))
    shares = [energy_of([level[part] for level in good], coarse, (6, 2)) for part in (slice(0, 2), slice(2, 6))]
    assert (shares[0] * 2 / 6 + shares[1] * 4 / 6).item() == pytest.approx(whole.item())
