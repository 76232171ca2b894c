"""The statistics of the threshold: how high a score good parts reach, said from good parts alone.

Pure functions of arrays.  `docs/calibration.md` explains them to the person who has to trust them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.errors import CalibrationError

F64 = NDArray[np.float64]

METHODS = ("auto", "tolerance", "order")

#: `tolerance` may state a rate as small as one part in this many times the number of images.
EXTRAPOLATION = 20
MIN_IMAGES = 10

#: A good image is set apart as an outlier where its ln(score) lies this many robust standard deviations above
#: the median of all, and such images are at most this share of all (or a single one).
OUTLIER_SIGMAS = 5.0
OUTLIER_SHARE = 0.02

#: Below this p-value of the Shapiro–Wilk test the log-scores are not taken for normal.
NORMALITY_ALPHA = 0.01
_SHAPIRO_LIMIT = 5000

#: No image lends more than this many times the pixel rate of its own pixels to the pooled tail.
_TAIL_FACTOR = 100
MAX_PIXEL_RATE = 1.0 / _TAIL_FACTOR


@dataclass(frozen=True)
class Decision:
    """A threshold and what may be said of it.

    Attributes:
        method: `order` or `tolerance`.
        threshold: scores above it are rejected; same units as the scores.
        false_reject: the rate that was asked for, kept at `confidence`.  `order`: whatever the distribution;
            `tolerance`: if log-scores are normal.
        bound: Clopper–Pearson upper bound of the rate from `exceeded` of `images`, at `confidence`.
        exceeded: how many of the good images score above the threshold.
        outliers: indices of good images that score far above the rest, highest first.
        highest: indices of the highest scores that are no outliers, highest first, at most three.
        log_mean, log_std: of ln(score), outliers left out where the method fits them.
        normality: p-value of the Shapiro–Wilk test on the fitted log-scores; None where nothing was fitted.
        heavy_tail: the log-scores are not normal, and lean upwards: the stated rate is too good.
    """

    method: str
    threshold: float
    false_reject: float
    confidence: float
    bound: float
    exceeded: int
    images: int
    outliers: tuple[int, ...]
    highest: tuple[int, ...]
    log_mean: float
    log_std: float
    normality: float | None = None
    heavy_tail: bool = False


def choose_threshold(
    scores: Sequence[float] | F64, false_reject: float, confidence: float, method: str = "auto"
) -> Decision:
    """Choose the threshold from the scores of distinct good images.

    Args:
        scores: image scores, shape `(n,)`, finite and above 0.
        false_reject: the wanted rate of good parts rejected, between 0 and 1.
        confidence: that the rate is kept, between 0 and 1.
        method: `order`, `tolerance`, or `auto`: `order` where there are images enough, else `tolerance`.

    Raises:
        CalibrationError: the images cannot support the request; says what they can.
    """
    values = np.asarray(scores, np.float64)
    _check_request(values, false_reject, confidence, method)
    needed = images_for_order(false_reject, confidence)
    if method == "auto":
        method = "order" if values.size >= needed else "tolerance"
    if method == "order" and values.size < needed:
        raise CalibrationError(
            f"{values.size} good images are too few: a false-reject rate of {false_reject:g} at {confidence:.3g} "
            f"confidence needs {needed} without assumptions",
            f"add images, ask for --false-reject {_round_up(rate_for_order(values.size, confidence)):g}, "
            "or use --method tolerance",
        )
    if method == "tolerance":
        _check_extrapolation(values.size, false_reject)
    decide = _order if method == "order" else _tolerance
    return decide(values, false_reject, confidence)


def images_for_order(false_reject: float, confidence: float) -> int:
    """Fewest images with which the largest score bounds the rate: `(1 - rate)^n <= 1 - confidence`."""
    return math.ceil(math.log1p(-confidence) / math.log1p(-false_reject) - 1e-9)


def rate_for_order(images: int, confidence: float) -> float:
    """Smallest rate that `images` good images support without assumptions."""
    return -math.expm1(math.log1p(-confidence) / images)


def images_for_tolerance(false_reject: float) -> int:
    """Fewest images from which the tolerance limit may extrapolate to `false_reject`."""
    return max(MIN_IMAGES, math.ceil(1 / (EXTRAPOLATION * false_reject) - 1e-9))


def exceedance_bound(exceeded: int, images: int, confidence: float) -> float:
    """Clopper–Pearson one-sided upper bound of a rate, from `exceeded` of `images` (Biometrika 26, 1934)."""
    from scipy.stats import beta

    if exceeded >= images:
        return 1.0
    return float(beta.ppf(confidence, exceeded + 1, images - exceeded))


def tolerance_factor(images: int, false_reject: float, confidence: float) -> float:
    """Factor `k` of the one-sided normal tolerance limit `mean + k std`.

    With `confidence`, at most `false_reject` of the population lies above it:
    `k = t'(confidence; n - 1, z sqrt n) / sqrt n`, `t'` the noncentral t quantile, `z` the normal quantile of
    `1 - false_reject` (Owen 1968; ISO 16269-6).
    """
    from scipy.stats import nct, norm

    root = math.sqrt(images)
    return float(nct.ppf(confidence, images - 1, norm.isf(false_reject) * root)) / root


def find_outliers(scores: F64) -> NDArray[np.int64]:
    """Return indices of scores far above the rest, highest first: good images that may not be good.

    Far: ln(score) more than 5 robust standard deviations (1.4826 times the median absolute deviation) above
    the median.  Where more than 2 % of the images are that far (and more than one), this is how this product
    scatters and not a stray image: then none is set apart.
    """
    logs = np.log(scores)
    centre = np.median(logs)
    spread = 1.4826 * np.median(np.abs(logs - centre))
    far = np.flatnonzero(logs - centre > OUTLIER_SIGMAS * spread) if spread > 0 else np.empty(0, np.int64)
    if far.size > max(1, int(OUTLIER_SHARE * scores.size)):
        return np.empty(0, np.int64)
    return far[np.argsort(-logs[far], kind="stable")].astype(np.int64)


def _order(values: F64, false_reject: float, confidence: float) -> Decision:
    """Smallest order statistic whose bound is within the rate: holds for any continuous distribution."""
    # The bound grows with the number left above, so the largest number that still fits is found by bisection.
    low, high = 0, values.size - 1
    while low < high:
        middle = (low + high + 1) // 2
        if exceedance_bound(middle, values.size, confidence) <= false_reject:
            low = middle
        else:
            high = middle - 1
    threshold = float(np.sort(values)[values.size - 1 - low])
    logs = np.log(values)
    return _decision("order", threshold, values, false_reject, confidence, logs)


def _tolerance(values: F64, false_reject: float, confidence: float) -> Decision:
    """One-sided normal tolerance limit of ln(score), and never below the largest score that is no outlier."""
    from scipy.stats import shapiro, skew

    kept = np.delete(values, find_outliers(values))
    logs = np.log(kept)
    if np.ptp(logs) == 0:
        raise CalibrationError(
            f"all {kept.size} good images score exactly {kept[0]:.6g}: no scatter to calibrate from",
            "are they different photographs, and is this the right bundle?",
        )
    factor = tolerance_factor(kept.size, false_reject, confidence)
    limit = math.exp(logs.mean() + factor * logs.std(ddof=1))
    sample = logs
    if logs.size > _SHAPIRO_LIMIT:
        sample = np.random.default_rng(0).choice(logs, _SHAPIRO_LIMIT, replace=False)
    p_value = float(shapiro(sample).pvalue)
    heavy = p_value < NORMALITY_ALPHA and float(skew(logs)) > 0
    threshold = max(limit, float(kept.max()))
    return _decision("tolerance", threshold, values, false_reject, confidence, logs, p_value, heavy)


def _decision(
    method: str,
    threshold: float,
    values: F64,
    false_reject: float,
    confidence: float,
    logs: F64,
    normality: float | None = None,
    heavy_tail: bool = False,
) -> Decision:
    exceeded = int(np.count_nonzero(values > threshold))
    outliers = find_outliers(values).tolist()
    ranked = [index for index in np.argsort(-values, kind="stable").tolist() if index not in outliers]
    return Decision(
        method=method,
        threshold=threshold,
        false_reject=false_reject,
        confidence=confidence,
        bound=exceedance_bound(exceeded, values.size, confidence),
        exceeded=exceeded,
        images=values.size,
        outliers=tuple(outliers),
        highest=tuple(ranked[:3]),
        log_mean=float(logs.mean()),
        log_std=float(logs.std(ddof=1)) if logs.size > 1 else 0.0,
        normality=normality,
        heavy_tail=heavy_tail,
    )


def _check_request(values: F64, false_reject: float, confidence: float, method: str) -> None:
    for name, rate in (("false-reject rate", false_reject), ("confidence", confidence)):
        if not 0 < rate < 1:
            raise CalibrationError(f"the {name} is {rate:g}, but must be between 0 and 1")
    if method not in METHODS:
        raise CalibrationError(f"unknown method {method!r}", f"one of {', '.join(METHODS)}")
    if values.ndim != 1 or values.size == 0:
        raise CalibrationError("there is no good image to calibrate from")
    bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if bad.size:
        raise CalibrationError(f"good image {bad[0]} scores {values[bad[0]]}, but a score is finite and above 0")


def _check_extrapolation(images: int, false_reject: float) -> None:
    needed = images_for_tolerance(false_reject)
    if images >= needed:
        return
    problem = f"{images} good images are too few: a false-reject rate of {false_reject:g} needs {needed}"
    if images < MIN_IMAGES:
        raise CalibrationError(problem, f"add images: below {MIN_IMAGES} no rate can be stated")
    rate = 1 / (EXTRAPOLATION * images)
    hint = f"add images, or ask for --false-reject {_round_up(rate):g}, the smallest rate that these support"
    raise CalibrationError(problem, hint)


def _round_up(rate: float) -> float:
    """Round to two significant digits, upwards, so that asking for the printed rate succeeds."""
    unit = 10.0 ** (math.floor(math.log10(rate)) - 1)
    return math.ceil(rate / unit - 1e-9) * unit


def pixel_tail(anomaly_map: NDArray[np.float32], pixel_rate: float) -> NDArray[np.float32]:
    """Return the largest values of one good image's map: all that `choose_pixel_threshold` needs of it.

    Keeps 100 times `pixel_rate` of the pixels, so that a single odd image cannot set the threshold of all.
    """
    values = anomaly_map.ravel()
    keep = min(values.size, math.ceil(values.size * pixel_rate * _TAIL_FACTOR))
    tail: NDArray[np.float32] = np.partition(values, values.size - keep)[values.size - keep :].copy()
    return tail


def choose_pixel_threshold(
    tails: Sequence[NDArray[np.float32]], pixels: float, pixel_rate: float, threshold: float
) -> float:
    """Choose the map value that at most `pixel_rate` of good pixels exceed, never above `threshold`.

    A part is `ng` when the mean of its highest map values exceeds `threshold`, so at least its highest pixel is then
    above the pixel threshold, and the part has a region to show.

    Args:
        tails: of each good image, from `pixel_tail`.
        pixels: of one anomaly map, or their mean.
        pixel_rate: share of good pixels that may be marked, above 0, at most 0.01.
        threshold: of the image score.
    """
    if not 0 < pixel_rate <= MAX_PIXEL_RATE:
        raise CalibrationError(f"the pixel rate is {pixel_rate:g}, but must be above 0 and up to {MAX_PIXEL_RATE:g}")
    pooled = np.sort(np.concatenate(tails))[::-1]
    allowed = min(int(pixel_rate * pixels * len(tails)), pooled.size - 1)
    # In the map's own precision and rounded down: a score above `threshold` then always has a pixel above this.
    ceiling = np.float32(threshold)
    if float(ceiling) > threshold:
        ceiling = np.nextafter(ceiling, np.float32(0))
    value = pooled[allowed]
    return float(min(value, ceiling) if value > 0 else ceiling)
