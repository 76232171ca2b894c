"""The fused comparison, against SciPy, torch and a float64 reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from edge.errors import BundleMismatchError
from edge.frames import aligned_f32
from edge.inspection.native import Comparer, Comparison, isas
from edge.manifest import CompareSpec

SMALL = CompareSpec(scales=((8, 16, 24), (6, 8, 12), (4, 4, 6)), sigma=4.0, top_k=50)


def features(rng: np.random.Generator, spec: CompareSpec, noise: float = 0.5) -> tuple[list, list]:
    fx = [rng.standard_normal(scale, dtype=np.float32) for scale in spec.scales]
    fy = [array + noise * rng.standard_normal(array.shape, dtype=np.float32) for array in fx]
    return fx, fy


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return 1 - (a * b).sum(axis=0) / (np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0) + 1e-12)


def upsample(image: np.ndarray, height: int, width: int) -> np.ndarray:
    for axis, size in enumerate((height, width)):
        source = image.shape[axis]
        position = (np.arange(size) + 0.5) * source / size - 0.5
        image = np.apply_along_axis(lambda line, p=position: np.interp(p, np.arange(line.size), line), axis, image)
    return image


def reference(fx: list, fy: list, spec: CompareSpec, height: int, width: int) -> np.ndarray:
    total = sum(upsample(distance(a, b), height, width) for a, b in zip(fx, fy, strict=True))
    return gaussian_filter(total, spec.sigma, mode="reflect", truncate=4.0) if spec.sigma else total


def run(fx, fy, spec, height, width, threshold=0.5, isa=None) -> tuple[Comparison, np.ndarray, np.ndarray]:
    anomaly_map, mask = aligned_f32(height, width), np.full((height, width // 8), 0xAA, np.uint8)
    result = Comparer(spec, height, width, isa=isa)(fx, fy, threshold, anomaly_map, mask)
    return result, anomaly_map, mask


def check_summary(result: Comparison, anomaly_map: np.ndarray, mask: np.ndarray, threshold: float, k: int) -> None:
    flagged = anomaly_map > np.float32(threshold)
    np.testing.assert_array_equal(mask, np.packbits(flagged, axis=1))
    assert result.flagged == flagged.sum()
    assert result.peak == anomaly_map.max()
    largest = np.sort(anomaly_map, axis=None)[-min(k, anomaly_map.size) :].astype(np.float64)
    assert result.score == pytest.approx(largest.mean(), rel=2e-6, abs=1e-30)


sides = st.sampled_from([32, 64, 96, 288])
scales = st.lists(st.tuples(st.integers(1, 13), st.integers(1, 70), st.integers(1, 70)), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(
    scales=scales,
    height=sides,
    width=sides,
    sigma=st.sampled_from([0.0, 0.3, 1.0, 4.0, 20.0]),
    k=st.integers(1, 5000),
    quantile=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_scales(scales, height, width, sigma, k, quantile, seed):
    spec = CompareSpec(scales=tuple(scales), sigma=sigma, top_k=k)
    fx, fy = features(np.random.default_rng(seed), spec)
    expected = reference(fx, fy, spec, height, width)
    threshold = float(np.quantile(expected, quantile))
    outcomes = [run(fx, fy, spec, height, width, threshold, isa) for isa in isas()]
    result, anomaly_map, mask = outcomes[0]
    np.testing.assert_allclose(anomaly_map, expected, atol=1e-5)
    check_summary(result, anomaly_map, mask, threshold, k)
    for other, other_map, other_mask in outcomes[1:]:
        assert other == result
        np.testing.assert_array_equal(other_map, anomaly_map)
        np.testing.assert_array_equal(other_mask, mask)


@pytest.mark.parametrize("size", [(256, 256), (64, 96)])
def test_agrees_with_torch_and_scipy(size):
    torch = pytest.importorskip("torch")
    scales = tuple((c, size[0] // step, size[1] // step) for c, step in ((64, 4), (128, 8), (256, 16)))
    spec = CompareSpec(scales=scales)
    fx, fy = features(np.random.default_rng(0), spec)
    total = torch.zeros(1, 1, *size, dtype=torch.float64)
    for a, b in zip(fx, fy, strict=True):
        x, y = torch.from_numpy(a).double(), torch.from_numpy(b).double()
        d = 1 - torch.nn.functional.cosine_similarity(x, y, dim=0)[None, None]
        total += torch.nn.functional.interpolate(d, size=size, mode="bilinear", align_corners=False)
    expected = gaussian_filter(total[0, 0].numpy(), spec.sigma, mode="reflect", truncate=4.0)
    result, anomaly_map, mask = run(fx, fy, spec, *size, threshold=0.4)
    np.testing.assert_allclose(anomaly_map, expected, atol=1e-5)
    check_summary(result, anomaly_map, mask, 0.4, 100)


@settings(max_examples=40, deadline=None)
@given(levels=st.integers(1, 5), k=st.integers(1, 32 * 64 + 50), seed=st.integers(0, 2**32 - 1))
def test_top_k_with_ties(levels, k, seed):
    # One full-size scale without smoothing: the map is the distances themselves, here of a few equal values.
    spec = CompareSpec(scales=((2, 32, 64),), sigma=0.0, top_k=k)
    rng = np.random.default_rng(seed)
    angle = rng.choice(rng.uniform(0, np.pi, levels), (32, 64))
    fx = [np.broadcast_to(np.array([1, 0], np.float32)[:, None, None], (2, 32, 64)).copy()]
    fy = [np.stack([np.cos(angle), np.sin(angle)]).astype(np.float32)]
    result, anomaly_map, mask = run(fx, fy, spec, 32, 64, 1.0)
    assert np.unique(anomaly_map).size <= levels
    check_summary(result, anomaly_map, mask, 1.0, k)


@pytest.mark.parametrize("k", [1, 31, 32, 33, 64, 65, 2048, 10**9])
def test_top_k_of_a_constant_map(k):
    spec = CompareSpec(scales=((3, 1, 1),), sigma=2.0, top_k=k)
    fx, fy = [np.array([1, 0, 0], np.float32).reshape(3, 1, 1)], [np.array([0, 1, 0], np.float32).reshape(3, 1, 1)]
    result, anomaly_map, mask = run(fx, fy, spec, 32, 64, 0.5)
    np.testing.assert_allclose(anomaly_map, 1.0, rtol=1e-6)
    assert result.flagged == 2048
    check_summary(result, anomaly_map, mask, 0.5, k)


def test_identical_features_are_near_zero_and_never_below():
    fx, _ = features(np.random.default_rng(1), SMALL)
    result, anomaly_map, _ = run(fx, [array.copy() for array in fx], SMALL, 64, 96)
    assert anomaly_map.min() >= 0
    assert anomaly_map.max() < 1e-6
    assert 0 <= result.score <= result.peak < 1e-6


def test_opposite_features_reach_two_per_scale_and_zero_features_one():
    fx, _ = features(np.random.default_rng(2), SMALL)
    np.testing.assert_allclose(run(fx, [-array for array in fx], SMALL, 64, 96)[1], 6, rtol=1e-5)
    zeros = [np.zeros_like(array) for array in fx]
    np.testing.assert_allclose(run(zeros, zeros, SMALL, 64, 96)[1], 3, rtol=1e-5)


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("level", range(3))
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_one_bad_value_makes_score_and_peak_nan(isa, level, bad, side):
    both = features(np.random.default_rng(3), SMALL)
    both[side][level][1, 2, 3] = bad
    result, anomaly_map, mask = run(*both, SMALL, 64, 96, 0.1, isa)
    assert np.isnan(anomaly_map).any()
    assert np.isnan(result.score)
    assert np.isnan(result.peak)
    np.testing.assert_array_equal(mask, np.packbits(anomaly_map > 0.1, axis=1))


def test_infinite_threshold_flags_nothing():
    fx, fy = features(np.random.default_rng(4), SMALL)
    result, _, mask = run(fx, fy, SMALL, 64, 96, np.inf)
    assert result.flagged == 0
    assert not mask.any()


def test_batch_axis_of_one_is_accepted_and_changes_nothing():
    fx, fy = features(np.random.default_rng(5), SMALL)
    plain = run(fx, fy, SMALL, 64, 96)
    batched = run([a[None] for a in fx], [a[None] for a in fy], SMALL, 64, 96)
    assert batched[0] == plain[0]
    np.testing.assert_array_equal(batched[1], plain[1])


def test_an_object_can_be_used_again():
    comparer = Comparer(SMALL, 64, 96)
    anomaly_map, mask = aligned_f32(64, 96), np.zeros((64, 12), np.uint8)
    for seed in range(4):
        fx, fy = features(np.random.default_rng(seed), SMALL, noise=seed / 2)
        result = comparer(fx, fy, 0.3, anomaly_map, mask)
        fresh, fresh_map, fresh_mask = run(fx, fy, SMALL, 64, 96, 0.3)
        assert result == fresh
        np.testing.assert_array_equal(anomaly_map, fresh_map)
        np.testing.assert_array_equal(mask, fresh_mask)


def test_nothing_is_written_beyond_the_outputs():
    fx, fy = features(np.random.default_rng(6), SMALL)
    map_buffer, mask_buffer = np.full(64 * 96 + 128, 7, np.float32), np.full(64 * 12 + 128, 7, np.uint8)
    Comparer(SMALL, 64, 96)(fx, fy, 0.3, map_buffer[64:-64].reshape(64, 96), mask_buffer[64:-64].reshape(64, 12))
    for buffer in (map_buffer, mask_buffer):
        assert (buffer[:64] == 7).all()
        assert (buffer[-64:] == 7).all()


def bad_features():
    fx, fy = features(np.random.default_rng(7), SMALL)
    yield fx[:2], fy
    yield fx, [*fy, fy[0]]
    yield [fx[1], fx[0], fx[2]], fy
    yield [fx[0].astype(np.float64), *fx[1:]], fy
    yield [fx[0].astype(np.float16), *fx[1:]], fy
    yield fx, [np.asfortranarray(fy[0]), *fy[1:]]
    yield fx, [np.stack([fy[0], fy[0]]), *fy[1:]]


@pytest.mark.parametrize("arguments", list(bad_features()))
def test_features_that_do_not_fit(arguments):
    with pytest.raises(BundleMismatchError):
        run(*arguments, SMALL, 64, 96)


@pytest.mark.parametrize(
    ("anomaly_map", "mask"),
    [
        (np.zeros((96, 64), np.float32), np.zeros((64, 12), np.uint8)),
        (np.zeros((64, 96), np.float64), np.zeros((64, 12), np.uint8)),
        (np.zeros((64, 96), np.float32), np.zeros((64, 96), np.uint8)),
        (np.zeros((64, 96), np.float32), np.zeros((64, 12), bool)),
        (np.zeros((64, 96), np.float32), np.zeros((64, 24), np.uint8)[:, ::2]),
        (np.broadcast_to(np.float32(0), (64, 96)), np.zeros((64, 12), np.uint8)),
    ],
)
def test_outputs_that_do_not_fit(anomaly_map, mask):
    fx, fy = features(np.random.default_rng(8), SMALL)
    with pytest.raises(ValueError, match=r"anomaly_map|mask"):
        Comparer(SMALL, 64, 96)(fx, fy, 0.5, anomaly_map, mask)


@pytest.mark.parametrize(
    ("spec", "height", "width"),
    [
        (SMALL, 64, 90),
        (SMALL, 0, 96),
        (CompareSpec(scales=()), 64, 96),
        (CompareSpec(scales=((0, 4, 4),)), 64, 96),
        (CompareSpec(scales=((4, 4, 4),), sigma=-1.0), 64, 96),
        (CompareSpec(scales=((4, 4, 4),), sigma=float("nan")), 64, 96),
        (CompareSpec(scales=((4, 4, 4),), top_k=0), 64, 96),
    ],
)
def test_specifications_that_cannot_be_served(spec, height, width):
    with pytest.raises(BundleMismatchError):
        Comparer(spec, height, width)
