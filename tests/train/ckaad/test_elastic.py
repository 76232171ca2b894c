from __future__ import annotations

import numpy as np

from train.ckaad.elastic import elastic


def image(height: int = 96, width: int = 128) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return np.stack([x, y, np.sin(x / 6) * np.cos(y / 9)]).astype(np.float32)


def bent(seed: int, **strength: float) -> np.ndarray:
    return elastic(image(), np.random.default_rng(seed), **strength)


def test_the_same_draw_bends_alike_and_another_does_not() -> None:
    before = image()
    assert np.array_equal(bent(0), bent(0))
    assert not np.array_equal(bent(0), bent(1))
    assert np.array_equal(image(), before)


def test_shape_type_and_grey_range_stay() -> None:
    given, got = image(), bent(0)
    assert got.shape == given.shape
    assert got.dtype == np.float32
    for channel, out in zip(given, got, strict=True):
        assert channel.min() - 1e-3 <= out.min()
        assert out.max() <= channel.max() + 1e-3


def test_a_flat_image_has_nothing_to_bend() -> None:
    flat = np.full((3, 64, 64), 0.25, np.float32)
    np.testing.assert_allclose(elastic(flat, np.random.default_rng(0)), flat, atol=1e-6)


def test_pixels_move_by_a_few_and_all_channels_alike() -> None:
    """Channels 0 and 1 hold each pixel's own place, so that they show where it was fetched from."""
    given, got = image(), bent(3)
    inside = (slice(20, -20), slice(20, -20))
    moved = np.hypot(*(got[axis][inside] - given[axis][inside] for axis in (0, 1)))
    assert 1.0 < moved.mean() < 8.0
    assert moved.max() < 25.0
    x, y = got[0][inside], got[1][inside]
    np.testing.assert_allclose(got[2][inside], np.sin(x / 6) * np.cos(y / 9), atol=0.05)


def test_neighbours_move_together_and_strength_scales_the_move() -> None:
    given = image()
    inside = (slice(20, -20), slice(20, -20))
    moves = [(bent(3, alpha=alpha) - given)[0][inside] for alpha in (50.0, 100.0)]
    assert np.abs(np.diff(moves[1], axis=1)).mean() < 0.2 * np.abs(moves[1]).mean()
    np.testing.assert_allclose(moves[1], 2 * moves[0], atol=0.05)
    assert np.array_equal(bent(3, alpha=0.0), given)
