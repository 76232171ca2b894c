"""Time the native kernels, stage by stage and instruction set by instruction set, beside what else could do the work.

    python tests/benchmarks/bench_kernels.py [--json] [--repeats N]

Everything runs on one thread at an output of 256 x 256.  Each figure is the median and the interquartile range, in
milliseconds, of single calls after a warm-up; alternatives are measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.ndimage import gaussian_filter
from skimage.feature import hog

from edge.frames import F32, U8, PixelFormat, aligned_f32
from edge.inspection.native import Comparer, Preprocessor, isas, nearest
from edge.manifest import CompareSpec, InputSpec, MapSpec

SIZE = 256
FRAMES = ((512, 512), (900, 900), (1080, 1920))
SCALES = ((64, 64, 64), (128, 32, 32), (256, 16, 16))
BANK = 64

Case = tuple[str, str, Callable[[], object]]


def measure(function: Callable[[], object], repeats: int) -> dict[str, float]:
    """Return `median_ms`, `iqr_ms` and `calls` of single calls, after a tenth as many to warm up."""
    for _ in range(max(2, repeats // 10)):
        function()
    times = np.empty(repeats)
    for i in range(repeats):
        start = time.perf_counter_ns()
        function()
        times[i] = (time.perf_counter_ns() - start) / 1e6
    low, median, high = np.percentile(times, [25, 50, 75])
    return {"median_ms": round(float(median), 4), "iqr_ms": round(float(high - low), 4), "calls": repeats}


def native_cases(isa: str, rng: np.random.Generator, fx: list[F32], fy: list[F32]) -> Iterator[Case]:
    """Yield every stage on one instruction set."""
    preprocessor = Preprocessor(InputSpec(height=SIZE, width=SIZE), MapSpec(), isa=isa)
    comparer = Comparer(CompareSpec(scales=SCALES), SIZE, SIZE, isa=isa)
    x, h = aligned_f32(3, SIZE, SIZE), aligned_f32(*preprocessor.map_shape)
    descriptor = aligned_f32(preprocessor.descriptor_size)
    anomaly_map, mask = aligned_f32(SIZE, SIZE), np.zeros((SIZE, SIZE // 8), np.uint8)
    bank = rng.random((BANK, descriptor.size), dtype=np.float32)
    for height, width in FRAMES:
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        size = f"{width}x{height}"
        yield f"prepare {size}", isa, partial(preprocessor.prepare, pixels, PixelFormat.BGR8, x)
        yield f"before {size}", isa, partial(preprocessor, pixels, PixelFormat.BGR8, x, h, descriptor)
    yield "hog", isa, partial(preprocessor.hog, h)
    yield f"nearest of {BANK}", isa, partial(nearest, descriptor, bank, isa=isa)
    yield "after", isa, partial(comparer, fx, fy, 0.5, anomaly_map, mask)


def other_cases(rng: np.random.Generator, fx: list[F32], fy: list[F32]) -> Iterator[Case]:
    """Yield the same work written with well-known libraries."""
    spec = InputSpec(height=SIZE, width=SIZE)
    mean, std = np.array(spec.mean, np.float32), np.array(spec.std, np.float32)

    def opencv_prepare(pixels: U8) -> F32:
        small = cv2.resize(pixels, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)
        return np.ascontiguousarray(((small[..., ::-1] * np.float32(spec.scale) - mean) / std).transpose(2, 0, 1))

    def opencv_compare() -> tuple[float, U8]:
        total = np.zeros((SIZE, SIZE), np.float32)
        for a, b in zip(fx, fy, strict=True):
            norms = np.sqrt((a * a).sum(axis=0) * (b * b).sum(axis=0))
            total += cv2.resize(1 - (a * b).sum(axis=0) / (norms + 1e-12), (SIZE, SIZE))
        smooth = cv2.GaussianBlur(total, (33, 33), 4.0, borderType=cv2.BORDER_REFLECT)
        return float(np.partition(smooth, -100, axis=None)[-100:].mean()), np.packbits(smooth > 0.5, axis=1)

    grey = rng.random((SIZE, SIZE))
    total = rng.random((SIZE, SIZE), dtype=np.float32)
    for height, width in FRAMES:
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        yield f"prepare {width}x{height}", "OpenCV + NumPy", partial(opencv_prepare, pixels)
    yield "hog", "scikit-image", partial(hog, grey, 9, (8, 8), (2, 2), "L2-Hys", feature_vector=False)
    yield "after", "OpenCV + NumPy", opencv_compare
    yield "after: only the Gaussian", "SciPy", partial(gaussian_filter, total, 4.0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run every case and print a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--repeats", type=int, default=100, help="timed calls for each figure (default 100)")
    options = parser.parse_args(argv)
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    fx = [rng.standard_normal(scale, dtype=np.float32) for scale in SCALES]
    fy = [a + 0.3 * rng.standard_normal(a.shape, dtype=np.float32) for a in fx]
    cases = [case for isa in isas() for case in native_cases(isa, rng, fx, fy)] + list(other_cases(rng, fx, fy))
    results = [(stage, name, measure(function, options.repeats)) for stage, name, function in cases]
    results.sort(key=lambda row: row[:2])
    if options.json:
        rows = [{"stage": stage, "with": name, **figures} for stage, name, figures in results]
        print(json.dumps({"machine": platform.machine(), "output": SIZE, "results": rows}))
        return 0
    table = Table(title=f"Kernels on one thread, output {SIZE} x {SIZE}, milliseconds")
    for heading in ("stage", "with", "median", "IQR"):
        table.add_column(heading, justify="right" if heading in ("median", "IQR") else "left")
    for stage, name, figures in results:
        table.add_row(stage, name, f"{figures['median_ms']:.3f}", f"{figures['iqr_ms']:.3f}")
    Console().print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
