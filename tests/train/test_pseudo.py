from __future__ import annotations

import numpy as np
import pytest
import torch

from edge.frames import F32
from edge.manifest import InputSpec
from train import pseudo
from train.pseudo import KINDS, PLAIN, VISIBLE, PseudoAnomalies

SPEC = InputSpec(height=96, width=128)
MEAN, STD = (np.array(three, np.float32)[:, None, None] for three in (SPEC.mean, SPEC.std))


def normalised(colours: F32) -> F32:
    """Colours from 0 to 1 as the network gets them."""
    return ((colours - MEAN) / STD).astype(np.float32)


def grey(count: int = 5) -> F32:
    """Grey images, each rough."""
    tones = np.random.default_rng(0).uniform(0.3, 0.6, (count, 1, 96, 128)).astype(np.float32)
    return normalised(tones.repeat(3, 1))


def drawer(images: F32) -> PseudoAnomalies:
    return PseudoAnomalies(torch.from_numpy(images).half(), SPEC)


@pytest.mark.parametrize("kind", sorted(set(KINDS)))
def test_what_is_drawn_changes_some_of_the_image_and_says_where(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pseudo, "KINDS", (kind,))
    images = grey()
    anomalies, seen = drawer(images), 0
    for seed in range(20):
        x = images[seed % 5].copy()
        visible = anomalies.draw(x, np.random.default_rng(seed))
        changed = np.abs(x - images[seed % 5]).mean(0)
        assert visible.shape == (96, 128)
        np.testing.assert_array_equal(visible, changed > VISIBLE)
        assert visible.mean() < 0.5
        assert (normalised(np.float32(0)) - 1e-5 <= x).all()
        assert (x <= normalised(np.float32(1)) + 1e-5).all()
        seen += bool(visible.any())
    assert seen > 10


def test_lines_are_thin_and_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pseudo, "KINDS", ("line",))
    image = np.zeros((1, 3, 96, 128), np.float32)
    anomalies = drawer(image)
    shares = [anomalies.draw(image[0].copy(), np.random.default_rng(seed)).mean() for seed in range(30)]
    assert 0 < max(shares) < 0.03


def test_defects_of_a_grey_product_are_grey() -> None:
    images = grey()
    anomalies = drawer(images)
    for seed in range(20):
        x = images[0].copy()
        anomalies.draw(x, np.random.default_rng(seed))
        colours = x * STD + MEAN
        assert np.ptp(colours, axis=0).max() < 0.02


def test_defects_of_a_plain_product_are_seen_too() -> None:
    images = np.zeros((3, 3, 96, 128), np.float32)
    anomalies = drawer(images)
    seen = []
    for seed in range(40):
        x = images[0].copy()
        seen.append(bool(anomalies.draw(x, np.random.default_rng(seed)).any()))
        assert np.abs(x).max() < 10 * PLAIN
    # Pieces of other plain images are nothing, and the faintest defects are not seen.
    assert np.mean(seen) > 0.3


def test_a_coloured_product_has_defects_along_its_own_axes() -> None:
    """Here red alone varies, so nothing else does in a defect."""
    images = np.zeros((4, 3, 96, 128), np.float32)
    images[:, 0] = np.random.default_rng(1).normal(0, 0.5, (4, 96, 128))
    anomalies = drawer(images)
    for seed in range(20):
        x = images[0].copy()
        grainy = anomalies.draw(x, np.random.default_rng(seed))
        assert np.abs(np.median((x - images[0])[1:][:, grainy])) < 0.05 if grainy.any() else True


def test_the_same_draws_give_the_same() -> None:
    images = grey()
    one, other = images[0].copy(), images[0].copy()
    drawer(images).draw(one, np.random.default_rng(3))
    drawer(images).draw(other, np.random.default_rng(3))
    np.testing.assert_array_equal(one, other)
