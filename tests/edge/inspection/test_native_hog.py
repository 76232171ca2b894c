"""The self-generated map, its descriptor and the nearest prompt, against float64 references and scikit-image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.feature import hog

from edge.frames import PixelFormat, aligned_f32
from edge.inspection.native import Preprocessor, isas, nearest
from edge.manifest import InputSpec, MapSpec


def reference_cells(grey: np.ndarray, n: int, cell: int) -> np.ndarray:
    grey = grey.astype(np.float64)
    gx, gy = np.zeros_like(grey), np.zeros_like(grey)
    gx[:, 1:-1] = grey[:, 2:] - grey[:, :-2]
    gy[1:-1] = grey[2:] - grey[:-2]
    magnitude = np.hypot(gx, gy)
    angles = (np.arange(n) + 0.5) * np.pi / n
    along = np.abs(gx * np.cos(angles)[:, None, None] + gy * np.sin(angles)[:, None, None])
    share = np.maximum(along - np.cos(np.pi / n) * magnitude, 0)
    total = share.sum(axis=0)
    votes = np.divide(share * magnitude, total, out=np.zeros_like(share), where=total > 0)
    high, wide = grey.shape[0] // cell, grey.shape[1] // cell
    return votes.reshape(n, high, cell, wide, cell).mean(axis=(2, 4))


def reference_map(cells: np.ndarray, epsilon: float, clip: float) -> np.ndarray:
    _, high, wide = cells.shape
    total, count = np.zeros_like(cells), np.zeros((high, wide))
    for y in range(high - 1):
        for x in range(wide - 1):
            block = cells[:, y : y + 2, x : x + 2]
            block = np.minimum(block / np.sqrt((block**2).sum() + epsilon**2), clip)
            total[:, y : y + 2, x : x + 2] += block / np.sqrt((block**2).sum() + epsilon**2)
            count[y : y + 2, x : x + 2] += 1
    return total / count


def run(grey: np.ndarray, maps: MapSpec, isa: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    preprocessor = Preprocessor(InputSpec(height=grey.shape[0], width=grey.shape[1]), maps, isa=isa)
    preprocessor.grey[:] = grey
    h = aligned_f32(*preprocessor.map_shape)
    preprocessor.hog(h)
    return h, preprocessor.cells


@settings(max_examples=30, deadline=None)
@given(
    height=st.sampled_from([32, 64]),
    width=st.sampled_from([32, 64, 288]),
    cell=st.sampled_from([2, 4, 8, 16]),
    n=st.integers(1, 18),
    epsilon=st.sampled_from([1e-5, 0.05, 1.0]),
    clip=st.sampled_from([0.1, 0.2, 1.0]),
    smooth=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_specification(height, width, cell, n, epsilon, clip, smooth, seed):
    rng = np.random.default_rng(seed)
    grey = rng.random((height, width), dtype=np.float32)
    if smooth:
        grey = np.cumsum(np.cumsum(grey - 0.5, axis=0), axis=1).astype(np.float32) / 40
    maps = MapSpec(orientations=n, cell=cell, epsilon=epsilon, clip=clip)
    results = [run(grey, maps, isa) for isa in isas()]
    h, cells = results[0]
    expected = reference_cells(grey, n, cell)
    np.testing.assert_allclose(cells, expected, atol=1e-5 * max(1.0, float(expected.max())))
    np.testing.assert_allclose(h, reference_map(expected, epsilon, clip), atol=5e-5)
    for other_h, other_cells in results[1:]:
        np.testing.assert_array_equal(other_cells, cells)
        np.testing.assert_array_equal(other_h, h)


def skimage_map(grey: np.ndarray) -> np.ndarray:
    """scikit-image's blocks, each cell averaged over the blocks that contain it; shape (9, cells, cells)."""
    blocks = hog(grey.astype(np.float64), 9, (8, 8), (2, 2), "L2-Hys", feature_vector=False)
    high, wide = blocks.shape[0] + 1, blocks.shape[1] + 1
    total, count = np.zeros((high, wide, 9)), np.zeros((high, wide, 1))
    for y in range(2):
        for x in range(2):
            total[y : y + high - 1, x : x + wide - 1] += blocks[:, :, y, x]
            count[y : y + high - 1, x : x + wide - 1] += 1
    return (total / count).transpose(2, 0, 1)


@pytest.mark.parametrize("k", range(9))
def test_ramps_at_bin_centres_agree_with_skimage(k):
    angle = np.deg2rad(10 + 20 * k)
    y, x = np.mgrid[:96, :128]
    grey = ((x * np.cos(angle) + y * np.sin(angle)) / 256).astype(np.float32)
    h, cells = run(grey, MapSpec(epsilon=1e-5))
    # Border pixels have half a gradient, whose angle is no bin's centre.
    np.testing.assert_allclose(h[:, 2:-2, 2:-2], skimage_map(grey)[:, 2:-2, 2:-2], atol=1e-3)
    inside = cells[:, 1:-1, 1:-1]
    np.testing.assert_allclose(inside[k], 2 / 256, rtol=1e-3)
    np.testing.assert_allclose(np.delete(inside, k, axis=0), 0, atol=1e-4 / 256)


