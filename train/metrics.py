"""Detection and localisation metrics over a whole test set, and the curves that they summarise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge.errors import DataError
from edge.frames import F32
from train.aupro import F64, PixelRanking, rank_pixels
from train.datasets.base import Mask

#: Points of a curve closer than this in both directions are one point to the eye.
_CURVE_STEP = 1.0 / 500.0


@dataclass(frozen=True)
class Metrics:
    """All in [0, 1], higher is better; None where undefined, with the reason in `reasons` by field name.

    `*_auroc` is the area under the ROC curve, `*_ap` the average precision, `*_f1_max` the best F1 over all
    thresholds (an upper bound: its threshold is chosen on the test labels, so it is not given), `aupro_30`
    and `aupro_5` the area under the per-region overlap up to 30 % and 5 % false positives.  Pixel metrics
    leave out the defect images that have no mask.
    """

    image_auroc: float | None = None
    image_ap: float | None = None
    image_f1_max: float | None = None
    pixel_auroc: float | None = None
    pixel_ap: float | None = None
    pixel_f1_max: float | None = None
    aupro_30: float | None = None
    aupro_5: float | None = None
    reasons: dict[str, str] = field(default_factory=dict)


METRIC_NAMES = (
    "image_auroc",
    "image_ap",
    "image_f1_max",
    "pixel_auroc",
    "pixel_ap",
    "pixel_f1_max",
    "aupro_30",
    "aupro_5",
)


@dataclass(frozen=True)
class Curve:
    """Points `x`, `y`, each float64 of the same length, thinned to what a plot can show."""

    x: F64
    y: F64


@dataclass(frozen=True)
class Curves:
    """ROC (false-positive rate, recall), PR (recall, precision), PRO (false-positive rate, overlap)."""

    image_roc: Curve | None = None
    image_pr: Curve | None = None
    pixel_roc: Curve | None = None
    pixel_pr: Curve | None = None
    pro: Curve | None = None


@dataclass(frozen=True)
class _Ranked:
    """What scikit-learn ranks: labels, scores and weights of one level, image or pixel."""

    labels: NDArray[np.bool_]
    scores: NDArray[np.float64] | NDArray[np.int64]
    weights: NDArray[np.int64] | None = None


def compute_metrics(
    labels: Sequence[int], scores: Sequence[float], maps: Sequence[F32], masks: Sequence[Mask | None]
) -> Metrics:
    """Return every metric over a test set of N images.

    Args:
        labels: 0 good, 1 defect.
        scores: image scores, higher is more anomalous.
        maps: anomaly maps, float32 `(H, W)` each.
        masks: true masks, bool `(H, W)` each.  None means no defect pixel for a good image, and leaves a
            defect image out of the pixel metrics.

    Raises:
        DataError: a score or a map holds NaN or infinity.
        ValueError: the lengths differ, or a mask is not of its map's shape.
    """
    image = _image_level(labels, scores)
    values: dict[str, float] = {}
    reasons: dict[str, str] = {}
    reason = _image_reason(labels)
    if reason:
        reasons.update(dict.fromkeys(METRIC_NAMES[:3], reason))
    else:
        values.update(zip(METRIC_NAMES[:3], _summaries(image), strict=True))
    pixels = _pixel_level(labels, maps, masks)
    reason = _pixel_reason(pixels, labels, masks)
    if reason:
        reasons.update(dict.fromkeys(METRIC_NAMES[3:], reason))
    else:
        values.update(zip(METRIC_NAMES[3:6], _summaries(_Ranked(*pixels.weighted_samples())), strict=True))
        values.update(aupro_30=pixels.aupro(0.3), aupro_5=pixels.aupro(0.05))
    return Metrics(**values, reasons=reasons)


def compute_curves(
    labels: Sequence[int], scores: Sequence[float], maps: Sequence[F32], masks: Sequence[Mask | None]
) -> Curves:
    """Return the curves behind `compute_metrics`, for the same arguments; None where a curve is undefined."""
    curves: dict[str, Curve] = {}
    if not _image_reason(labels):
        curves["image_roc"], curves["image_pr"] = _curves(_image_level(labels, scores))
    pixels = _pixel_level(labels, maps, masks)
    if not _pixel_reason(pixels, labels, masks):
        curves["pixel_roc"], curves["pixel_pr"] = _curves(_Ranked(*pixels.weighted_samples()))
        curves["pro"] = _thin(*pixels.pro_curve())
    return Curves(**curves)


def image_auroc(labels: Sequence[int], scores: Sequence[float]) -> float | None:
    """Return the area under the image-level ROC curve; None without both classes."""
    if _image_reason(labels):
        return None
    return _summaries(_image_level(labels, scores))[0]


def _image_level(labels: Sequence[int], scores: Sequence[float]) -> _Ranked:
    values = np.asarray(scores, np.float64)
    if not np.isfinite(values).all():
        index = int(np.flatnonzero(~np.isfinite(values))[0])
        raise DataError(f"image score {index} is {values[index]}", "the model is broken: train again")
    return _Ranked(np.asarray(labels) != 0, values)


def _pixel_level(labels: Sequence[int], maps: Sequence[F32], masks: Sequence[Mask | None]) -> PixelRanking:
    used_maps: list[F32] = []
    used_masks: list[Mask] = []
    for label, scored, mask in zip(labels, maps, masks, strict=True):
        if mask is not None or label == 0:
            used_maps.append(scored)
            used_masks.append(np.zeros(scored.shape, np.bool_) if mask is None else mask)
    return rank_pixels(used_maps, used_masks)


def _image_reason(labels: Sequence[int]) -> str:
    defects = sum(label != 0 for label in labels)
    if defects == 0:
        return "no defect images"
    return "no good images" if defects == len(labels) else ""


def _pixel_reason(pixels: PixelRanking, labels: Sequence[int], masks: Sequence[Mask | None]) -> str:
    if pixels.defect == 0:
        marked = any(label != 0 and mask is not None for label, mask in zip(labels, masks, strict=True))
        return "no defect pixels in any mask" if marked else "no defect images with a mask"
    return "no good pixels" if pixels.good == 0 else ""


def _summaries(ranked: _Ranked) -> tuple[float, float, float]:
    """Return the AUROC, the average precision and the largest F1."""
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    auroc = roc_auc_score(ranked.labels, ranked.scores, sample_weight=ranked.weights)
    ap = average_precision_score(ranked.labels, ranked.scores, sample_weight=ranked.weights)
    precision, recall, _ = precision_recall_curve(ranked.labels, ranked.scores, sample_weight=ranked.weights)
    f1 = 2.0 * precision * recall / np.maximum(precision + recall, np.finfo(np.float64).tiny)
    return float(auroc), float(ap), float(f1.max())


def _curves(ranked: _Ranked) -> tuple[Curve, Curve]:
    """Return the ROC and the PR curve."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    false_rate, true_rate, _ = roc_curve(ranked.labels, ranked.scores, sample_weight=ranked.weights)
    precision, recall, _ = precision_recall_curve(ranked.labels, ranked.scores, sample_weight=ranked.weights)
    # scikit-learn ends the PR curve with a conventional point (0, 1), which no threshold reaches.
    return _thin(false_rate, true_rate), _thin(recall[-2::-1], precision[-2::-1])


def _thin(x: F64, y: F64) -> Curve:
    cells = np.stack([x, y]) // _CURVE_STEP
    moved = np.any(np.diff(cells, axis=1) != 0, axis=0)
    # Both ends of a step are kept, so that a long level stretch is not drawn as a slope.
    kept = np.concatenate([[True], moved]) | np.concatenate([moved, [True]])
    return Curve(x[kept], y[kept])
