"""Where frames lie on a canvas, and what its tiles are, against OpenCV's resizing and borders."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.frames import U8, PixelFormat, aligned_f32
from edge.inspection.canvas import Canvas
from edge.inspection.native import Preprocessor, isas
from edge.inspection.taps import feather, resize_taps
from edge.manifest import ONE_TILE, CanvasSpec, InputSpec, MapSpec

RAW = InputSpec(height=64, width=96, scale=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
canvases = st.builds(
    CanvasSpec,
    fit=st.sampled_from(["stretch", "pad"]),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    overlap=st.sampled_from([0, 32]),
)
sides = st.integers(1, 200)


def frame(height: int, width: int, seed: int = 0) -> U8:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def resized(pixels: U8, height: int, width: int) -> np.ndarray:
    """Each axis by itself, since OpenCV treats both alike where only one of them grows."""
    for axis, side in ((0, height), (1, width)):
        size = (pixels.shape[1], side) if axis == 0 else (side, pixels.shape[0])
        how = cv2.INTER_AREA if pixels.shape[axis] >= side else cv2.INTER_LINEAR
        pixels = cv2.resize(np.asarray(pixels, np.float64), size, interpolation=how)
    return np.asarray(pixels)


def tile_of(preprocessor: Preprocessor, pixels: U8, tile: int) -> np.ndarray:
    x = aligned_f32(3, RAW.height, RAW.width)
    preprocessor.prepare(pixels, PixelFormat.RGB8, x, tile)
    return np.asarray(x.transpose(1, 2, 0))


@settings(max_examples=40, deadline=None)
@given(spec=canvases, height=sides, width=sides, seed=st.integers(0, 99))
def test_tiles_are_cut_from_the_frame_resized_with_its_border_repeated(
    spec: CanvasSpec, height: int, width: int, seed: int
) -> None:
    pixels, canvas = frame(height, width, seed), Canvas(RAW, spec)
    top, left, high, wide = canvas.area(height, width)
    around = (top, canvas.height - top - high, left, canvas.width - left - wide)
    whole = cv2.copyMakeBorder(resized(pixels, high, wide), *around, cv2.BORDER_REPLICATE)
    assert whole.shape[:2] == (canvas.height, canvas.width)
    made = [Preprocessor(RAW, MapSpec(), spec, isa=isa) for isa in isas()]
    for tile, (y, x) in enumerate(canvas.corners):
        first, *others = (tile_of(each, pixels, tile) for each in made)
        np.testing.assert_allclose(first, whole[y : y + 64, x : x + 96], atol=2e-3)
        for other in others:
            np.testing.assert_array_equal(other, first)


@settings(max_examples=25, deadline=None)
@given(spec=canvases, height=sides, width=sides)
def test_tiles_show_the_same_pixels_where_they_overlap(spec: CanvasSpec, height: int, width: int) -> None:
    pixels, preprocessor = frame(height, width), Preprocessor(RAW, MapSpec(), spec)
    canvas = preprocessor.canvas
    seen = np.full((canvas.height, canvas.width, 3), np.nan, np.float32)
    for tile, (y, x) in enumerate(canvas.corners):
        made = tile_of(preprocessor, pixels, tile)
        place = seen[y : y + 64, x : x + 96]
        known = ~np.isnan(place)
        np.testing.assert_array_equal(made[known], place[known])
        place[:] = made
    assert not np.isnan(seen).any()


@given(height=st.integers(1, 3000), width=st.integers(1, 3000), spec=canvases)
def test_a_padded_frame_keeps_its_aspect_fills_one_side_and_lies_in_the_middle(
    height: int, width: int, spec: CanvasSpec
) -> None:
    canvas = Canvas(RAW, CanvasSpec("pad", spec.rows, spec.columns, spec.overlap))
    top, left, high, wide = canvas.area(height, width)
    assert 1 <= high <= canvas.height
    assert 1 <= wide <= canvas.width
    assert high == canvas.height or wide == canvas.width
    scale = min(canvas.height / height, canvas.width / width)
    assert abs(high - height * scale) <= max(0.5, 1 - height * scale) + 1e-6
    assert abs(wide - width * scale) <= max(0.5, 1 - width * scale) + 1e-6
    assert canvas.height - high - 2 * top in (0, 1)
    assert canvas.width - wide - 2 * left in (0, 1)


@given(height=st.integers(1, 3000), width=st.integers(1, 3000))
def test_one_stretched_tile_has_the_taps_of_a_plain_resize(height: int, width: int) -> None:
    canvas = Canvas(RAW, ONE_TILE)
    assert canvas.area(height, width) == (0, 0, 64, 96)
    for made, plain in zip(canvas.taps(height, width), (resize_taps(height, 64), resize_taps(width, 96)), strict=True):
        np.testing.assert_array_equal(made.start, plain.start)
        np.testing.assert_array_equal(made.weight, plain.weight)


@pytest.mark.parametrize(
    ("spec", "size", "corners"),
    [
        (ONE_TILE, (64, 96), ((0, 0),)),
        (CanvasSpec(rows=1, columns=2, overlap=32), (64, 160), ((0, 0), (0, 64))),
        (CanvasSpec("pad", 2, 2, 0), (128, 192), ((0, 0), (0, 96), (64, 0), (64, 96))),
        (CanvasSpec("pad", 3, 1, 32), (128, 96), ((0, 0), (32, 0), (64, 0))),
    ],
)
def test_sizes_and_corners(spec: CanvasSpec, size: tuple[int, int], corners: tuple[tuple[int, int], ...]) -> None:
    canvas = Canvas(RAW, spec)
    assert (canvas.height, canvas.width) == size
    assert canvas.corners == corners


def test_mixed_frame_sizes_in_turn() -> None:
    preprocessor = Preprocessor(RAW, MapSpec(), CanvasSpec("pad", 2, 2, 32))
    for height in [*range(40, 52), *range(40, 52)]:
        pixels = frame(height, 300 - 5 * height, height)
        fresh = Preprocessor(RAW, MapSpec(), CanvasSpec("pad", 2, 2, 32))
        np.testing.assert_array_equal(tile_of(preprocessor, pixels, 3), tile_of(fresh, pixels, 3))


@given(
    count=st.integers(1, 5),
    side=st.sampled_from([64, 96, 256]),
    overlap=st.sampled_from([0, 1, 32]),
)
def test_shares_fall_linearly_and_add_up_to_one(count: int, side: int, overlap: int) -> None:
    shares = feather(side, count, overlap)
    step = side - overlap
    total = np.zeros(count * step + overlap)
    for tile, share in enumerate(shares):
        assert ((share > 0) & (share <= 1)).all()
        total[tile * step : tile * step + side] += share
    np.testing.assert_allclose(total, 1, atol=1e-6)
    if count > 1 and overlap == 32:
        np.testing.assert_allclose(np.diff(shares[1, :32]), 1 / 32, atol=1e-6)
        assert (shares[0, : side - 32] == 1).all()
