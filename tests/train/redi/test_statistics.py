"""The statistics of good features, against the formulas in NumPy and float64."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import openvino as ov
import pytest
import torch
from numpy.typing import NDArray

from train.redi.discriminate import Features
from train.redi.level import SHARPNESS, WORST
from train.redi.level import SMALL as LEVEL_SMALL
from train.redi.memory import joined, resized, vectors
from train.redi.statistics import (
    EDGES,
    FAMILIARITY,
    RIDGE,
    RIGHT,
    SHRINKAGE,
    SMALL,
    TOLERATED,
    FeatureStatistics,
    Pair,
    ScaleStatistics,
)

F64 = NDArray[np.float64]
SCALES = ((4, 8, 12), (6, 4, 6), (8, 2, 3))


def some(seed: int, batch: int = 3, scale: tuple[int, int, int] = SCALES[0]) -> torch.Tensor:
    return torch.rand(batch, *scale, generator=torch.Generator().manual_seed(seed)) + 0.1


def near(x: torch.Tensor, seed: int) -> torch.Tensor:
    """What recovery might make of it: better on the left."""
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) - 0.5
    return x + noise * torch.linspace(0.1, 1.0, x.shape[3])


def good_pairs() -> list[Pair]:
    batches = [some(1), some(2, batch=5)]
    return [(x, near(x, seed)) for seed, x in enumerate(batches)]


def fitted(
    density_weight: float,
    expected: bool,
    pairs: list[Pair] | None = None,
    level: bool = False,
    unfamiliar: list[torch.Tensor] | None = None,
) -> ScaleStatistics:
    statistics = ScaleStatistics(SCALES[0][0], SCALES[0][1:], density_weight, expected, level)
    statistics.fit(good_pairs() if pairs is None else pairs, unfamiliar)
    return statistics.eval()


def distances(statistics: ScaleStatistics, x: torch.Tensor, y: torch.Tensor) -> F64:
    """`(N, h, w)`."""
    with torch.no_grad():
        found: F64 = statistics(x, y)[:, 0].double().numpy()
    return found


def compared(a: torch.Tensor, b: torch.Tensor) -> F64:
    """What a station makes of the core's outputs."""
    return (1 - torch.cosine_similarity(a.double(), b.double(), dim=1)).numpy()


def unit(f: torch.Tensor) -> F64:
    """Unit vectors as rows."""
    rows: F64 = f.double().movedim(1, -1).reshape(-1, f.shape[1]).numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def powers(height: int, width: int) -> list[F64]:
    """The polynomial's terms at every place."""
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    return [np.ones_like(x), y, x, y**2, x**2, x * y, y**4, x**4]


def mahalanobis(x: torch.Tensor) -> F64:
    """`g` of every place of `x`, by the definition."""

    def polynomial(f: torch.Tensor) -> F64:
        return np.tile(np.stack(powers(*f.shape[2:]), -1).reshape(-1, 8), (len(f), 1))

    pairs = good_pairs()
    good, terms = np.concatenate([unit(f) for f, _ in pairs]), np.concatenate([polynomial(f) for f, _ in pairs])
    mean = np.linalg.lstsq(terms, good, rcond=None)[0]
    good = good - terms @ mean
    covariance = good.T @ good / len(good)
    shrunk = covariance + SHRINKAGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))

    def squared(rows: F64) -> F64:
        return np.einsum("nc,cd,nd->n", rows, np.linalg.inv(shrunk), rows)

    return (squared(unit(x) - polynomial(x) @ mean) / squared(good).mean()).reshape(len(x), *x.shape[2:])


def plain(x: torch.Tensor, y: torch.Tensor) -> F64:
    return (1 - torch.cosine_similarity(x.double(), y.double(), dim=1)).numpy()


def tangent(x: torch.Tensor, y: torch.Tensor) -> F64:
    """`a` of every place, by the definition, before anything divides it."""
    squared = (1 - plain(x, y)) ** 2
    return np.asarray((1 - squared) / (squared + RIGHT))


def of_good(cue: Callable[[torch.Tensor, torch.Tensor], F64]) -> list[F64]:
    return [cue(x, y) for x, y in good_pairs()]


def in_units(cue: F64, good: list[F64], weight: float = 1.0) -> F64:
    """A cue as it counts, given what it is on good parts."""
    places = np.sort(np.concatenate(good).reshape(8, -1), 1)
    return SHARPNESS * weight * cue / places[:, -max(1, round(WORST * places.shape[1])) :].mean(1).mean()


