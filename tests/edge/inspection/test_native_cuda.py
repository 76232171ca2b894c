"""The kernels' text as CUDA: it compiles for every GPU and, thread by thread, gives the native kernels' very bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.frames import Area, PixelFormat, aligned_f32
from edge.inspection import native
from edge.inspection.compare import Comparer
from edge.inspection.corrections import NOTHING, Corrections
from edge.inspection.cuda.compile import KERNELS
from edge.inspection.cuda.compilers import compilers
from edge.inspection.native import nearest
from edge.manifest import CanvasSpec, CompareSpec, InputSpec, MapSpec
from tests.edge.inspection.cuda.emulated import EmulatedGpu
from tests.edge.inspection.cuda.stages import Stages, model_of
from tests.edge.inspection.test_native_compare import check_summary, features
from tests.edge.inspection.test_native_compare import reference as reference_of_compare
from tests.edge.inspection.test_native_compare import run as run_compare
from tests.edge.inspection.test_native_hog import reference_cells, reference_map
from tests.edge.inspection.test_native_prepare import frame
from tests.edge.inspection.test_native_prepare import reference as reference_of_prepare

#: Turing, Ampere, Orin, Ada, Hopper, Blackwell, Thor, Blackwell.
ARCHITECTURES = (75, 86, 87, 89, 90, 100, 110, 120)
SOURCES = sorted(path.stem for path in KERNELS.glob("*.cu"))
seeds = st.integers(0, 2**32 - 1)


@contextmanager
def stages(*parts: object, seed: int, bank: np.ndarray | None = None) -> Iterator[Stages]:
    gpu = EmulatedGpu(seed=seed)
    yield Stages(gpu, model_of(*parts), bank)
    gpu.close()


def test_all_kernels_are_there() -> None:
    assert set(SOURCES) >= {"prepare", "hog", "nearest", "compare"}


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_every_kernel_compiles_for_gpus(source: str) -> None:
    compiler = next(compilers())
    quick = ("--Ofast-compile=max",) if compiler.version >= (12, 9) else ()
    for architecture in ARCHITECTURES:
        code = compiler.compile(KERNELS / f"{source}.cu", architecture, quick)
        assert code.startswith(b"\x7fELF")
        assert len(code) > 1000


@settings(max_examples=12)
@given(
    kind=st.sampled_from(list(PixelFormat)),
    height=st.integers(1, 45).map(lambda n: 2 * n),
    width=st.integers(1, 60).map(lambda n: 2 * n),
    out=st.tuples(st.sampled_from([32, 64]), st.sampled_from([32, 96])),
    pad=st.integers(0, 4),
    flat=st.booleans(),
    seed=seeds,
)
def test_prepare(kind, height, width, out, pad, flat, seed):
    rng = np.random.default_rng(seed)
    rows = height * 3 // 2 if kind is PixelFormat.NV12 else height
    shape = (rows, width + pad, 3) if kind in (PixelFormat.BGR8, PixelFormat.RGB8) else (rows, width + pad)
    pixels = rng.integers(0, 256, shape, dtype=np.uint8)[:, :width]
    gains = rng.integers(2000, 9000, (height, width), dtype=np.uint16) if flat else None
    corrections = Corrections(flat_field=gains) if flat else NOTHING
    spec = InputSpec(height=out[0], width=out[1])
    preprocessor = native.Preprocessor(spec, MapSpec(), corrections=corrections)
    x = aligned_f32(3, *out)
    preprocessor.prepare(pixels, kind, x)
    with stages(spec, seed=seed) as device:
        found_x, found_grey = device.prepare(pixels, kind, corrections)
    np.testing.assert_array_equal(found_x, x)
    np.testing.assert_array_equal(found_grey, preprocessor.grey)
    if not flat and kind in (PixelFormat.BGR8, PixelFormat.RGB8, PixelFormat.MONO8):
        expected_x, expected_grey = reference_of_prepare(pixels, kind, spec)
        np.testing.assert_allclose(found_x, expected_x, atol=2e-5)
        np.testing.assert_allclose(found_grey, expected_grey, atol=2e-6)


@settings(max_examples=8)
@given(
    height=st.sampled_from([32, 64]),
    width=st.sampled_from([32, 288]),
    cell=st.sampled_from([2, 8, 16]),
    n=st.integers(1, 18),
    seed=seeds,
)
def test_hog(height, width, cell, n, seed):
    grey = np.random.default_rng(seed).random((height, width), dtype=np.float32)
    spec, maps = InputSpec(height=height, width=width), MapSpec(orientations=n, cell=cell)
    preprocessor = native.Preprocessor(spec, maps)
    preprocessor.grey[:] = grey
    h = aligned_f32(*preprocessor.map_shape)
    preprocessor.hog(h)
    with stages(spec, maps, seed=seed) as device:
        found_cells, found_h = device.hog(grey)
    np.testing.assert_array_equal(found_cells, preprocessor.cells)
    np.testing.assert_array_equal(found_h, h)
    expected = reference_cells(grey, n, cell)
    np.testing.assert_allclose(found_cells, expected, atol=1e-5 * max(1.0, float(expected.max())))
    np.testing.assert_allclose(found_h, reference_map(expected, maps.epsilon, maps.clip), atol=5e-5)


@settings(max_examples=6)
@given(entries=st.integers(1, 9), pool=st.sampled_from([1, 2, 4]), levels=st.integers(1, 4), seed=seeds)
def test_nearest(entries, pool, levels, seed):
    rng = np.random.default_rng(seed)
    spec, maps = InputSpec(height=32, width=64), MapSpec(descriptor_pool=pool)
    preprocessor = native.Preprocessor(spec, maps)
    h = rng.integers(0, levels, preprocessor.map_shape).astype(np.float32)
    descriptor = aligned_f32(preprocessor.descriptor_size)
    bank = rng.integers(0, levels, (entries, descriptor.size)).astype(np.float32)
    preprocessor.grey[:] = 0
    with stages(spec, maps, seed=seed, bank=bank) as device:
        found, best = device.choose(h)
    pooled = h.reshape(9, 4 // pool, pool, 8 // pool, pool).mean(axis=(2, 4), dtype=np.float64).ravel()
    np.testing.assert_allclose(found, pooled / (np.linalg.norm(pooled) or 1), atol=1e-6)
    assert best == nearest(found, bank)[0]


@settings(max_examples=10)
@given(
    scales=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=3),
    size=st.tuples(st.sampled_from([32, 64]), st.sampled_from([32, 288])),
    sigma=st.sampled_from([0.0, 1.0, 4.0]),
    k=st.one_of(st.integers(1, 60), st.integers(61, 5000)),
    quantile=st.floats(0, 1),
    seed=seeds,
)
def test_compare(scales, size, sigma, k, quantile, seed):
    spec = CompareSpec(scales=tuple(scales), sigma=sigma, top_k=k)
    fx, fy = features(np.random.default_rng(seed), spec)
    expected = reference_of_compare(fx, fy, spec, *size)
    threshold = float(np.quantile(expected, quantile))
    with stages(InputSpec(height=size[0], width=size[1]), None, spec, seed=seed) as device:
        result, anomaly_map, mask = device.compare([(fx, fy)], threshold)
    np.testing.assert_allclose(anomaly_map, expected, atol=1e-5)
    check_summary(result, anomaly_map, mask, threshold, k)
    native_result, native_map, native_mask = run_compare(fx, fy, spec, *size, threshold)
    assert result == native_result
    np.testing.assert_array_equal(anomaly_map, native_map)
    np.testing.assert_array_equal(mask, native_mask)


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_one_bad_value_makes_score_and_peak_nan(bad):
    spec = CompareSpec(scales=((8, 16, 24), (6, 8, 12)))
    fx, fy = features(np.random.default_rng(3), spec)
    fx[1][1, 2, 3] = bad
    with stages(InputSpec(height=64, width=96), None, spec, seed=1) as device:
        result, anomaly_map, mask = device.compare([(fx, fy)], 0.1)
    _, native_map, native_mask = run_compare(fx, fy, spec, 64, 96, 0.1)
    assert np.isnan([result.score, result.peak]).all()
    np.testing.assert_array_equal(anomaly_map, native_map)
    np.testing.assert_array_equal(mask, native_mask)


@pytest.mark.parametrize("area", [Area(0, 0, 96, 160), Area(5, 13, 80, 131)])
def test_compare_of_tiles(area):
    spec = CompareSpec(scales=((8, 16, 24), (6, 8, 12)), top_k=3000)
    inputs, canvas = InputSpec(height=64, width=96), CanvasSpec(rows=2, columns=2, overlap=32)
    rng = np.random.default_rng(4)
    tiles = [features(rng, spec) for _ in range(4)]
    comparer = Comparer(spec, 64, 96, canvas)
    expected, expected_mask = aligned_f32(96, 160), np.zeros((96, 20), np.uint8)
    for tile in range(3):
        comparer.add(tile, *tiles[tile], expected)
    expected_result = comparer.finish(*tiles[3], area, 0.4, expected, expected_mask)
    with stages(inputs, None, spec, canvas, seed=5) as device:
        result, anomaly_map, mask = device.compare(tiles, 0.4, area)
    assert result == expected_result
    np.testing.assert_array_equal(anomaly_map, expected)
    np.testing.assert_array_equal(mask, expected_mask)


def test_tiles_of_a_frame():
    inputs, canvas = InputSpec(height=32, width=64), CanvasSpec(rows=2, columns=2, overlap=0)
    pixels = frame(np.random.default_rng(6), 70, 90, PixelFormat.BGR8)
    preprocessor = native.Preprocessor(inputs, MapSpec(), canvas)
    x = aligned_f32(3, 32, 64)
    with stages(inputs, None, None, canvas, seed=7) as device:
        for tile in range(4):
            preprocessor.prepare(pixels, PixelFormat.BGR8, x, tile)
            np.testing.assert_array_equal(device.prepare(pixels, PixelFormat.BGR8, tile=tile)[0], x)