def test_horizontal_stripes_agree_with_skimage_everywhere():
    # Vertical gradients are at 90°, a bin's centre, on the border too.
    rows = np.random.default_rng(0).random((96, 1), dtype=np.float32)
    h, _ = run(np.broadcast_to(rows, (96, 128)).copy(), MapSpec(epsilon=1e-5))
    np.testing.assert_allclose(h, skimage_map(np.broadcast_to(rows, (96, 128))), atol=1e-4)


@given(angle=st.floats(0, 180), n=st.integers(2, 18))
@settings(max_examples=40, deadline=None)
def test_votes_add_up_to_the_magnitude_and_are_shared_by_two_neighbours(angle, n):
    y, x = np.mgrid[:32, :32]
    grey = (x * np.cos(np.deg2rad(angle)) + y * np.sin(np.deg2rad(angle))).astype(np.float32) / 64
    votes = run(grey, MapSpec(orientations=n))[1][:, 1, 1]
    assert votes.sum() == pytest.approx(2 / 64, rel=1e-4)
    position = angle * n / 180 - 0.5
    for k in range(n):
        away = abs((k - position + n / 2) % n - n / 2)
        if away > 1.001:
            assert votes[k] < 1e-4 / 64


def test_black_and_uniform_frames_have_no_map_and_no_descriptor():
    preprocessor = Preprocessor(InputSpec(), MapSpec())
    x, h, descriptor = aligned_f32(3, 256, 256), aligned_f32(9, 32, 32), aligned_f32(preprocessor.descriptor_size)
    for level in (0, 255):
        h[:], descriptor[:] = 1, 1
        pixels = np.full((300, 400), level, np.uint8)
        preprocessor(pixels, PixelFormat.MONO8, x, h, descriptor)
        np.testing.assert_allclose(h, 0, atol=1e-4)
        assert np.isfinite(descriptor).all()
    preprocessor(np.zeros((300, 400), np.uint8), PixelFormat.MONO8, x, h, descriptor)
    assert not h.any()
    assert not descriptor.any()


@settings(max_examples=30, deadline=None)
@given(
    size=st.tuples(st.sampled_from([32, 64]), st.sampled_from([32, 96])),
    pool=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 2**32 - 1),
)
def test_descriptor_is_the_pooled_map_at_unit_length(size, pool, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    spec, maps = InputSpec(height=size[0], width=size[1]), MapSpec(descriptor_pool=pool)
    descriptors = []
    for isa in isas():
        preprocessor = Preprocessor(spec, maps, isa=isa)
        h, descriptor = aligned_f32(*preprocessor.map_shape), aligned_f32(preprocessor.descriptor_size)
        preprocessor(pixels, PixelFormat.BGR8, aligned_f32(3, *size), h, descriptor)
        descriptors.append(descriptor)
    n, high, wide = h.shape
    pooled = h.astype(np.float64).reshape(n, high // pool, pool, wide // pool, pool).mean(axis=(2, 4)).ravel()
    np.testing.assert_allclose(descriptors[0], pooled / np.linalg.norm(pooled), atol=1e-6)
    for other in descriptors[1:]:
        np.testing.assert_array_equal(other, descriptors[0])


@settings(max_examples=50, deadline=None)
@given(entries=st.integers(1, 150), size=st.integers(1, 400), seed=st.integers(0, 2**32 - 1))
def test_nearest_is_the_largest_dot_product(entries, size, seed):
    rng = np.random.default_rng(seed)
    bank = rng.standard_normal((entries, size), dtype=np.float32)
    descriptor = rng.standard_normal(size, dtype=np.float32)
    products = bank.astype(np.float64) @ descriptor.astype(np.float64)
    results = {nearest(descriptor, bank, isa=isa) for isa in isas()}
    assert len(results) == 1
    index, similarity = results.pop()
    assert products[index] >= products.max() - 1e-4
    assert similarity == pytest.approx(products[index], abs=1e-4)


def test_nearest_takes_the_lowest_index_of_equals():
    bank = np.tile(np.array([[0, 1], [1, 0], [1, 0], [0, 1]], np.float32), (20, 1))
    assert nearest(np.array([1, 0], np.float32), bank) == (1, 1.0)
    assert nearest(np.zeros(2, np.float32), bank) == (0, 0.0)


@pytest.mark.parametrize(
    ("descriptor", "bank"),
    [
        (np.zeros(4, np.float32), np.zeros((0, 4), np.float32)),
        (np.zeros(4, np.float32), np.zeros((3, 5), np.float32)),
        (np.zeros(4, np.float64), np.zeros((3, 4), np.float32)),
        (np.zeros(4, np.float32), np.zeros((3, 4), np.float16)),
        (np.zeros(4, np.float32), np.zeros((4, 3), np.float32).T),
        (np.zeros(4, np.float32), np.zeros(4, np.float32)),
    ],
)
def test_nearest_refuses_what_does_not_fit(descriptor, bank):
    with pytest.raises(ValueError, match=r"bank|descriptor"):
        nearest(descriptor, bank)