def combined(*cues: F64) -> F64:
    return np.asarray(1 - 1 / np.sqrt(1 + sum(cues)))


def test_unfitted_the_cosine_is_what_it_was() -> None:
    x, y = some(5), some(6)
    found = distances(ScaleStatistics(4, (8, 12), 1.0, False), x, y)
    np.testing.assert_allclose(found, combined(tangent(x, y)), atol=1e-6)
    np.testing.assert_allclose(found, plain(x, y), atol=1e-2)
    found = distances(ScaleStatistics(4, (8, 12), 1.0, True), x, y)
    np.testing.assert_allclose(found, combined(tangent(x, y) / (1 + 1 / TOLERATED)), atol=1e-6)


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_angle_and_density_count_in_units_of_the_worst_that_good_parts_have_of_them(weight: float) -> None:
    x, y = some(7), some(8)
    wanted = combined(
        in_units(tangent(x, y), of_good(tangent)),
        in_units(mahalanobis(x), of_good(lambda x, _: mahalanobis(x)), weight),
    )
    np.testing.assert_allclose(distances(fitted(weight, False), x, y), wanted, atol=1e-5)


def test_what_the_memory_does_not_know_counts_by_its_square_and_half_again_as_much() -> None:
    x, y = some(7), some(8)
    good = [some(30 + seed, len(x), (1, 8, 12)) for seed, (x, _) in enumerate(good_pairs())]
    n = some(40, 3, (1, 8, 12))
    with torch.no_grad():
        found = fitted(0, False, unfamiliar=good)(x, y, n)[:, 0].double().numpy()
    squares = [g[:, 0].double().numpy() ** 2 for g in good]
    known = in_units(n[:, 0].double().numpy() ** 2, squares, FAMILIARITY)
    np.testing.assert_allclose(found, combined(in_units(tangent(x, y), of_good(tangent)), known), atol=1e-5)


def expectation() -> Callable[[torch.Tensor], F64]:
    """`E / E_mean` of every place, by least squares on good parts."""
    terms = powers(8, 12)
    from_top, from_left = (np.arange(8) + 0.5) / 8, (np.arange(12) + 0.5) / 12
    for reach in EDGES:
        vertical, horizontal = (
            [np.exp(-where / reach), np.exp((where - 1) / reach)] for where in (from_top, from_left)
        )
        terms += [np.outer(near_edge, np.ones(12)) for near_edge in vertical]
        terms += [np.outer(np.ones(8), near_edge) for near_edge in horizontal]
        terms += [np.outer(one, other) for one in vertical for other in horizontal]
    place = np.stack(terms, -1).reshape(8 * 12, -1)

    def regressors(y: torch.Tensor) -> F64:
        return np.concatenate([unit(y), np.tile(place, (len(y), 1))], 1)

    design = np.concatenate([regressors(y) for _, y in good_pairs()])
    found = np.concatenate([combined(angle).ravel() for angle in of_good(tangent)])
    penalty = np.sqrt(RIDGE * len(found) / 4) * np.eye(design.shape[1])
    wanted = np.linalg.lstsq(
        np.concatenate([design, penalty]),
        np.concatenate([np.log(found + SMALL), np.zeros(design.shape[1])]),
        rcond=None,
    )[0]
    limits = (design @ wanted).min(), (design @ wanted).max()
    mean = found.mean()
    return lambda y: np.exp(np.clip(regressors(y) @ wanted, *limits)).reshape(len(y), 8, 12) / mean


def test_the_expected_distance_divides_the_angle() -> None:
    usual = expectation()
    x = some(9)
    y = near(x, 10)
    wanted = in_units(
        tangent(x, y) / (1 + usual(y) / TOLERATED), of_good(lambda x, y: tangent(x, y) / (1 + usual(y) / TOLERATED))
    )
    np.testing.assert_allclose(distances(fitted(0, True), x, y), combined(wanted), rtol=2e-3)


def test_together_the_distance_is_that_of_the_formula() -> None:
    usual = expectation()
    x, y = some(11), some(12)
    angle = in_units(
        tangent(x, y) / (1 + usual(y) / TOLERATED), of_good(lambda x, y: tangent(x, y) / (1 + usual(y) / TOLERATED))
    )
    rare = in_units(mahalanobis(x), of_good(lambda x, _: mahalanobis(x)))
    np.testing.assert_allclose(distances(fitted(1.0, True), x, y), combined(angle, rare), rtol=2e-3)


