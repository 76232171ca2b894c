"""The tables that the kernels read: which source samples make an output sample, and with which weights.

Everything is worked out once, in float64; nothing here runs per frame.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I32 = NDArray[np.int32]


class Taps(NamedTuple):
    """Output `o` is the sum over `t` of `weight[o, t]` times source sample `start[o] + t`.

    `start` is int32 `(n,)`, `weight` float32 `(n, taps)`.  Every window of `taps` samples lies within the source.
    """

    start: I32
    weight: NDArray[np.float32]


def resize_taps(source: int, target: int) -> Taps:
    """Return the taps that resize an axis of `source` samples to `target`.

    Where the axis shrinks every output is the exact mean over its (fractional) box, as `cv2.INTER_AREA`; where it
    grows it is interpolated linearly at half-pixel centres, clamped at the ends, as `cv2.INTER_LINEAR`.
    """
    output = np.arange(target, dtype=np.int64)
    if source >= target:
        # Positions in units of 1 / target of a source sample, so that they are whole numbers.
        low, high = output * source, (output + 1) * source
        taps = int(((high + target - 1) // target - low // target).max())
        start = np.minimum(low // target, source - taps)
        sample = start[:, None] + np.arange(taps)
        overlap = np.minimum(high[:, None], (sample + 1) * target) - np.maximum(low[:, None], sample * target)
        weight = np.maximum(overlap, 0) / source
    else:
        # Positions in units of 1 / (2 · target) of a source sample.
        unit = 2 * target
        position = np.clip((2 * output + 1) * source - target, 0, (source - 1) * unit)
        taps = min(2, source)
        start = np.minimum(position // unit, source - taps)
        distance = np.abs(position[:, None] - (start[:, None] + np.arange(taps)) * unit)
        weight = np.maximum(1.0 - distance / unit, 0.0)
    return Taps(start.astype(np.int32), np.ascontiguousarray(weight, np.float32))


def padded(taps: Taps, before: int, after: int) -> Taps:
    """Return `taps` with the first output repeated `before` times before it, and the last one likewise after it."""
    around = (before, after)
    start = np.pad(taps.start, around, mode="edge")
    return Taps(start, np.ascontiguousarray(np.pad(taps.weight, (around, (0, 0)), mode="edge")))


def shifted(taps: Taps, by: int) -> Taps:
    """Return `taps` for a source that begins `by` samples before the one that they were made for."""
    return Taps(taps.start + np.int32(by), taps.weight) if by else taps


def feather(side: int, count: int, overlap: int) -> NDArray[np.float32]:
    """Return the share of each position of each of `count` tiles in a row, `(count, side)`, 0 to 1.

    It falls linearly where a tile overlaps its neighbour, by `overlap` positions, at most half a tile; shares of the
    same place add up to 1.
    """
    rise = (np.arange(overlap) + 0.5) / max(overlap, 1)
    share = np.ones((count, side))
    share[1:, :overlap] = rise
    share[:-1, side - overlap :] = 1.0 - rise
    return share.astype(np.float32)


def smoothing_matrix(source: int, target: int, sigma: float) -> F64:
    """Return the `(target, source)` matrix that upsamples an axis bilinearly, then smooths it with a Gaussian.

    Upsampling is at half-pixel centres (`align_corners=False`); the Gaussian, `sigma` in output samples, is cut at 4
    sigma with reflected borders, as `scipy.ndimage.gaussian_filter`.  Weights below 1e-9 of a row's sum are dropped.
    """
    position = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    lower = np.floor(position).astype(np.int64)
    upsample = np.zeros((target, source))
    rows = np.arange(target)
    np.add.at(upsample, (rows, lower), 1.0 - (position - lower))
    np.add.at(upsample, (rows, np.minimum(lower + 1, source - 1)), position - lower)
    if sigma <= 0:
        return upsample
    radius = int(4.0 * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    matrix = np.zeros_like(upsample)
    for offset, value in zip(offsets, kernel, strict=True):
        folded = (rows + offset) % (2 * target)
        matrix += value * upsample[np.minimum(folded, 2 * target - 1 - folded)]
    matrix[matrix < 1e-9 * matrix.sum(axis=1, keepdims=True)] = 0.0
    return matrix


def banded(matrix: F64) -> Taps:
    """Return the taps that apply a banded `(n, m)` matrix."""
    m = matrix.shape[1]
    used = matrix != 0
    first, last = used.argmax(axis=1), m - 1 - used[:, ::-1].argmax(axis=1)
    taps = int((last - first).max()) + 1
    start = np.minimum(first, m - taps)
    weight = np.take_along_axis(matrix, start[:, None] + np.arange(taps), axis=1)
    return Taps(start.astype(np.int32), np.ascontiguousarray(weight, np.float32))


def compressed_rows(matrix: F64) -> tuple[I32, I32, NDArray[np.float32]]:
    """Return a sparse `(n, m)` matrix as `begin`, int32 `(n + 1,)`, and each non-zero's column and float32 weight."""
    row, column = np.nonzero(matrix)
    begin = np.searchsorted(row, np.arange(matrix.shape[0] + 1))
    return begin.astype(np.int32), column.astype(np.int32), matrix[row, column].astype(np.float32)
