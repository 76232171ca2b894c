from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm

from calib.threshold import (
    choose_pixel_threshold,
    choose_threshold,
    exceedance_bound,
    find_outliers,
    images_for_order,
    images_for_tolerance,
    pixel_tail,
    rate_for_order,
    tolerance_factor,
)
from edge.errors import CalibrationError


def lognormal(count: int, seed: int = 0, mean: float = -1.5, std: float = 0.15) -> np.ndarray:
    return np.random.default_rng(seed).lognormal(mean, std, count)


@pytest.mark.parametrize(("rate", "confidence", "images"), [(0.001, 0.95, 2995), (0.01, 0.95, 299), (0.05, 0.9, 45)])
def test_images_for_order_are_the_textbook_numbers(rate, confidence, images):
    assert images_for_order(rate, confidence) == images
    assert (1 - rate) ** images <= 1 - confidence < (1 - rate) ** (images - 1)


@pytest.mark.parametrize(
    ("images", "share", "factor"),
    # One-sided normal tolerance factors, 95 % confidence, as tabulated (Natrella, NBS Handbook 91, table A-7).
    [(10, 0.90, 2.355), (10, 0.95, 2.911), (10, 0.99, 3.981), (50, 0.95, 2.065), (50, 0.999, 3.766), (20, 0.99, 3.295)],
)
def test_tolerance_factors_are_the_tabulated_ones(images, share, factor):
    assert tolerance_factor(images, 1 - share, 0.95) == pytest.approx(factor, abs=1.5e-3)


@settings(deadline=None)
@given(st.integers(1, 400), st.data(), st.floats(0.5, 0.999))
def test_the_bound_is_where_so_few_exceedances_become_unlikely(images, data, confidence):
    exceeded = data.draw(st.integers(0, images))
    bound = exceedance_bound(exceeded, images, confidence)
    if exceeded == images:
        assert bound == 1
    else:
        assert binom.cdf(exceeded, images, bound) == pytest.approx(1 - confidence, rel=1e-6)


def test_order_takes_the_largest_score_at_the_fewest_images():
    scores = lognormal(299)
    decision = choose_threshold(scores, 0.01, 0.95)
    assert decision.method == "order"
    assert decision.threshold == scores.max()
    assert decision.exceeded == 0
    assert decision.bound <= 0.01


def test_order_gives_away_what_more_images_allow():
    scores = lognormal(2000)
    decision = choose_threshold(scores, 0.01, 0.95)
    assert decision.exceeded > 0
    assert decision.bound <= 0.01 < exceedance_bound(decision.exceeded + 1, 2000, 0.95)
    assert np.count_nonzero(scores > decision.threshold) == decision.exceeded


def test_coverage_of_order_whatever_the_distribution():
    rng = np.random.default_rng(1)
    kept = []
    for _ in range(400):
        uniform = rng.random(700)
        # Two populations with a gap: as far from log-normal as scores get.
        scores = np.where(uniform < 0.9, 0.1 + uniform, 5 + uniform)
        threshold = choose_threshold(scores, 0.01, 0.95, "order").threshold
        limit = threshold - 5 if threshold > 4 else threshold - 0.1
        kept.append(1 - limit <= 0.01)
    # At least 0.95, less three standard errors of 400 trials.
    assert np.mean(kept) >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 400)


def test_coverage_of_tolerance():
    rng = np.random.default_rng(2)
    kept = []
    for _ in range(600):
        mean, std = -1.5, 0.2
        scores = rng.lognormal(mean, std, 60)
        threshold = choose_threshold(scores, 0.01, 0.95, "tolerance").threshold
        kept.append(norm.sf((math.log(threshold) - mean) / std) <= 0.01)
    assert 0.95 - 3 * math.sqrt(0.95 * 0.05 / 600) <= np.mean(kept) < 0.99


def test_tolerance_is_the_limit_of_the_logarithms():
    scores = lognormal(80)
    decision = choose_threshold(scores, 0.001, 0.95)
    logs = np.log(scores)
    assert decision.method == "tolerance"
    expected = math.exp(logs.mean() + tolerance_factor(80, 0.001, 0.95) * logs.std(ddof=1))
    assert decision.threshold == pytest.approx(expected)
    assert decision.bound == pytest.approx(1 - 0.05 ** (1 / 80))
    assert not decision.heavy_tail


