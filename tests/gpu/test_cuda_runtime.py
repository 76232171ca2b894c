"""The CUDA runtime on a real GPU, PyTorch in TensorRT's place, beside the portable runtime."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.bundle import Bundle
from edge.frames import Area, PixelFormat, Roi, Slot, aligned_bytes, aligned_f32
from edge.inspection.compare import Comparer
from edge.inspection.corrections import NOTHING, Corrections
from edge.inspection.cuda.device import Gpu, Graph, Stream
from edge.inspection.cuda.runtime import CudaRuntime
from edge.inspection.cuda.seat import Seat
from edge.inspection.inspector import Inspector
from edge.inspection.native import Preprocessor
from edge.manifest import ONE_TILE, CanvasSpec
from tests.edge.inspection.cuda.cases import FRAME_BYTES, PRODUCT, THRESHOLD, Reference, found, place
from tests.gpu.device_memory import read
from tests.tiny_bundle import TinyBundle, write_tiny_bundle

pytestmark = pytest.mark.gpu
ENTRY_BYTES = 2 * (1536 + 512 + 256)


@contextmanager
def opened(path: Path, gpu: Gpu, **settings: Any) -> Iterator[CudaRuntime]:
    from tests.gpu.torch_core import TorchEngine

    with Bundle.open(path) as bundle:
        runtime = CudaRuntime(bundle, gpu=gpu, engine=TorchEngine.of(bundle), **settings)
        yield runtime
        runtime.close()


def frames() -> list[tuple[np.ndarray, PixelFormat]]:
    grey = PRODUCT.defective(2)[..., 0].copy()
    yuv = np.random.default_rng(1).integers(0, 256, (90, 64), np.uint8)
    return [
        (PRODUCT.good(1), PixelFormat.BGR8),
        (PRODUCT.defective(3), PixelFormat.RGB8),
        (grey, PixelFormat.MONO8),
        (grey, PixelFormat.BAYER_RGGB),
        (yuv, PixelFormat.NV12),
        (np.repeat(PRODUCT.good(4), 3, axis=0), PixelFormat.BGR8),
    ]


@pytest.mark.parametrize("corrected", [False, True])
def test_kernels_give_the_native_kernels_bits(half: TinyBundle, gpu: Gpu, corrected: bool) -> None:
    gains = np.random.default_rng(3).integers(2048, 6000, (80, 96)).astype(np.uint16)
    corrections = Corrections(Roi(10, 4, 64, 70), gains) if corrected else NOTHING
    with opened(half.path, gpu, corrections=corrections) as runtime:
        spec = runtime._shared.model
        native = Preprocessor(spec.input, spec.map, corrections=corrections)
        compare = Comparer(spec.compare, 64, 64)
        x, h, descriptor = aligned_f32(3, 64, 64), aligned_f32(*native.map_shape), aligned_f32(native.descriptor_size)
        (slot,) = runtime.make_slots(1, FRAME_BYTES)
        plan = runtime._shared.plan
        for image, pixel_format in frames()[:2] if corrected else frames():
            outcome = runtime.run(place(slot, image, pixel_format), THRESHOLD)
            native(image, pixel_format, x, h, descriptor)
            np.testing.assert_array_equal(read(gpu, plan.ports["x"].address, np.float32, x.shape), x)
            np.testing.assert_array_equal(read(gpu, plan.ports["h"].address, np.float32, h.shape), h)
            found_descriptor = read(gpu, plan._descriptor.address, np.float32, descriptor.shape)
            np.testing.assert_array_equal(found_descriptor, descriptor)
            # What the core made of it, compared by the native kernels.
            fx, fy = (
                [
                    read(gpu, plan.ports[f"{side}_{level}"].address, np.float32, scale)
                    for level, scale in enumerate(spec.compare.scales)
                ]
                for side in ("fx", "fy")
            )
            anomaly_map, mask = aligned_f32(64, 64), aligned_bytes(512).reshape(64, 8)
            expected = compare.finish(fx, fy, Area(0, 0, 64, 64), THRESHOLD, anomaly_map, mask)
            np.testing.assert_array_equal(slot.anomaly_map, anomaly_map)
            np.testing.assert_array_equal(slot.mask, mask)
            assert (outcome.score, outcome.peak) == (expected.score, expected.peak)


@pytest.mark.parametrize("canvas", [ONE_TILE, CanvasSpec("pad", 2, 2, 32), CanvasSpec("stretch", 1, 3, 0)], ids=str)
def test_frames_are_found_as_the_portable_runtime_finds_them(tmp_path: Path, gpu: Gpu, canvas: CanvasSpec) -> None:
    path = write_tiny_bundle(tmp_path / "redi.plan", bank_dtype=np.float16, canvas=canvas).path
    reference = Reference(path)
    with opened(path, gpu) as runtime:
        slots = runtime.make_slots(3, FRAME_BYTES)
        for index, (image, pixel_format) in enumerate(frames() * 2):
            slot = place(slots[index % 3], image, pixel_format)
            runtime.stage(slot)
            here, there = found(runtime, slot), reference(image, pixel_format)
            assert here.score == pytest.approx(there.score, rel=1e-3)
            assert here.peak == pytest.approx(there.peak, rel=1e-3)
            assert here.prompt == there.prompt
            np.testing.assert_allclose(here.anomaly_map, there.anomaly_map, atol=1e-3)


def test_golden_frames_score_as_recorded(half: TinyBundle, gpu: Gpu) -> None:
    from tests.gpu.torch_core import TorchEngine

    with Bundle.open(half.path) as bundle:
        runtime = CudaRuntime(bundle, gpu=gpu, engine=TorchEngine.of(bundle))
        with Inspector(bundle, runtime=runtime) as inspector:
            assert max(result.error for result in inspector.verify_golden()) < 1e-3


def test_ten_thousand_frames_allocate_nothing(
    half: TinyBundle, reference: Reference, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    images = [PRODUCT.good(index) for index in range(5)]
    expected = [reference(image).score for image in images]
    with opened(half.path, gpu) as runtime:
        slots = runtime.make_slots(3, FRAME_BYTES)
        for slot in slots:
            runtime.run(place(slot, images[0]), THRESHOLD)
        recordings = 0
        record = type(gpu).record

        def counted(self: Any, *words: Any) -> Graph:
            nonlocal recordings
            recordings += 1
            return record(self, *words)

        monkeypatch.setattr(type(gpu), "record", counted)
        torch.cuda.synchronize()
        allocations, free = gpu.allocations, torch.cuda.mem_get_info()[0]
        for index in range(10_000):
            slot = place(slots[index % 3], images[index % 5])
            runtime.stage(slot)
            outcome = runtime.run(slot, THRESHOLD)
            assert outcome.score == pytest.approx(expected[index % 5], rel=1e-3)
        assert gpu.allocations == allocations
        assert torch.cuda.mem_get_info()[0] == free
        assert recordings == 0, "recorded work is launched again, never recorded again"


class Slow:
    """A core that takes a while."""

    describe = "a slow network"

    def __init__(self, inner: Any, cycles: int) -> None:
        self._inner, self._cycles = inner, cycles
        self.bind, self.close = inner.bind, inner.close

    def enqueue(self, stream: Stream) -> None:
        from tests.gpu.torch_core import on

        with on(stream) as cuda:
            cuda._sleep(self._cycles)
        self._inner.enqueue(stream)


def test_the_next_frame_is_copied_while_one_is_inspected(half: TinyBundle, gpu: Gpu) -> None:
    from tests.gpu.torch_core import TorchEngine

    with Bundle.open(half.path) as bundle:
        # Some hundred milliseconds on any device.
        runtime = CudaRuntime(bundle, gpu=gpu, engine=Slow(TorchEngine.of(bundle), 400_000_000))
        slots = runtime.make_slots(2, FRAME_BYTES)
        for slot in slots:
            runtime.run(place(slot, PRODUCT.good(0)), THRESHOLD)
        inspecting = threading.Thread(target=runtime.run, args=(slots[0], THRESHOLD))
        place(slots[1], PRODUCT.good(1))
        begun, ended = gpu.event(timing=True), gpu.event(timing=True)
        inspecting.start()
        begun.record(runtime._transfer)
        runtime.stage(slots[1])
        ended.record(runtime._transfer)
        seat = slots[1].seat
        assert isinstance(seat, Seat)
        seat.uploaded.synchronize()
        ended.synchronize()
        still_inspecting = inspecting.is_alive()
        inspecting.join()
        assert still_inspecting, f"the copy took {ended.elapsed_ms(begun):.2f} ms, and waited for the frame before it"
        runtime.close()


def test_prompts_move_while_two_cameras_inspect(half: TinyBundle, reference: Reference, gpu: Gpu) -> None:
    from tests.gpu.torch_core import TorchEngine

    wrong: list[tuple[int, float]] = []
    expected = [reference(PRODUCT.good(index)) for index in range(5)]

    def inspect(runtime: CudaRuntime, slot: Slot, seed: int) -> None:
        for index in np.random.default_rng(seed).integers(0, 5, 400).tolist():
            here = found(runtime, place(slot, PRODUCT.good(index)))
            if here.prompt != expected[index].prompt or abs(here.score / expected[index].score - 1) > 1e-3:
                wrong.append((index, here.score))

    with Bundle.open(half.path) as bundle:
        first = CudaRuntime(bundle, gpu=gpu, engine=TorchEngine.of(bundle), prompt_bytes=2 * ENTRY_BYTES)
        second = CudaRuntime(bundle, share=first, prompt_bytes=2 * ENTRY_BYTES)
        threads = []
        for seed, runtime in enumerate((first, second)):
            (slot,) = runtime.make_slots(1, FRAME_BYTES)
            # Recorded here: PyTorch prepares itself for each thread, which no recording may hold.
            runtime.run(place(slot, PRODUCT.good(0)), THRESHOLD)
            threads.append(threading.Thread(target=inspect, args=(runtime, slot, seed)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        report = first.caches["prompts"]
        second.close()
        first.close()
    assert wrong == []
    assert report.hits + report.misses == 802
    assert report.promotions > 10


_FAILS = """
import ctypes, sys
from edge.cli import command
from edge.bundle import Bundle
from edge.inspection.cuda.pycuda_device import own_gpu
from edge.inspection.cuda.runtime import CudaRuntime
from edge.inspection.ports import core_outputs
from tests.edge.inspection.cuda.cases import FRAME_BYTES, PRODUCT, place
from tests.gpu.device_memory import ConstantEngine

