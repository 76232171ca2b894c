from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from train.redi.losses import alignment_loss, correlation_loss, recovery_loss, self_correlation, ssim


def test_ssim_is_one_for_equal_images_and_falls_with_noise() -> None:
    torch.manual_seed(0)
    image = torch.rand(2, 3, 64, 64)
    assert float(ssim(image, image)) == pytest.approx(1.0, abs=1e-5)
    values = [float(ssim(image, image + s * torch.randn_like(image))) for s in (0.05, 0.2, 0.8)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.6


def test_ssim_of_one_window_equals_the_formula_in_float64() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random((8, 8)), rng.random((8, 8))
    c1, c2 = 0.01**2, 0.03**2
    covariance = ((a - a.mean()) * (b - b.mean())).mean()
    expected = (
        (2 * a.mean() * b.mean() + c1)
        * (2 * covariance + c2)
        / ((a.mean() ** 2 + b.mean() ** 2 + c1) * (a.var() + b.var() + c2))
    )
    got = ssim(torch.tensor(a)[None, None], torch.tensor(b)[None, None])
    assert float(got) == pytest.approx(expected, rel=1e-9)


def test_ssim_agrees_with_scikit_image_on_a_smooth_image() -> None:
    ys, xs = np.mgrid[0:64, 0:64] / 64
    a = 0.5 + 0.4 * np.sin(6 * xs) * np.cos(5 * ys)
    b = np.clip(a + 0.1 * np.cos(9 * xs), 0, 1)
    oracle = structural_similarity(a, b, win_size=7, data_range=1.0, use_sample_covariance=False)
    got = float(ssim(torch.tensor(a)[None, None], torch.tensor(b)[None, None]))
    assert got == pytest.approx(oracle, abs=0.03)


def test_recovery_loss_is_zero_only_for_the_image_itself() -> None:
    image = torch.rand(1, 3, 32, 32)
    assert float(recovery_loss(image, image)) == pytest.approx(0, abs=1e-5)
    assert float(recovery_loss(image.flip(3), image)) > 0.3


def test_alignment_loss_equals_float64_cosine_distance() -> None:
    rng = np.random.default_rng(2)
    pairs = [(rng.normal(size=(2, c, s, s)), rng.normal(size=(2, c, s, s))) for c, s in ((8, 6), (16, 3))]
    expected = sum(
        float(
            np.mean(
                1 - (x * y).sum(1) / (np.sqrt((x * x).sum(1)) * np.sqrt((y * y).sum(1))),
            )
        )
        for x, y in pairs
    )
    got = alignment_loss([torch.tensor(x) for x, _ in pairs], [torch.tensor(y) for _, y in pairs])
    assert float(got) == pytest.approx(expected, rel=1e-7)


def test_alignment_loss_ignores_the_length_of_features() -> None:
    x = [torch.randn(1, 8, 4, 4)]
    assert float(alignment_loss(x, [3 * x[0]])) == pytest.approx(0, abs=1e-6)


def test_self_correlation_is_the_cosine_of_positions() -> None:
    f = torch.randn(1, 5, 3, 2, dtype=torch.float64)
    s = self_correlation(f)[0].numpy()
    flat = f[0].reshape(5, 6).numpy()
    for i in range(6):
        for j in range(6):
            a, b = flat[:, i], flat[:, j]
            assert s[i, j] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-9)


def test_self_correlation_pools_to_at_most_16_by_16() -> None:
    assert self_correlation(torch.randn(2, 4, 64, 32)).shape == (2, 256, 256)
    assert self_correlation(torch.randn(2, 4, 8, 32)).shape == (2, 128, 128)


def test_correlation_loss_sees_a_changed_relation_that_alignment_forgives() -> None:
    x = torch.randn(1, 16, 8, 8)
    assert float(correlation_loss([x], [x])) == 0
    assert float(correlation_loss([x], [torch.randn(1, 16, 8, 8)])) > 0.1