def test_tolerance_is_never_below_a_good_score():
    scores = np.concatenate([lognormal(90), [lognormal(90).max() * 1.05]])
    decision = choose_threshold(scores, 0.3, 0.6, "tolerance")
    assert decision.threshold == scores.max()
    assert decision.exceeded == 0


def test_a_stray_image_is_named_and_does_not_set_the_threshold():
    scores = np.append(lognormal(80), 5.0)
    decision = choose_threshold(scores, 0.001, 0.95)
    assert decision.outliers == (80,)
    assert decision.threshold == pytest.approx(choose_threshold(scores[:-1], 0.001, 0.95).threshold)
    assert decision.threshold < 5
    assert (decision.exceeded, decision.images) == (1, 81)
    assert decision.bound == exceedance_bound(1, 81, 0.95)


def test_many_far_images_are_no_outliers_but_a_heavy_tail():
    scores = np.append(lognormal(80), [3.0, 4.0, 5.0])
    assert find_outliers(scores).size == 0
    decision = choose_threshold(scores, 0.001, 0.95)
    assert decision.heavy_tail
    assert decision.highest == (82, 81, 80)
    assert decision.threshold >= 5


def test_a_long_lower_tail_is_no_cause_for_warning():
    assert not choose_threshold(np.exp(-lognormal(80, std=1.0)), 0.01, 0.95).heavy_tail


def test_outliers_come_highest_first():
    scores = np.concatenate([[9.0], lognormal(200), [5.0, 7.0]])
    assert find_outliers(scores).tolist() == [0, 202, 201]


def test_too_few_images_for_order_says_how_many_and_which_rate():
    with pytest.raises(CalibrationError) as caught:
        choose_threshold(lognormal(100), 0.001, 0.95, "order")
    assert "100 good images" in caught.value.problem
    assert "2995" in caught.value.problem
    offered = float(caught.value.hint.split("--false-reject ")[1].split(",")[0])
    assert offered == pytest.approx(rate_for_order(100, 0.95), rel=0.1)
    assert choose_threshold(lognormal(100), offered, 0.95, "order").bound <= offered


@pytest.mark.parametrize(("images", "rate", "needed"), [(49, 0.001, 50), (12, 1e-4, 500), (33, 0.0012, 42)])
def test_too_few_images_for_tolerance_says_how_many_and_which_rate(images, rate, needed):
    with pytest.raises(CalibrationError) as caught:
        choose_threshold(lognormal(images), rate, 0.95)
    assert f"needs {needed}" in caught.value.problem
    offered = float(caught.value.hint.split("--false-reject ")[1].split(",")[0])
    assert choose_threshold(lognormal(images), offered, 0.95).threshold > 0
    assert choose_threshold(lognormal(needed), rate, 0.95).threshold > 0


def test_below_ten_images_no_rate_is_offered():
    with pytest.raises(CalibrationError) as caught:
        choose_threshold(lognormal(9), 0.05, 0.95)
    assert "needs 10" in caught.value.problem
    assert "no rate" in caught.value.hint


@settings(deadline=None)
@given(st.floats(1e-4, 0.4))
def test_the_needed_number_is_the_smallest_that_is_accepted(rate):
    needed = images_for_tolerance(rate)
    assert needed == 10 or (needed - 1) * 20 * rate < 1 + 1e-6
    assert needed * 20 * rate >= 1 - 1e-6


@pytest.mark.parametrize(
    ("scores", "rate", "confidence", "method", "names"),
    [
        ([], 0.01, 0.95, "auto", "no good image"),
        ([0.1] * 60, 0.01, 0.95, "auto", "exactly 0.1"),
        ([0.1] * 59 + [math.nan], 0.01, 0.95, "auto", "59"),
        ([0.1] * 59 + [math.inf], 0.01, 0.95, "auto", "59"),
        ([0.0] + [0.1] * 59, 0.01, 0.95, "auto", "image 0"),
        ([0.1] * 60, 0.0, 0.95, "auto", "rate"),
        ([0.1] * 60, 1.0, 0.95, "auto", "rate"),
        ([0.1] * 60, math.nan, 0.95, "auto", "rate"),
        ([0.1] * 60, 0.01, 1.0, "auto", "confidence"),
        ([0.1] * 60, 0.01, 0.95, "guess", "guess"),
    ],
)
def test_requests_that_cannot_be_answered(scores, rate, confidence, method, names):
    with pytest.raises(CalibrationError, match=names):
        choose_threshold(scores, rate, confidence, method)