@command
def main(argv=None):
    gpu = own_gpu()
    with Bundle.open(sys.argv[1]) as bundle:
        runtime = CudaRuntime(bundle, gpu=gpu, engine=ConstantEngine(gpu, core_outputs(bundle.manifest.model)))
        (slot,) = runtime.make_slots(1, FRAME_BYTES)
        runtime.run(place(slot, PRODUCT.good(0)), 0.1)
        stream, nowhere = gpu.stream(), ctypes.c_void_p(64)
        gpu.launch(gpu.kernel("nearest", "bank_nearest"), 1, 32, (nowhere, ctypes.c_int(1), nowhere), stream)
        runtime.stage(slot)
        runtime.run(place(slot, PRODUCT.good(0)), 0.1)
        print("a verdict came")
    return 0

raise SystemExit(main([]))
"""


def test_a_failed_gpu_ends_the_process_with_its_code(half: TinyBundle, gpu: Gpu, root: Path) -> None:
    words = [sys.executable, "-c", _FAILS, str(half.path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=root)
    assert done.returncode == 6, done.stderr
    assert "a verdict came" not in done.stdout


def test_slots_are_what_the_device_says(half: TinyBundle, gpu: Gpu) -> None:
    with opened(half.path, gpu) as runtime:
        (slot,) = runtime.make_slots(1, FRAME_BYTES)
        runtime.run(place(slot, PRODUCT.good(0)), THRESHOLD)
        assert runtime.traffic.copies == (0 if gpu.facts.integrated else 2)
        assert isinstance(slot, Slot)
