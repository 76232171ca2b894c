"""COCO compressed run-length encoding of masks: the `counts` that `pycocotools.mask` reads and writes.

Pixels are taken column by column; `counts` are the lengths of alternating runs, the first of zeros (0 where
the first pixel is set).  From the fourth count on, each is stored as its difference from the count two
places before, in groups of five bits, lowest first, bit 5 set where more groups follow, plus 48 to be
printable ASCII.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge.frames import U8, Area

#: Masks beyond this many pixels are refused, so that a few hostile bytes cannot ask for all the memory.
MAX_PIXELS = 1 << 28

# Seven groups of five bits hold every difference of two counts below 2^32.
_MAX_GROUPS = 7
_BASE = 48
_MORE = 0x20
_SIGN = 0x10


def encode_mask(bits: U8, area: Area | None = None) -> bytes:
    """Encode a packed mask; `b""` where nothing is set.

    Args:
        bits: uint8 `(H, W // 8)`, rows packed as `numpy.packbits` does.
        area: the part to encode, by default the whole.
    """
    if not bits.any():
        return b""
    mask = np.unpackbits(bits, axis=1)
    if area is not None:
        top, left, height, width = area
        mask = mask[top : top + height, left : left + width]
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    first = np.zeros(1 + int(flat[0]), np.int64)
    return _compress(np.diff(np.concatenate((first, edges, [flat.size]))))


def decode_mask(counts: bytes, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Decode counts to a boolean mask, shape `(height, width)`; `b""` is the empty mask.

    Args:
        counts: compressed counts, of any origin.
        size: `(width, height)` in pixels.

    Raises:
        ValueError: the counts are not well formed, do not fill this size, or the size is out of bounds.
    """
    width, height = size
    if width < 0 or height < 0 or width * height > MAX_PIXELS:
        raise ValueError(f"a mask of {width} x {height} pixels is out of bounds")
    if not counts:
        return np.zeros((height, width), np.bool_)
    if len(counts) > _MAX_GROUPS * (width * height + 2):
        raise ValueError(f"{len(counts)} bytes of counts are too many for {width} x {height} pixels")
    runs = _decompress(counts)
    # Bounding each run first keeps their sum inside 64 bits.
    if runs.min() < 0 or runs.max() > width * height or int(runs.sum()) != width * height:
        raise ValueError(f"the counts do not fill {width} x {height} pixels")
    values = np.arange(runs.size) % 2 == 1
    return np.ascontiguousarray(np.repeat(values, runs).reshape(width, height).T)


def _compress(counts: NDArray[np.int64]) -> bytes:
    values = counts.copy()
    values[3:] -= counts[1:-2]
    groups = values[:, None] >> (5 * np.arange(_MAX_GROUPS))
    # A group is the last one when what is left above it is only copies of its sign bit.
    rest = groups >> 4
    last = np.argmax((rest == 0) | (rest == -1), axis=1)
    place = np.arange(_MAX_GROUPS)
    chars = (groups & 0x1F) + np.where(place < last[:, None], _MORE, 0) + _BASE
    chosen: U8 = chars[place <= last[:, None]].astype(np.uint8)
    return chosen.tobytes()


def _decompress(counts: bytes) -> NDArray[np.int64]:
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - _BASE
    if codes.min() < 0 or codes.max() >= 2 * _MORE:
        raise ValueError("the counts hold a byte outside '0' to 'o'")
    ends = np.flatnonzero(codes & _MORE == 0)
    if ends.size == 0 or ends[-1] != codes.size - 1:
        raise ValueError("the counts break off in the middle of a number")
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > _MAX_GROUPS:
        raise ValueError("the counts hold a number that is too long")
    shifts = 5 * (np.arange(codes.size) - np.repeat(starts, lengths))
    values = np.add.reduceat((codes & 0x1F) << shifts, starts)
    values -= np.where(codes[ends] & _SIGN, 1 << (5 * lengths), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
