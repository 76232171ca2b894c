"""Exact pixel-level ranking of a whole test set, and the area under the per-region overlap (PRO) curve.

Every pixel-level metric depends on the good pixels only through how many of them lie above, at and between
the scores of the defect pixels.  So the good pixels, nearly all of them, are sorted once, in float32, and
only the few defect pixels are ranked.  For 14 million pixels that is about ten times faster than ranking them
all, and needs little more than a copy of the maps.

PRO after P. Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, section 5.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.errors import DataError
from edge.frames import F32
from train.datasets.base import Mask

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class PixelRanking:
    """Good and defect pixels of all images, counted at each distinct score of the defect pixels.

    All arrays have shape `(K,)` and run from the highest such score down: `good_above` counts the good pixels
    of a strictly higher score, `good_reached` those of this score or higher, `defects` the defect pixels of
    just this score, and `overlap` is the PRO with this score as the threshold (flagged where the map reaches it).
    """

    good: int
    regions: int
    good_above: I64
    good_reached: I64
    defects: I64
    overlap: F64

    @property
    def defect(self) -> int:
        """Number of defect pixels."""
        return int(self.defects.sum())

    def weighted_samples(self) -> tuple[NDArray[np.bool_], I64, I64]:
        """Return `(labels, scores, weights)` that rank just as all pixels do.

        Good pixels that no defect pixel's score tells apart are one sample with their number as its weight.
        """
        rank = np.arange(len(self.defects), 0, -1, dtype=np.int64) * 2
        between = np.diff(self.good_above, append=self.good) - (self.good_reached - self.good_above)
        first = self.good_above[:1]
        labels = np.repeat([True, False, False, False], [len(rank), len(rank), len(rank), len(first)])
        scores = np.concatenate([rank, rank, rank - 1, rank[:1] + 1])
        weights = np.concatenate([self.defects, self.good_reached - self.good_above, between, first])
        kept = weights > 0
        return labels[kept], scores[kept], weights[kept]

    def pro_curve(self) -> tuple[F64, F64]:
        """Return `(false-positive rate, PRO)` from (0, 0) to (1, 1); exact, with straight lines between."""
        # The overlap changes only at a defect pixel's score: level up to the good pixels above it, then one
        # step, which slants where good pixels share the score.
        rate = np.empty(2 * len(self.overlap) + 2)
        overlap = np.empty_like(rate)
        rate[0], rate[1:-1:2], rate[2:-1:2], rate[-1] = 0.0, self.good_above, self.good_reached, self.good
        overlap[0], overlap[2:-1:2], overlap[-1] = 0.0, self.overlap, 1.0
        overlap[1:-1:2] = overlap[0:-2:2]
        return rate / self.good, overlap

    def aupro(self, limit: float) -> float:
        """Return the area under the PRO curve up to the false-positive rate `limit`, divided by `limit`.

        NaN where there are no good or no defect pixels.
        """
        if not 0.0 < limit <= 1.0:
            raise ValueError(f"limit {limit} is not in (0, 1]")
        if not self.good or not self.regions:
            return math.nan
        rate, overlap = self.pro_curve()
        # The first point beyond the limit is replaced by the point at the limit on the line that leads to it.
        end = int(np.searchsorted(rate, limit, side="right"))
        if end < len(rate):
            share = (limit - rate[end - 1]) / (rate[end] - rate[end - 1])
            at_limit = overlap[end - 1] + share * (overlap[end] - overlap[end - 1])
            rate, overlap = np.append(rate[:end], limit), np.append(overlap[:end], at_limit)
        area = float(np.sum(np.diff(rate) * (overlap[1:] + overlap[:-1])) / 2.0)
        return area / limit


def rank_pixels(maps: Sequence[F32], masks: Sequence[Mask]) -> PixelRanking:
    """Rank the pixels of `maps`, float32 `(H, W)` each, against their true `masks`, bool `(H, W)` each.

    Regions are the 8-connected components of each mask.

    Raises:
        DataError: a map holds NaN or infinity.
        ValueError: a mask is not of its map's shape.
    """
    from scipy.ndimage import label

    eight = np.ones((3, 3), np.int8)
    good = np.empty(sum(int(np.count_nonzero(~mask)) for mask in masks), np.float32)
    scores: list[F32] = [np.empty(0, np.float32)]
    shares: list[F64] = [np.empty(0)]
    filled = regions = 0
    for index, (scored, mask) in enumerate(zip(maps, masks, strict=True)):
        if scored.shape != mask.shape:
            raise ValueError(f"map {index} is {scored.shape} but its mask is {mask.shape}")
        if not np.isfinite(scored).all():
            raise DataError(
                f"anomaly map {index} of {len(maps)} holds NaN or infinity",
                "the model is broken: train again",
            )
        normal = scored[~mask]
        good[filled : filled + normal.size] = normal
        filled += normal.size
        if normal.size == mask.size:
            continue
        components, count = label(mask, structure=eight)
        inside = components[mask]
        scores.append(scored[mask])
        shares.append(1.0 / np.bincount(inside, minlength=count + 1)[inside])
        regions += count
    good.sort()
    values, inverse = np.unique(np.concatenate(scores), return_inverse=True)
    values, down = values[::-1], len(values) - 1 - inverse
    per_score = np.bincount(down, weights=np.concatenate(shares), minlength=len(values))
    overlap = np.minimum(np.cumsum(per_score) / max(regions, 1), 1.0)
    return PixelRanking(
        good=good.size,
        regions=regions,
        good_above=good.size - np.searchsorted(good, values, side="right"),
        good_reached=good.size - np.searchsorted(good, values, side="left"),
        defects=np.bincount(down, minlength=len(values)),
        overlap=overlap,
    )


def aupro(maps: Sequence[F32], masks: Sequence[Mask], limit: float) -> float:
    """Return the area under the PRO curve up to the false-positive rate `limit`, divided by `limit`.

    In [0, 1], or NaN without any good or any defect pixel.  `maps` are float32 `(H, W)` each, `masks` bool
    `(H, W)` each.

    Raises:
        DataError: a map holds NaN or infinity.
    """
    return rank_pixels(maps, masks).aupro(limit)
