"""A map put together from tiles, against float64 NumPy and SciPy."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from edge.errors import BundleMismatchError
from edge.frames import F32, U8, Area, aligned_f32
from edge.inspection.native import Comparer, Comparison, isas
from edge.manifest import ONE_TILE, CanvasSpec, CompareSpec

HEIGHT, WIDTH = 64, 96
SPEC = CompareSpec(scales=((5, 16, 24), (7, 8, 12)), sigma=2.0, top_k=30)
Sides = tuple[list[F32], list[F32]]


def features(rng: np.random.Generator) -> Sides:
    fx = [rng.normal(size=scale).astype(np.float32) for scale in SPEC.scales]
    return fx, [(array + rng.normal(size=array.shape)).astype(np.float32) for array in fx]


def reference(fx: list[F32], fy: list[F32]) -> np.ndarray:
    total = np.zeros((HEIGHT, WIDTH))
    for a, b in zip(fx, fy, strict=True):
        x, y = a.astype(np.float64), b.astype(np.float64)
        cosine = (x * y).sum(0) / np.sqrt((x * x).sum(0) * (y * y).sum(0))
        total += cv2.resize(1 - cosine, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
    return np.asarray(gaussian_filter(total, SPEC.sigma))


def corners(spec: CanvasSpec) -> list[tuple[int, int]]:
    down, across = HEIGHT - spec.overlap, WIDTH - spec.overlap
    return [(row * down, column * across) for row in range(spec.rows) for column in range(spec.columns)]


def stitched(spec: CanvasSpec, tiles: list[Sides]) -> np.ndarray:
    """Every tile weighted by its distance to its own edge, capped at the overlap: the same feather, another way."""
    places = corners(spec)
    shape = places[-1][0] + HEIGHT, places[-1][1] + WIDTH
    value, weight = np.zeros(shape), np.zeros(shape)
    for (top, left), sides in zip(places, tiles, strict=True):
        tents = []
        for at, side, length in ((top, HEIGHT, shape[0]), (left, WIDTH, shape[1])):
            position = np.arange(side) + 0.5
            before = position if at > 0 else np.full(side, np.inf)
            after = side - position if at + side < length else np.full(side, np.inf)
            tents.append(np.minimum(np.minimum(before, after), max(spec.overlap, 1e-9)))
        tent = np.outer(*tents)
        value[top : top + HEIGHT, left : left + WIDTH] += tent * reference(*sides)
        weight[top : top + HEIGHT, left : left + WIDTH] += tent
    return value / weight


def run(
    spec: CanvasSpec, tiles: list[Sides], area: Area | None = None, threshold: float = 1.0, isa: str | None = None
) -> tuple[Comparison, F32, U8]:
    comparer = Comparer(SPEC, HEIGHT, WIDTH, spec, isa=isa)
    height, width = comparer.shape
    anomaly_map, mask = aligned_f32(height, width), np.full((height, width // 8), 0xAA, np.uint8)
    anomaly_map.fill(7)
    for tile, sides in enumerate(tiles[:-1]):
        comparer.add(tile, *sides, anomaly_map)
    whole = Area(0, 0, height, width)
    return comparer.finish(*tiles[-1], area or whole, threshold, anomaly_map, mask), anomaly_map, mask


@settings(max_examples=25, deadline=None)
@given(
    fit=st.sampled_from(["stretch", "pad"]),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    overlap=st.sampled_from([0, 32]),
    cut=st.tuples(*[st.floats(0, 1)] * 4),
    seed=st.integers(0, 999),
)
def test_maps_masks_and_scores(
    fit: str, rows: int, columns: int, overlap: int, cut: tuple[float, float, float, float], seed: int
) -> None:
    spec = CanvasSpec(fit, rows, columns, overlap)
    rng = np.random.default_rng(seed)
    tiles = [features(rng) for _ in range(rows * columns)]
    expected = stitched(spec, tiles)
    height, width = expected.shape
    area = Area(0, 0, height, width)
    if fit == "pad":
        top, left = int(cut[0] * (height - 1)), int(cut[1] * (width - 1))
        area = Area(top, left, 1 + int(cut[2] * (height - top - 1)), 1 + int(cut[3] * (width - left - 1)))
    inside = np.zeros(expected.shape, bool)
    inside[area.top : area.top + area.height, area.left : area.left + area.width] = True
    threshold = float(np.median(expected))
    outcomes = [run(spec, tiles, area, threshold, isa) for isa in isas()]
    found, anomaly_map, mask = outcomes[0]
    np.testing.assert_allclose(anomaly_map, np.where(inside, expected, 0), atol=1e-5)
    flagged = anomaly_map > np.float32(threshold)
    np.testing.assert_array_equal(mask, np.packbits(flagged, axis=1))
    values = np.sort(anomaly_map[inside])[-SPEC.top_k :].astype(np.float64)
    assert found.score == pytest.approx(values.mean(), rel=1e-5)
    assert found.peak == values[-1]
    assert found.flagged == flagged.sum()
    for other, other_map, other_mask in outcomes[1:]:
        assert other == found
        np.testing.assert_array_equal(other_map, anomaly_map)
        np.testing.assert_array_equal(other_mask, mask)


@pytest.mark.parametrize("isa", isas())
def test_one_tile_gives_the_same_bits_however_it_is_called(isa: str) -> None:
    sides = features(np.random.default_rng(1))
    comparer = Comparer(SPEC, HEIGHT, WIDTH, isa=isa)
    anomaly_map, mask = aligned_f32(HEIGHT, WIDTH), np.zeros((HEIGHT, WIDTH // 8), np.uint8)
    called = comparer(*sides, 1.0, anomaly_map, mask)
    finished, finished_map, finished_mask = run(ONE_TILE, [sides], isa=isa)
    # All but one row is the frame, so that the map takes the long way.
    padded, padded_map, padded_mask = run(CanvasSpec("pad"), [sides], Area(0, 0, HEIGHT - 1, WIDTH), isa=isa)
    assert finished == called
    for other_map, other_mask in ((finished_map, finished_mask), (padded_map, padded_mask)):
        np.testing.assert_array_equal(other_map[:-1], anomaly_map[:-1])
        np.testing.assert_array_equal(other_mask[:-1], mask[:-1])
    assert padded.peak == anomaly_map[:-1].max()


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("tile", range(4))
def test_one_bad_value_makes_score_and_peak_nan_even_in_the_padding(isa: str, bad: float, tile: int) -> None:
    rng = np.random.default_rng(2)
    tiles = [features(rng) for _ in range(4)]
    tiles[tile][1][0][2, 0, 0] = bad
    found, anomaly_map, _ = run(CanvasSpec("pad", 2, 2, 32), tiles, Area(40, 60, 10, 20), isa=isa)
    assert np.isnan(anomaly_map).any()
    assert np.isnan(found.score)
    assert np.isnan(found.peak)


def test_nothing_is_written_beyond_the_outputs() -> None:
    rng = np.random.default_rng(3)
    spec = CanvasSpec("stretch", 2, 3, 32)
    comparer = Comparer(SPEC, HEIGHT, WIDTH, spec)
    size = comparer.shape[0] * comparer.shape[1]
    maps, masks = np.full(size + 128, 7, np.float32), np.full(size // 8 + 128, 7, np.uint8)
    anomaly_map, mask = maps[64:-64].reshape(comparer.shape), masks[64:-64].reshape(comparer.shape[0], -1)
    for tile in range(5):
        comparer.add(tile, *features(rng), anomaly_map)
    comparer.finish(*features(rng), Area(0, 0, *comparer.shape), 1.0, anomaly_map, mask)
    for buffer in (maps, masks):
        assert (buffer[:64] == 7).all()
        assert (buffer[-64:] == 7).all()


def test_what_does_not_fit_is_refused() -> None:
    sides = features(np.random.default_rng(4))
    comparer = Comparer(SPEC, HEIGHT, WIDTH, CanvasSpec(rows=2, overlap=32))
    small = aligned_f32(HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="anomaly_map"):
        comparer.add(0, *sides, small)
    with pytest.raises(ValueError, match="2 tiles"):
        comparer(*sides, 1.0, small, np.zeros((HEIGHT, WIDTH // 8), np.uint8))
    with pytest.raises(BundleMismatchError):
        comparer.add(0, sides[0][:1], sides[1], aligned_f32(*comparer.shape))
    with pytest.raises(BundleMismatchError):
        Comparer(SPEC, HEIGHT, WIDTH, CanvasSpec(rows=2, overlap=8))
