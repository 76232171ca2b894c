"""The GPU benchmark where there is none: that it counts bytes rightly, and that all of it but the clock works."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from edge.bundle import Bundle
from edge.frames import PixelFormat, aligned_f32
from edge.inspection.compare import Comparer
from edge.inspection.cuda.runtime import CudaRuntime
from edge.inspection.native import Preprocessor
from edge.inspection.ports import core_inputs, core_outputs
from edge.manifest import MapSpec
from tests.benchmarks.gpu import other_hogs, torch_steps
from tests.benchmarks.gpu.bench_cuda import Row, kernel_rows, model, needed_bytes, time_frames, write_model
from tests.edge.inspection.cuda.emulated import EmulatedGpu
from tests.edge.inspection.cuda.network import NetworkEngine
from tests.tiny_bundle import TinyBundle


def test_bytes_are_what_a_step_cannot_do_without() -> None:
    spec = model(256)
    frame = np.zeros((512, 512, 3), np.uint8)
    x, grey, h = (np.zeros(shape, np.float32) for shape in ((3, 256, 256), (256, 256), (9, 32, 32)))
    bank, index = np.zeros((64, 9 * 16 * 16), np.float32), 0
    features = [np.zeros(scale, np.float32) for scale in ((64, 64, 64), (128, 32, 32), (256, 16, 16))]
    read = sum(array.nbytes for array in features)
    needed = needed_bytes(spec, frame.nbytes)
    assert needed["prepare"] == frame.nbytes + x.nbytes + grey.nbytes
    assert needed["hog"] == grey.nbytes + h.nbytes
    assert needed["choose"] == h.nbytes + bank.nbytes + index
    assert needed["gather"] == read + read // 2
    assert needed["compare"] == 2 * read + grey.nbytes + 256 * 256 // 8


def test_every_step_is_timed() -> None:
    gpu = EmulatedGpu()
    rows = {row.step: row for row in kernel_rows(gpu, model(64), (80, 96), 1, 4096)}
    gpu.close()
    assert list(rows) == ["copy", "prepare", "hog", "choose", "gather", "compare"]
    # The emulated device's clock says 10 microseconds for each piece of work: 4 copies and a mark, of 2 x 4096 bytes.
    assert rows["copy"].ms == pytest.approx(0.05 / 4)
    bandwidth = rows["copy"].bytes / rows["copy"].ms
    for row in rows.values():
        assert row.share == pytest.approx(row.bytes / row.ms / bandwidth)
    assert rows["hog"].ms == pytest.approx(0.031)


def test_a_frame_is_timed_beside_its_core(tiny: TinyBundle) -> None:
    gpu = EmulatedGpu()
    with Bundle.open(tiny.path) as bundle:
        engine = NetworkEngine(bundle, gpu)
        runtime = CudaRuntime(bundle, gpu=gpu, engine=engine)
        figures = time_frames(gpu, runtime, engine, 2)
        runtime.close()
    gpu.close()
    # The network alone is the smallest part of what is emulated here.
    assert 0 < figures["core_ms"] < figures["whole_ms"]
    assert figures["over_core"] == figures["whole_ms"] / figures["core_ms"]
    # Two to warm up, the first frame's, and three for each of two frames.
    assert engine.inferences == 3 + 2 * 3


def test_targets() -> None:
    assert Row("prepare", 1.0, 1, 0.61).reached
    assert Row("compare", 1.0, 1, 0.69).reached is False
    assert Row("choose", 1.0, 1, 0.01).reached is None


def test_pytorchs_steps_mean_the_same() -> None:
    rng = np.random.default_rng(0)
    spec = model(64)
    pixels = rng.integers(0, 256, (128, 192, 3), np.uint8)
    native = Preprocessor(spec.input, MapSpec())
    x, h = aligned_f32(3, 64, 64), aligned_f32(9, 8, 8)
    native(pixels, PixelFormat.BGR8, x, h, aligned_f32(native.descriptor_size))
    found, grey = torch_steps.prepare(torch.from_numpy(pixels), 64)
    np.testing.assert_allclose(found[0], x, atol=1e-4)
    np.testing.assert_allclose(torch_steps.hog(grey)[0], h, atol=1e-4)
    np.testing.assert_allclose(other_hogs.cells(np, grey[0, 0].numpy()), h, atol=1e-4)

    fx = [rng.standard_normal((1, *scale), np.float32) for scale in spec.compare.scales]
    fy = [rng.standard_normal((1, *scale), np.float32) for scale in spec.compare.scales]
    anomaly_map, mask = aligned_f32(64, 64), np.zeros((64, 8), np.uint8)
    expected = Comparer(spec.compare, 64, 64)(fx, fy, 0.5, anomaly_map, mask)
    score = torch_steps.compare([*map(torch.from_numpy, fx)], [*map(torch.from_numpy, fy)], 64)
    # PyTorch reflects without repeating the border.
    assert float(score) == pytest.approx(expected.score, rel=0.02)


def test_libraries_that_are_missing_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert other_hogs.other_hogs_ms(64, 1) == {}


def test_opencvs_is_timed_where_it_has_one() -> None:
    import cv2

    found = other_hogs.other_hogs_ms(64, 2)
    assert ("OpenCV, CPU" in found) == hasattr(cv2, "HOGDescriptor")
    assert all(ms > 0 for ms in found.values())


def test_the_core_fits_the_bundle(tmp_path: Path) -> None:
    spec = model(64)
    with Bundle.open(write_model(tmp_path / "redi.plan", spec)) as bundle:
        assert bundle.manifest.model == spec
    with torch.no_grad():
        given = {name: torch.rand(shape) for name, shape in core_inputs(spec).items()}
        found = torch_steps.make_core(spec, "cpu")(given)
    assert {name: tuple(value.shape) for name, value in found.items()} == core_outputs(spec)
