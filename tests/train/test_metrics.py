from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import auc, average_precision_score, f1_score, roc_auc_score

from edge.errors import DataError
from train.aupro import aupro, rank_pixels
from train.metrics import METRIC_NAMES, compute_curves, compute_metrics, image_auroc

Maps = list[NDArray[np.float32]]
Masks = list[NDArray[np.bool_]]


def flood_components(mask: NDArray[np.bool_]) -> list[list[tuple[int, int]]]:
    """8-connected components by flood fill, independent of any library."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    components = []
    while left:
        stack, component = [left.pop()], []
        while stack:
            y, x = stack.pop()
            component.append((y, x))
            for neighbour in [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
                if neighbour in left:
                    left.remove(neighbour)
                    stack.append(neighbour)
        components.append(component)
    return components


def brute_force_aupro(maps: Maps, masks: Masks, limit: float) -> float:
    """The definition: every score there is as the threshold, then the trapezoid rule up to the limit."""
    regions = [
        [float(scored[at]) for at in component]
        for scored, mask in zip(maps, masks, strict=True)
        for component in flood_components(mask)
    ]
    normal = [
        float(value)
        for scored, mask in zip(maps, masks, strict=True)
        for value, bad in zip(scored.ravel(), mask.ravel(), strict=True)
        if not bad
    ]
    points = [(0.0, 0.0)]
    for threshold in sorted({float(value) for scored in maps for value in scored.ravel()}, reverse=True):
        rate = sum(value >= threshold for value in normal) / len(normal)
        overlap = sum(sum(v >= threshold for v in region) / len(region) for region in regions) / len(regions)
        points.append((rate, overlap))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x1 <= limit:
            area += (x1 - x0) * (y0 + y1) / 2
        else:
            y_limit = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            area += (limit - x0) * (y0 + y_limit) / 2
            break
    return area / limit


@st.composite
def scored_sets(draw: st.DrawFn) -> tuple[Maps, Masks]:
    """Small maps of few levels, so that ties abound, with at least one good and one defect pixel."""
    seed = draw(st.integers(0, 2**32 - 1))
    levels = draw(st.sampled_from([1, 2, 3, 8, 1000]))
    density = draw(st.sampled_from([0.05, 0.3, 0.8]))
    shapes = draw(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 9)), min_size=1, max_size=3))
    rng = np.random.default_rng(seed)
    maps = [(rng.integers(0, levels, shape) / 7.0).astype(np.float32) for shape in shapes]
    masks = [rng.random(shape) < density for shape in shapes]
    maps.append(np.array([[rng.integers(0, levels), rng.integers(0, levels)]], np.float32) / 7)
    masks.append(np.array([[True, False]]))
    return maps, masks


@settings(max_examples=150, deadline=None)
@given(scored_sets(), st.sampled_from([0.05, 0.3, 0.5, 1.0]))
def test_aupro_equals_the_brute_force_definition(test_set: tuple[Maps, Masks], limit: float) -> None:
    maps, masks = test_set
    assert aupro(maps, masks, limit) == pytest.approx(brute_force_aupro(maps, masks, limit), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(scored_sets())
def test_pixel_metrics_equal_those_over_all_pixels(test_set: tuple[Maps, Masks]) -> None:
    maps, masks = test_set
    labels = [int(mask.any()) for mask in masks]
    metrics = compute_metrics(labels, [0.0] * len(maps), maps, masks)
    truth = np.concatenate([mask.ravel() for mask in masks])
    scores = np.concatenate([scored.ravel() for scored in maps])
    best = max(f1_score(truth, scores >= threshold) for threshold in np.unique(scores))
    assert metrics.pixel_auroc == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert metrics.pixel_ap == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
    assert metrics.pixel_f1_max == pytest.approx(best, abs=1e-12)


def test_aupro_by_hand() -> None:
    # Region A: 2 pixels (scores 9, 5), region B: 1 pixel (7).  Twelve good pixels: 8, 6, and ten of 1.
    # Thresholds 9, 8, 7, 6, 5, 1: FPR 0, 1/12, 1/12, 2/12, 2/12, 1; PRO 1/4, 1/4, 3/4, 3/4, 1, 1.
    scored = np.array([[9, 5, 8, 1, 7], [6, 1, 1, 1, 1], [1, 1, 1, 1, 1]], np.float32)
    mask = np.zeros((3, 5), bool)
    mask[0, :2] = mask[0, 4] = True
    expected = (1 / 12 * 1 / 4 + 1 / 12 * 3 / 4 + (0.3 - 2 / 12) * 1) / 0.3
    assert aupro([scored], [mask], 0.3) == pytest.approx(expected, abs=1e-12)
    # The limit inside the first level stretch: PRO is 0.25 all the way.
    assert aupro([scored], [mask], 0.05) == pytest.approx(0.25, abs=1e-12)


def test_diagonal_neighbours_are_one_region() -> None:
    mask = np.eye(4, dtype=bool)
    ranking = rank_pixels([np.zeros((4, 4), np.float32)], [mask])
    assert (ranking.regions, ranking.good, ranking.defect) == (1, 12, 4)


def test_each_region_counts_alike_whatever_its_size() -> None:
    scored = np.zeros((20, 20), np.float32)
    mask = np.zeros((20, 20), bool)
    mask[:10, :10] = True
    mask[15, 15] = True
    scored[:10, :10] = 1.0
    # The large region is found, the single pixel ties with all good ones: PRO climbs from 0.5 to 1 in one slant.
    assert aupro([scored], [mask], 1.0) == pytest.approx(0.75)
    scored[:10, :10], scored[15, 15] = 0.0, 1.0
    assert aupro([scored], [mask], 1.0) == pytest.approx(0.75)


def test_perfect_and_inverted_maps() -> None:
    mask = np.zeros((8, 8), bool)
    mask[2:4, 2:4] = True
    clear, full = np.zeros((8, 8), np.float32), np.ones((8, 8), np.float32)
    perfect = compute_metrics([0, 1], [0.1, 0.9], [clear, mask.astype(np.float32)], [None, mask])
    assert [getattr(perfect, name) for name in METRIC_NAMES] == [pytest.approx(1.0)] * 8
    assert perfect.reasons == {}
    inverted = compute_metrics([0, 1], [0.9, 0.1], [full, 1 - mask.astype(np.float32)], [None, mask])
    assert (inverted.image_auroc, inverted.pixel_auroc, inverted.aupro_5) == (0.0, 0.0, 0.0)


def test_image_metrics_on_a_known_ranking() -> None:
    # Descending: defect, good, defect, good: 3 of 4 pairs in order, precision 1 and 2/3 at the two recalls.
    metrics = compute_metrics([1, 0, 1, 0], [4.0, 3.0, 2.0, 1.0], [np.zeros((1, 1), np.float32)] * 4, [None] * 4)
    assert metrics.image_auroc == pytest.approx(0.75)
    assert metrics.image_ap == pytest.approx((1 + 2 / 3) / 2)
    assert metrics.image_f1_max == pytest.approx(0.8)


def test_defects_without_masks_do_not_touch_pixel_metrics() -> None:
    rng = np.random.default_rng(3)
    maps = [rng.random((6, 6)).astype(np.float32) for _ in range(4)]
    mask = rng.random((6, 6)) < 0.3
    with_extra = compute_metrics([0, 1, 1, 1], [0, 1, 2, 3], maps, [None, mask, None, None])
    without = compute_metrics([0, 1], [0, 1], maps[:2], [None, mask])
    for name in METRIC_NAMES[3:]:
        assert getattr(with_extra, name) == getattr(without, name)


@pytest.mark.parametrize(
    ("labels", "masks", "reason_of"),
    [
        (
            [0, 0],
            [None, None],
            {"image_auroc": "no defect images", "aupro_5": "no defect images with a mask"},
        ),
        ([1, 1], [np.ones((2, 2), bool)] * 2, {"image_ap": "no good images", "pixel_ap": "no good pixels"}),
        ([0, 1], [None, None], {"pixel_auroc": "no defect images with a mask"}),
        ([0, 1], [None, np.zeros((2, 2), bool)], {"pixel_f1_max": "no defect pixels in any mask"}),
    ],
)
def test_absent_class_is_none_with_a_reason(labels, masks, reason_of) -> None:  # type: ignore[no-untyped-def]
    maps = [np.eye(2, dtype=np.float32)] * 2
    metrics = compute_metrics(labels, [0.0, 1.0], maps, masks)
    for name, reason in reason_of.items():
        assert getattr(metrics, name) is None
        assert metrics.reasons[name] == reason
    assert all((getattr(metrics, name) is None) == (name in metrics.reasons) for name in METRIC_NAMES)
    curves = compute_curves(labels, [0.0, 1.0], maps, masks)
    assert (curves.image_roc is None) == (metrics.image_auroc is None)
    assert (curves.pro is None) == (metrics.aupro_30 is None)


def test_aupro_alone_is_nan_without_regions() -> None:
    assert math.isnan(aupro([np.zeros((2, 2), np.float32)], [np.zeros((2, 2), bool)], 0.3))
    assert image_auroc([1, 1], [0.0, 1.0]) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_values_are_refused(bad: float) -> None:
    maps = [np.zeros((2, 2), np.float32), np.full((2, 2), bad, np.float32)]
    masks = [None, np.eye(2, dtype=bool)]
    with pytest.raises(DataError, match="map 1 of 2"):
        compute_metrics([0, 1], [0.0, 1.0], maps, masks)
    with pytest.raises(DataError, match="image score 1"):
        compute_metrics([0, 1], [0.0, bad], maps[:1] * 2, masks)


def test_shape_and_limit_errors() -> None:
    with pytest.raises(ValueError, match="its mask"):
        aupro([np.zeros((2, 3), np.float32)], [np.zeros((3, 2), bool)], 0.3)
    for limit in (0.0, 1.1):
        with pytest.raises(ValueError, match="limit"):
            aupro([np.eye(2, dtype=np.float32)], [np.eye(2, dtype=bool)], limit)


def test_thinned_curves_keep_their_areas() -> None:
    rng = np.random.default_rng(11)
    masks = [rng.random((64, 64)) < 0.1 for _ in range(4)]
    maps = [(rng.normal(size=(64, 64)) + 1.5 * mask).astype(np.float32) for mask in masks]
    labels = [0, 0, 1, 1]
    metrics = compute_metrics(labels, [0, 2, 1, 3], maps, [None, None, *masks[2:]])
    curves = compute_curves(labels, [0, 2, 1, 3], maps, [None, None, *masks[2:]])
    assert curves.pixel_roc is not None
    assert curves.pixel_pr is not None
    assert curves.pro is not None
    assert curves.image_roc is not None
    assert len(curves.pixel_roc.x) < 3000
    assert auc(curves.pixel_roc.x, curves.pixel_roc.y) == pytest.approx(metrics.pixel_auroc, abs=3e-3)
    assert auc(curves.pixel_pr.x, curves.pixel_pr.y) == pytest.approx(metrics.pixel_ap, abs=3e-3)
    assert auc(curves.image_roc.x, curves.image_roc.y) == pytest.approx(metrics.image_auroc)
    assert (curves.pro.x[0], curves.pro.y[0], curves.pro.x[-1], curves.pro.y[-1]) == (0, 0, 1, 1)


def test_float32_order_is_exact() -> None:
    # Two neighbouring floats around one: a ranking that rounds would call them equal.
    low = np.float32(1.0)
    high = np.nextafter(low, np.float32(2.0))
    scored = np.array([[high, low]], np.float32)
    assert compute_metrics([1], [0.0], [scored], [np.array([[True, False]])]).pixel_auroc == 1.0
