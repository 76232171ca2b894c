from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from pycocotools import mask as coco

from edge.events.rle import MAX_PIXELS, decode_mask, encode_mask
from edge.frames import Area

Mask = NDArray[np.bool_]


def reference(mask: Mask) -> bytes:
    counts: bytes = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    return counts


@st.composite
def masks(draw: st.DrawFn) -> Mask:
    height, width = draw(st.integers(1, 40)), 8 * draw(st.integers(1, 6))
    return draw(arrays(np.bool_, (height, width), elements=st.booleans(), fill=st.booleans()))


@given(masks())
def test_counts_are_those_of_pycocotools(mask: Mask) -> None:
    counts = encode_mask(np.packbits(mask, axis=1))
    assert counts == (reference(mask) if mask.any() else b"")
    assert np.array_equal(decode_mask(counts, (mask.shape[1], mask.shape[0])), mask)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.001, 0.02, 0.5, 0.999]), st.booleans())
def test_large_masks(seed: int, share: float, blocks: bool) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((256, 512) if not blocks else (8, 16)) < share
    if blocks:
        mask = np.kron(mask, np.ones((64, 64), bool))
    counts = encode_mask(np.packbits(mask, axis=1))
    if mask.any():
        assert counts == reference(mask)
    decoded = decode_mask(counts, mask.shape[::-1])
    assert decoded.dtype == np.bool_
    assert decoded.flags.c_contiguous
    assert np.array_equal(decoded, mask)


@pytest.mark.parametrize("shape", [(1, 8), (256, 256), (2048, 2048)])
def test_all_and_nothing(shape: tuple[int, int]) -> None:
    full = np.full((shape[0], shape[1] // 8), 255, np.uint8)
    assert encode_mask(full) == reference(np.ones(shape, bool))
    assert decode_mask(encode_mask(full), shape[::-1]).all()
    assert encode_mask(np.zeros_like(full)) == b""
    assert not decode_mask(b"", shape[::-1]).any()


@given(masks())
def test_counts_with_runs_of_zero_length_decode_as_pycocotools_does(mask: Mask) -> None:
    # Legal, though no encoder that merges its runs writes them: the mask's columns joined one by one.
    runs: list[int] = []
    for column in mask.T:
        changes = np.flatnonzero(np.diff(column, prepend=False)).tolist()
        edges = [0, *changes, column.size]
        runs += np.diff(edges).tolist() + ([0] if len(edges) % 2 == 0 else [])
        runs += [0] if len(runs) % 2 else []
    rle = {"size": list(mask.shape), "counts": runs}
    counts = coco.frPyObjects(rle, *mask.shape)["counts"]
    assert np.array_equal(decode_mask(counts, mask.shape[::-1]), mask)


@given(st.binary(max_size=60), st.integers(0, 40), st.integers(0, 40))
def test_hostile_counts_are_a_mask_or_a_value_error(counts: bytes, width: int, height: int) -> None:
    with contextlib.suppress(ValueError):
        assert decode_mask(counts, (width, height)).shape == (height, width)


@given(st.text("0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmno", max_size=30))
def test_what_decodes_is_what_pycocotools_decodes(text: str) -> None:
    counts = text.encode()
    try:
        mask = decode_mask(counts, (8, 8))
    except ValueError:
        return
    if counts:
        assert np.array_equal(mask, coco.decode({"size": [8, 8], "counts": counts}))


@pytest.mark.parametrize(
    ("counts", "size"),
    [
        (b"P", (1, 1)),
        (b"PPPPPPPPPPPPPPPP0", (8, 8)),
        (b"o" * 8, (8, 8)),
        (b"/", (8, 8)),
        (b"p", (8, 8)),
        (b"\xff", (8, 8)),
        (b"O", (8, 8)),
        (b"1", (8, 8)),
        (b"0" * 500, (8, 8)),
        (b"", (1 << 20, 1 << 20)),
        (b"", (-1, 8)),
        (b"", (MAX_PIXELS + 1, 1)),
    ],
)
def test_bad_counts_are_refused(counts: bytes, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError):
        decode_mask(counts, size)


@given(mask=arrays(bool, (13, 24)), top=st.integers(0, 12), left=st.integers(0, 23), data=st.data())
@settings(deadline=None)
def test_a_part_of_a_mask_is_encoded_as_if_it_were_alone(
    mask: np.ndarray, top: int, left: int, data: st.DataObject
) -> None:
    height, width = data.draw(st.integers(1, 13 - top)), data.draw(st.integers(1, 24 - left))
    part = mask[top : top + height, left : left + width]
    counts = encode_mask(np.packbits(mask, axis=1), Area(top, left, height, width))
    assert np.array_equal(decode_mask(counts, (width, height)), part)