sizes = st.integers(60, 400)
rates = st.floats(0.001, 0.3)


@settings(deadline=None, max_examples=60)
@given(sizes, st.integers(0, 1000), rates, rates)
def test_a_stricter_rate_never_lowers_the_threshold(images, seed, first, second):
    scores = lognormal(images, seed)
    strict, lax = sorted((first, second))
    for method in ("tolerance", "order"):
        if method == "order" and images < images_for_order(strict, 0.95):
            continue
        assert choose_threshold(scores, strict, 0.95, method).threshold >= choose_threshold(
            scores, lax, 0.95, method
        ).threshold * (1 - 1e-9)


@settings(deadline=None, max_examples=60)
@given(sizes, st.integers(0, 1000), rates, st.floats(0.01, 100))
def test_scaling_the_scores_scales_the_threshold(images, seed, rate, factor):
    scores = lognormal(images, seed)
    one = choose_threshold(scores, rate, 0.95)
    scaled = choose_threshold(scores * factor, rate, 0.95)
    assert scaled.threshold == pytest.approx(one.threshold * factor, rel=1e-9)
    assert (scaled.bound, scaled.method) == (one.bound, one.method)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), rates, st.randoms())
def test_the_order_of_the_images_does_not_matter(seed, rate, random):
    scores = lognormal(100, seed).tolist()
    shuffled = list(scores)
    random.shuffle(shuffled)
    again = choose_threshold(shuffled, rate, 0.95).threshold
    assert again == pytest.approx(choose_threshold(scores, rate, 0.95).threshold, rel=1e-12)


def maps(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(2, 0.05, (count, 64, 64)).astype(np.float32)


@pytest.mark.parametrize("rate", [1e-4, 1e-3, 1e-2])
def test_pixel_threshold_is_the_quantile_of_all_good_pixels(rate):
    pixels = maps(20)
    chosen = choose_pixel_threshold([pixel_tail(m, rate) for m in pixels], 64 * 64, rate, 9.0)
    marked = np.count_nonzero(pixels > chosen)
    allowed = int(rate * pixels.size)
    assert allowed - 1 <= marked <= allowed


def test_one_odd_image_cannot_set_the_pixel_threshold():
    pixels = maps(300)
    plain = choose_pixel_threshold([pixel_tail(m, 1e-4) for m in pixels], 64 * 64, 1e-4, 9.0)
    pixels[7] += 5
    odd = choose_pixel_threshold([pixel_tail(m, 1e-4) for m in pixels], 64 * 64, 1e-4, 9.0)
    assert plain <= odd < 1


@settings(deadline=None)
@given(st.floats(1e-3, 3))
def test_pixel_threshold_is_never_above_the_threshold(threshold):
    tails = [pixel_tail(m, 1e-4) for m in maps(3)]
    chosen = choose_pixel_threshold(tails, 64 * 64, 1e-4, threshold)
    assert 0 < chosen <= threshold
    # The runtimes compare in float32: there too it must not be above.
    assert float(np.float32(chosen)) == chosen


def test_maps_of_zeros_fall_back_to_the_threshold():
    tails = [pixel_tail(np.zeros((8, 8), np.float32), 1e-3)] * 3
    assert choose_pixel_threshold(tails, 64, 1e-3, 0.5) == 0.5


@pytest.mark.parametrize("rate", [0.0, -1.0, 0.02, math.nan])
def test_pixel_rates_out_of_range(rate):
    with pytest.raises(CalibrationError, match="pixel rate"):
        choose_pixel_threshold([np.ones(3, np.float32)], 64, rate, 0.5)
