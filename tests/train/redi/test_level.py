"""The level of an image, against the definition in NumPy and float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from train.redi.level import SLOPES, SMALL, UNUSUAL, WORST, ImageLevel

F64 = NDArray[np.float64]


def images(rough: float, full: float = 0.0, count: int = 40, seed: int = 0) -> torch.Tensor:
    """Images of which some are rougher everywhere, or have more on them; the logarithm differs by up to this much."""
    rng = np.random.default_rng(seed)
    values = rng.lognormal(0.0, 0.5, (count, 1, 20, 20))
    values *= np.exp(rough * np.linspace(-1, 1, count))[:, None, None, None]
    # What is full has more places of the same kind, and its worst are no worse.
    for image, share in zip(values, np.linspace(0.1, 0.1 + 0.8 * full, count), strict=True):
        image[:, :, round(20 * share) :] *= 0.05 if full else 1.0
    return torch.from_numpy(values).float()


def fitted(given: torch.Tensor) -> ImageLevel:
    level = ImageLevel()
    level.fit([given[:7], given[7:]])
    return level


def levels_of(given: torch.Tensor) -> F64:
    return np.asarray(np.log(given.double().numpy() + SMALL).mean((1, 2, 3)))


def test_unfitted_it_changes_nothing() -> None:
    assert torch.equal(ImageLevel()(images(1.0)), torch.ones(40, 1, 1, 1))


def test_rough_images_are_divided_by_their_level() -> None:
    good = images(rough=1.0)
    level = fitted(good)
    assert float(level.share) == 1
    levelled = good * level(good).square()
    usual = slice(2, 38)
    assert levels_of(levelled)[usual] == pytest.approx(levels_of(good).mean(), abs=0.02)


def test_full_images_are_left_alone() -> None:
    good = images(rough=0.0, full=1.0)
    assert levels_of(good).std() > 0.5
    level = fitted(good)
    assert float(level.share) == 0
    assert torch.equal(level(good), torch.ones(40, 1, 1, 1))


def test_images_that_are_all_alike_have_no_level() -> None:
    level = fitted(images(rough=0.0)[:1].expand(9, -1, -1, -1))
    assert float(level.share) == 0
    assert torch.equal(level(images(1.0)), torch.ones(40, 1, 1, 1))


def test_a_defect_over_the_whole_image_is_not_divided_away() -> None:
    good = images(rough=0.3)
    level = fitted(good)
    factors = [float(level(scale * good[:1])) for scale in (2.0, 10.0, 1e4)]
    assert factors[1] == factors[2] > 0
    assert factors[2] == pytest.approx(np.exp((levels_of(good).mean() - np.quantile(levels_of(good), 1 - UNUSUAL)) / 2))


@given(rough=st.floats(0.0, 1.5), noise=st.floats(0.0, 1.0), count=st.integers(8, 60), seed=st.integers(0, 99))
def test_it_is_the_definition(rough: float, noise: float, count: int, seed: int) -> None:
    good = images(rough, count=count, seed=seed)
    spots = np.random.default_rng(seed + 1).normal(0, noise, count)
    good[:, 0, 3, 4] *= torch.from_numpy(10 * np.exp(spots)).float()
    found = levels_of(good)
    places = np.sort(good.double().numpy().reshape(count, -1), 1)[:, -round(WORST * 400) :]
    worst = np.log(places.mean(1) + SMALL)
    slope = np.polyfit(found, worst, 1)[0] if found.var() > 1e-6 else 0.0
    share = np.clip((slope - SLOPES[0]) / (SLOPES[1] - SLOPES[0]), 0, 1)
    clipped = np.clip(found, np.quantile(found, UNUSUAL), np.quantile(found, 1 - UNUSUAL))
    wanted = np.exp(share / 2 * (found.mean() - clipped))
    np.testing.assert_allclose(fitted(good)(good)[:, 0, 0, 0].numpy(), wanted, rtol=1e-3)