def test_angle_and_density_are_relative_to_the_image_s_levels() -> None:
    x, y = some(11), some(12)
    levelled, plainly = fitted(1.0, False, level=True), fitted(1.0, False)
    assert levelled.angle_level is not None
    assert levelled.density_level is not None
    levelled.units.copy_(plainly.units)
    for level, usual in ((levelled.angle_level, -0.9), (levelled.density_level, 0.4)):
        level.share.fill_(0.7)
        level.usual.fill_(usual)
        level.limits.copy_(torch.tensor([-9.0, 9.0]))

    def over(values: F64, usual: float) -> F64:
        level = np.log(values + LEVEL_SMALL).mean((1, 2), keepdims=True)
        return np.asarray(values * np.exp(0.7 * (usual - level)))

    with torch.no_grad():
        rare = plainly._rare(x, x.norm(dim=1, keepdim=True))[:, 0].double().numpy()
    wanted = combined(float(plainly.units[0]) * over(tangent(x, y), -0.9), float(plainly.units[1]) * over(rare, 0.4))
    np.testing.assert_allclose(distances(levelled, x, y), wanted, atol=2e-5)
    assert np.abs(distances(levelled, x, y) - distances(plainly, x, y)).max() > 0.05


def test_features_that_point_away_stay_so() -> None:
    statistics = fitted(0, False, level=True)
    assert statistics.angle_level is not None
    statistics.angle_level.share.fill_(1.0)
    x = some(13)
    found = distances(statistics, x, -near(x, 14))
    assert found.min() > 1


def test_what_is_usual_at_its_place_is_not_unusual_elsewhere_it_is() -> None:
    """Features that turn with the place, along both axes: at their own place as usual as features get, mirrored not."""
    angle = torch.linspace(0, 1, 12).expand(8, 12) + torch.linspace(0, 0.5, 8)[:, None]
    turning = torch.stack([angle.cos(), angle.sin(), angle * 0 + 0.3, angle * 0 + 0.1])[None]
    good = [turning + 0.01 * torch.randn(6, 4, 8, 12, generator=torch.Generator().manual_seed(15))]
    statistics = fitted(1.0, False, [(x, x) for x in good])
    own = distances(statistics, turning, turning)
    mirrored = distances(statistics, turning.flip(3), turning.flip(3))
    assert own.max() < 0.5 * mirrored[..., [0, -1]].min()


def test_what_recovery_usually_gets_wrong_counts_less() -> None:
    x = some(13)
    y = near(x, 14)
    statistics = fitted(0, True)
    found = (1 / (1 - distances(statistics, x, y)) ** 2 - 1) / tangent(x, y)
    assert found[:, :, :3].mean() > 1.2 * found[:, :, -3:].mean()


def test_features_that_good_parts_do_not_have_cannot_expect_more_than_the_worst_of_those() -> None:
    statistics = fitted(0, True)
    strange = -some(15)
    worst = max(float(statistics._usual(y, y.norm(dim=1, keepdim=True)).detach().max()) for _, y in good_pairs())
    for factor in (1.0, 1e3):
        found = statistics._usual(factor * strange, factor * strange.norm(dim=1, keepdim=True)).detach()
        assert float(found.max()) <= worst * (1 + 1e-5)


@pytest.mark.parametrize(
    ("weight", "expected", "level", "memory"),
    [(0, True, False, 0), (1, False, False, 0), (0, False, True, 0), (0, False, False, 5)],
)
def test_with_any_statistic_two_channels_come_out_of_every_scale(
    weight: float, expected: bool, level: bool, memory: int
) -> None:
    statistics = FeatureStatistics(SCALES, weight, expected, level=level, memory=memory)
    with torch.no_grad():
        outputs = statistics(features(1), features(2))
    assert [tuple(o.shape[1:]) for o in outputs] == 2 * [(2, h, w) for _, h, w in SCALES]
    assert {statistics.channels(c) for c, _, _ in SCALES} == {2}


