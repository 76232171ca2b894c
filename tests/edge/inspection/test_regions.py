from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from edge.frames import Area, Roi
from edge.inspection.regions import find_regions


def whole(width: int, height: int) -> Roi:
    return Roi(0, 0, width, height)


@settings(max_examples=60, deadline=None)
@given(bits=arrays(bool, (16, 24)), scale_x=st.integers(1, 5), scale_y=st.integers(1, 5), seed=st.integers(0, 9))
def test_regions_are_the_connected_parts_of_the_mask(bits: np.ndarray, scale_x: int, scale_y: int, seed: int) -> None:
    amap = np.random.default_rng(seed).permutation(bits.size).reshape(bits.shape).astype(np.float32)
    regions = find_regions(np.packbits(bits, axis=1), amap, whole(24 * scale_x, 16 * scale_y))

    labels, count = ndimage.label(bits, np.ones((3, 3)))
    expected = []
    for label in range(1, count + 1):
        rows, columns = np.nonzero(labels == label)
        box = (
            columns.min() * scale_x,
            rows.min() * scale_y,
            (columns.max() - columns.min() + 1) * scale_x,
            (rows.max() - rows.min() + 1) * scale_y,
        )
        expected.append((box, len(rows) * scale_x * scale_y, amap[rows, columns].max()))
    expected.sort(key=lambda region: -region[2])
    assert [(region.bbox, region.area_px, region.peak) for region in regions] == expected


def mask_of(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    bits = np.zeros((64, 64), bool)
    for x, y, width, height in boxes:
        bits[y : y + height, x : x + width] = True
    return np.packbits(bits, axis=1)


FLAT = np.ones((64, 64), np.float32)


def test_centroid_lies_in_the_middle_of_a_scaled_box() -> None:
    (region,) = find_regions(mask_of((8, 16, 4, 2)), FLAT, whole(640, 320))
    assert region.bbox == (80, 80, 40, 10)
    # Pixels 80 … 119 and 80 … 89: their middle.
    assert region.centroid == pytest.approx((99.5, 84.5))
    assert region.area_mm2 is None


def test_boxes_cover_partly_covered_pixels_and_stay_in_a_frame_smaller_than_the_map() -> None:
    (region,) = find_regions(mask_of((61, 61, 3, 3)), FLAT, whole(50, 30))
    assert region.bbox == (47, 28, 3, 2)
    (speck,) = find_regions(mask_of((0, 0, 1, 1)), FLAT, whole(10, 10))
    assert speck.bbox == (0, 0, 1, 1)
    assert speck.area_px == 1


def test_area_in_square_millimetres() -> None:
    (region,) = find_regions(mask_of((0, 0, 10, 10)), FLAT, whole(128, 128), pixel_size_mm=0.1)
    assert region.area_px == 400
    assert region.area_mm2 == pytest.approx(4.0)


def test_small_regions_are_left_out_in_source_pixels() -> None:
    mask = mask_of((0, 0, 3, 3), (20, 20, 4, 4), (40, 40, 5, 5))
    # Doubled sides: 36, 64 and 100 source pixels.
    regions = find_regions(mask, FLAT, whole(128, 128), min_region_px=64)
    assert sorted(region.area_px for region in regions) == [64, 100]


def test_the_largest_region_always_stays() -> None:
    regions = find_regions(mask_of((0, 0, 3, 3), (20, 20, 4, 4)), FLAT, whole(64, 64), min_region_px=1000)
    assert [region.area_px for region in regions] == [16]


def test_an_empty_mask_has_no_regions() -> None:
    assert find_regions(mask_of(), FLAT, whole(64, 64), min_region_px=5) == []


@settings(max_examples=40, deadline=None)
@given(
    bits=arrays(bool, (24, 32)),
    top=st.integers(0, 12),
    left=st.integers(0, 15),
    scale=st.tuples(st.floats(0.3, 4), st.floats(0.3, 4)),
)
def test_a_padded_frame_has_the_regions_of_its_own_part_of_the_map(
    bits: np.ndarray, top: int, left: int, scale: tuple[float, float]
) -> None:
    amap = np.random.default_rng(1).permutation(bits.size).reshape(bits.shape).astype(np.float32)
    area = Area(top, left, 11, 16)
    size = (max(1, round(16 * scale[0])), max(1, round(11 * scale[1])))
    part = np.s_[top : top + 11, left : left + 16]
    alone = find_regions(np.packbits(bits[part], axis=1), amap[part], whole(*size))
    assert find_regions(np.packbits(bits, axis=1), amap, whole(*size), area=area) == alone


def test_regions_of_a_part_of_the_frame_lie_where_that_part_does() -> None:
    mask, size = mask_of((0, 0, 3, 3), (20, 24, 4, 8)), (128, 200)
    alone = find_regions(mask, FLAT, whole(*size))
    within = find_regions(mask, FLAT, Roi(1000, 300, *size))
    assert len(within) == 2
    for there, here in zip(within, alone, strict=True):
        (x, y, width, height), (centre_x, centre_y) = here.bbox, here.centroid
        moved = msgspec.structs.replace(
            here, bbox=(x + 1000, y + 300, width, height), centroid=(centre_x + 1000, centre_y + 300)
        )
        assert there == moved