def test_without_statistics_features_come_out_as_they_are() -> None:
    statistics = FeatureStatistics(SCALES, 0, False, level=False)
    reference, recovered = features(1), features(2)
    for out, given in zip(statistics(reference, recovered), (*reference, *recovered), strict=True):
        assert torch.equal(out, given)
    assert [statistics.channels(c) for c, _, _ in SCALES] == [c for c, _, _ in SCALES]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_comes_out_is_as_far_apart_as_the_distance_says(dtype: torch.dtype) -> None:
    statistics = whole()
    assert statistics.memory is not None
    reference, recovered = features(5), features(6)
    near_by = tuple(x + 1e-3 * y for x, y in zip(reference, recovered, strict=True))
    for other in (recovered, near_by):
        with torch.no_grad():
            outputs = copy.deepcopy(statistics).to(dtype)(
                tuple(x.to(dtype) for x in reference), tuple(y.to(dtype) for y in other)
            )
        assert all(each.dtype == dtype for each in outputs)
        with torch.no_grad():
            n = statistics.memory(joined(reference, statistics.grid))
        for level, scale in enumerate(statistics.scales):
            assert isinstance(scale, ScaleStatistics)
            with torch.no_grad():
                size = (SCALES[level][1], SCALES[level][2])
                wanted = scale(reference[level], other[level], resized(n, size))[:, 0].double().numpy()
            tolerance = 1e-5 if dtype == torch.float32 else 2e-2
            np.testing.assert_allclose(compared(outputs[level], outputs[3 + level]), wanted, rtol=tolerance, atol=1e-6)


class Flat(torch.nn.Module):
    """Statistics with their six inputs in a row, as graphs have them."""

    def __init__(self) -> None:
        super().__init__()
        self.statistics = whole()

    def forward(self, *both: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs: tuple[torch.Tensor, ...] = self.statistics(both[:3], both[3:])
        return outputs


def whole() -> FeatureStatistics:
    """All statistics of all scales, fitted."""
    statistics = FeatureStatistics(SCALES, 1.0, True, memory=20)
    batches = [(features(1), features(2)), (features(3), features(4))]
    assert statistics.memory is not None
    looked_at = [(reference, torch.arange(3) + 3 * place) for place, (reference, _) in enumerate(batches)]
    places = torch.cat([vectors(joined(reference, statistics.memory.grid)) for reference, _ in batches])
    owners = torch.arange(6).repeat_interleave(places.shape[1])
    statistics.fit(batches, statistics.memory.fit(places.flatten(0, 1), owners, looked_at, seed=0))
    return statistics


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", [0, 3])
def test_what_is_no_number_stays_none_on_the_station_too(wrong: float, side: int) -> None:
    """A runtime may make a number of NaN where values are limited: then a broken network's parts would pass."""
    flat, pair = Flat(), [*features(20), *features(21)]
    pair[side][0, 1, 2, 3] = wrong
    graph = ov.convert_model(flat, example_input=tuple(pair))
    compiled = ov.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with torch.no_grad():
        in_torch = flat(*pair)
    for outputs in (in_torch, [torch.from_numpy(value) for value in compiled(pair).values()]):
        found = compared(outputs[0], outputs[3])
        assert np.isnan(found[0, 2, 3])
        assert np.isfinite(found[1]).all()


def features(seed: int) -> Features:
    fine, middle, coarse = (some(seed, scale=scale) for scale in SCALES)
    return fine, middle, coarse


def test_every_scale_is_fitted_to_its_own_features() -> None:
    statistics = FeatureStatistics(SCALES, 1.0, True)
    batches = [(features(1), features(2)), (features(3), features(4))]
    statistics.fit(batches)
    for level, (channels, height, width) in enumerate(SCALES):
        alone = ScaleStatistics(channels, (height, width), 1.0, True)
        alone.fit([(x[level], y[level]) for x, y in batches])
        assert all(
            torch.equal(value, statistics.scales[level].state_dict()[name])
            for name, value in alone.state_dict().items()
        )


@pytest.mark.parametrize("level", [False, True])
@pytest.mark.parametrize("size", [0.02, 1.0, 60.0])
def test_neither_the_size_of_features_nor_half_precision_matters(size: float, level: bool) -> None:
    statistics = fitted(1.0, True, level=level)
    for each in (statistics.angle_level, statistics.density_level):
        if each is not None:
            each.share.fill_(1.0)
    x = some(16)
    y = near(x, 17)
    exact = distances(statistics, x, y)
    np.testing.assert_allclose(distances(statistics, size * x, size * y), exact, rtol=2e-2 if size < 1 else 1e-3)
    found = distances(copy.deepcopy(statistics).half(), (size * x).half(), (size * y).half())
    np.testing.assert_allclose(found.mean(), exact.mean(), rtol=2e-2)


@pytest.mark.parametrize("nothing", [torch.zeros(2, 4, 8, 12), torch.ones(2, 4, 8, 12)])
def test_features_without_any_variety_give_finite_distances(nothing: torch.Tensor) -> None:
    statistics = fitted(1.0, True, [(nothing, nothing)], level=True)
    for x, y in ((nothing, nothing), (some(18), nothing[:1].expand(3, -1, -1, -1)), (some(18), some(19))):
        with torch.no_grad():
            assert bool(statistics(x, y).isfinite().all())
