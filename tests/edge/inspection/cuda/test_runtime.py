"""The CUDA runtime on the emulated device: the portable runtime's bits, in whatever order the device works."""

from __future__ import annotations

import threading
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest

from edge.bundle import Bundle
from edge.errors import CudaError, FrameError, RuntimeUnavailableError
from edge.frames import PixelFormat, Roi, Slot
from edge.inspection.corrections import Corrections
from edge.inspection.cuda.runtime import CudaRuntime
from edge.inspection.portable import PortableRuntime
from edge.inspection.runtime import STAGES
from edge.manifest import CanvasSpec
from tests.edge.forging import forge
from tests.edge.inspection.cuda.cases import FRAME_BYTES, PRODUCT, Reference, emulated, found, place
from tests.edge.inspection.cuda.emulated import EmulatedEvent, EmulatedGpu, EmulatedGraph, EmulatedStream
from tests.edge.inspection.cuda.network import NetworkEngine
from tests.tiny_bundle import TinyBundle, write_tiny_bundle

SEEDS = (0, 1, 2)
#: What one slot's results take: map, mask, score, peak and prompt.
RESULT_BYTES = 64 * 64 * 4 + 64 * 64 // 8 + 12


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    """A bundle whose prompts are float16, as a GPU keeps them: then nothing may differ."""
    return write_tiny_bundle(tmp_path_factory.mktemp("half") / "redi.plan", bank_dtype=np.float16)


@pytest.fixture(scope="module")
def reference(half: TinyBundle) -> Reference:
    return Reference(half.path)


def staged(runtime: CudaRuntime, slot: Slot) -> Slot:
    """Stage a slot as the capture thread does."""
    thread = threading.Thread(target=runtime.stage, args=(slot,))
    thread.start()
    thread.join()
    return slot


@pytest.mark.parametrize("integrated", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_frames_overlap_and_each_is_found_as_the_portable_runtime_finds_it(
    half: TinyBundle, reference: Reference, seed: int, integrated: bool
) -> None:
    gpu = EmulatedGpu(integrated, seed)
    images = [PRODUCT.defective(index) if index % 2 else PRODUCT.good(index) for index in range(7)]
    with emulated(half.path, gpu) as runtime:
        slots = runtime.make_slots(3, FRAME_BYTES)
        for index, image in enumerate(images):
            # The next frame is on its way while this one is inspected, and the last one's results stay.
            if index == 0:
                staged(runtime, place(slots[0], image))
            if index + 1 < len(images):
                staged(runtime, place(slots[(index + 1) % 3], images[index + 1]))
            allocations = gpu.allocations
            graphs = gpu.graph_launches
            assert found(runtime, slots[index % 3]) == reference(image)
            if index >= 3:
                assert gpu.allocations == allocations
                assert gpu.graph_launches == graphs + 1, "one launch is a frame's whole work"
        copied = 0 if integrated else len(images) * (FRAME_BYTES + RESULT_BYTES)
        assert (runtime.traffic.copies, runtime.traffic.bytes) == (0 if integrated else 2 * len(images), copied)
        assert gpu.traffic["copy_out"] == (0 if integrated else len(images) * RESULT_BYTES)


def test_what_nobody_staged_is_brought_by_the_run(half: TinyBundle, reference: Reference) -> None:
    for seed in SEEDS:
        gpu = EmulatedGpu(seed=seed)
        with emulated(half.path, gpu) as runtime:
            (slot,) = runtime.make_slots(1, FRAME_BYTES)
            # Skipped by a camera whose newest frame wins, then overwritten.
            staged(runtime, place(slot, PRODUCT.good(1)))
            assert found(runtime, place(slot, PRODUCT.good(2))) == reference(PRODUCT.good(2))
            slot.pixels[...] = PRODUCT.good(3)
            assert found(runtime, slot) == reference(PRODUCT.good(3)), "what was staged is used once"
            assert runtime.traffic.copies == 5


def test_shape_format_and_threshold_may_change(half: TinyBundle, reference: Reference) -> None:
    gpu = EmulatedGpu(seed=2)
    grey = PRODUCT.defective(2)[..., 0].copy()
    yuv = np.random.default_rng(1).integers(0, 256, (90, 64), np.uint8)
    frames = [
        (PRODUCT.good(1), PixelFormat.BGR8, 0.1),
        (PRODUCT.good(1), PixelFormat.BGR8, 0.02),
        (PRODUCT.good(1), PixelFormat.RGB8, 0.1),
        (grey, PixelFormat.MONO8, 0.1),
        (grey, PixelFormat.BAYER_GRBG, 0.1),
        (yuv, PixelFormat.NV12, 0.1),
        # Larger than the slot's memory.
        (np.repeat(PRODUCT.good(4), 2, axis=0), PixelFormat.BGR8, 0.1),
        (PRODUCT.good(1)[:33, :50].copy(), PixelFormat.BGR8, 0.1),
    ]
    with emulated(half.path, gpu) as runtime:
        (slot,) = runtime.make_slots(1, FRAME_BYTES)
        for image, pixel_format, threshold in frames * 2:
            staged(runtime, place(slot, image, pixel_format))
            assert found(runtime, slot, threshold) == reference(image, pixel_format, threshold)
        # What has been met is known: nothing more is allocated, whatever comes next of it.
        allocations = gpu.allocations
        for image, pixel_format, threshold in frames[-3:]:
            found(runtime, place(slot, image, pixel_format), threshold)
        assert gpu.allocations == allocations


@pytest.mark.parametrize(
    ("canvas", "seed"),
    [(CanvasSpec("stretch", 2, 2, 32), 0), (CanvasSpec("pad", 1, 3, 0), 1), (CanvasSpec("pad", 1, 1, 0), 2)],
    ids=str,
)
def test_all_tiles_are_one_graph(tmp_path: Path, canvas: CanvasSpec, seed: int) -> None:
    path = write_tiny_bundle(tmp_path / "redi.plan", bank_dtype=np.float16, canvas=canvas).path
    reference = Reference(path)
    gpu = EmulatedGpu(integrated=seed == 1, seed=seed)
    with emulated(path, gpu) as runtime:
        (slot,) = runtime.make_slots(1, FRAME_BYTES)
        for image in (PRODUCT.defective(4), PRODUCT.good(2)):
            launched = gpu.graph_launches
            assert found(runtime, place(slot, image)) == reference(image)
        assert gpu.graph_launches == launched + 1


def test_a_model_without_prompts_makes_no_map(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path / "redi.plan", uses_prompt=False, calibrated=False).path
    gpu = EmulatedGpu()
    with emulated(path, gpu) as runtime:
        (slot,) = runtime.make_slots(1, FRAME_BYTES)
        for image in (PRODUCT.good(1), PRODUCT.defective(1)):
            assert found(runtime, place(slot, image)) == Reference(path)(image)
        assert runtime.caches == {}
        assert gpu.launches["prepare_colour"] == 2
        assert gpu.launches["hog_cells"] == 0


def test_corrections_are_made_on_the_device(half: TinyBundle) -> None:
    gains = np.random.default_rng(3).integers(2048, 6000, (80, 96)).astype(np.uint16)
    corrections = Corrections(Roi(10, 4, 64, 70), gains)
    gpu = EmulatedGpu(seed=1)
    with emulated(half.path, gpu, corrections=corrections) as runtime:
        (slot,) = runtime.make_slots(1, FRAME_BYTES)
        image = PRODUCT.defective(1)
        assert found(runtime, place(slot, image)) == Reference(half.path, corrections)(image)
        slot.corrected = True
        assert found(runtime, place(slot, image)) == Reference(half.path)(image)
        slot.corrected = False
        with pytest.raises(FrameError, match="flat field"):
            runtime.run(place(slot, image[:40]), 0.1)


def test_frames_that_cannot_be_used(half: TinyBundle, reference: Reference) -> None:
    gpu = EmulatedGpu()
    with emulated(half.path, gpu) as runtime:
        (slot,) = runtime.make_slots(1, 0)
        slot.shape_pixels(0, 0, PixelFormat.BGR8)
        runtime.stage(slot)
        with pytest.raises(FrameError):
            runtime.run(slot, 0.1)
        slot.pixels = np.zeros((64, 64, 4), np.uint8)
        with pytest.raises(FrameError, match="shape"):
            runtime.run(slot, 0.1)
        # A view of somebody else's memory, its rows apart.
        wide = np.zeros((80, 200, 3), np.uint8)
        wide[:, 50:146] = PRODUCT.good(0)
        slot.pixels = wide[:, 50:146]
        assert found(runtime, slot) == reference(PRODUCT.good(0))


def test_slots_of_another_runtime_are_made_fit_with_the_frame_in_them(half: TinyBundle, reference: Reference) -> None:
    gpu = EmulatedGpu(seed=2)
    with emulated(half.path, gpu) as runtime, Bundle.open(half.path) as bundle:
        before = CudaRuntime(bundle, gpu=gpu, share=runtime)
        portable = PortableRuntime(bundle, threads=1)
        for other in (before, portable):
            (slot,) = other.make_slots(1, FRAME_BYTES)
            image = PRODUCT.defective(3)
            other.stage(place(slot, image))
            # Taken over between capture and inspection.
            runtime.fit(slot)
            other.stage(slot)
            assert found(runtime, slot) == reference(image)
            allocations = gpu.allocations
            runtime.fit(slot)
            assert gpu.allocations == allocations
        before.close()
        before.stage(slot)


def test_cameras_share_one_model_and_may_inspect_at_the_same_time(half: TinyBundle, reference: Reference) -> None:
    gpu = EmulatedGpu(seed=2)
    expected = {index: reference(PRODUCT.good(index)) for index in range(4)}
    wrong: list[object] = []

    def inspect(runtime: CudaRuntime, indices: list[int]) -> None:
        slots = runtime.make_slots(2, FRAME_BYTES)
        for at, index in enumerate(indices):
            slot = place(slots[at % 2], PRODUCT.good(index))
            runtime.stage(slot)
            if found(runtime, slot) != expected[index]:
                wrong.append(index)

    with Bundle.open(half.path) as bundle:
        engine = NetworkEngine(bundle, gpu)
        cameras = [CudaRuntime(bundle, gpu=gpu, engine=engine)]
        cameras.append(CudaRuntime(bundle, share=cameras[0]))
        threads = [
            threading.Thread(target=inspect, args=(camera, order))
            for camera, order in zip(cameras, ([0, 1, 2, 3], [3, 2, 1, 0]), strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        closed = []
        for camera in (cameras[0], cameras[1], cameras[1]):
            camera.close()
            closed.append(engine.closed)
        assert closed == [False, True, True]
    gpu.close()


def test_stages_are_timed_by_the_device_where_asked_for(half: TinyBundle, reference: Reference) -> None:
    gpu = EmulatedGpu()
    with emulated(half.path, gpu, timed=True) as runtime:
        (slot,) = runtime.make_slots(1, FRAME_BYTES)
        for index in range(2):
            launched = gpu.graph_launches
            start = perf_counter()
            outcome = runtime.run(place(slot, PRODUCT.good(index)), 0.1)
            assert outcome.score == reference(PRODUCT.good(index)).score
            assert gpu.graph_launches == launched + 3
            assert sum(outcome.latency_ms.values()) <= 1e3 * (perf_counter() - start)
        # The emulated device's clock counts pieces of work, ten microseconds for each: one for the network, ten for the
        # comparison and its results; and for the mark after them.
        timed = outcome.latency_ms
        assert timed["core"] == pytest.approx(0.02)
        assert timed["after"] == pytest.approx(0.11)
    with emulated(half.path, EmulatedGpu()) as runtime:
        (slot,) = runtime.make_slots(1, FRAME_BYTES)
        for index in range(2):
            latency = runtime.run(place(slot, PRODUCT.good(index)), 0.1).latency_ms
        assert latency.keys() == set(STAGES)
        assert latency["core"] / latency["after"] == pytest.approx(timed["core"] / timed["after"])


@pytest.mark.parametrize("operation", ["copy", "launch", "synchronize", "record", "allocate"])
def test_a_failing_device_gives_no_verdict(half: TinyBundle, operation: str) -> None:
    # Not closed: what is still queued then would find its memory gone, and the process ends.
    gpu = EmulatedGpu()
    with Bundle.open(half.path) as bundle:
        runtime = CudaRuntime(bundle, gpu=gpu, engine=NetworkEngine(bundle, gpu))
        slots = runtime.make_slots(2, FRAME_BYTES)
        runtime.run(place(slots[0], PRODUCT.good(0)), 0.1)
        gpu.fail(operation)
        with pytest.raises(CudaError, match="LAUNCH_FAILED"):
            # So large that memory is needed.
            runtime.run(place(slots[1], np.repeat(PRODUCT.good(4), 2, axis=0)), 0.1)


def test_what_fails_while_a_frame_is_staged_is_done_again(half: TinyBundle, reference: Reference) -> None:
    gpu = EmulatedGpu()
    with emulated(half.path, gpu) as runtime:
        (slot,) = runtime.make_slots(1, FRAME_BYTES)
        for operation in ("copy", "record"):
            gpu.fail(operation)
            runtime.stage(place(slot, PRODUCT.good(1)))
            assert found(runtime, slot) == reference(PRODUCT.good(1))


def test_work_that_was_never_done_is_no_frames_result(half: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with emulated(half.path, EmulatedGpu()) as runtime:
        (slot,) = runtime.make_slots(1, FRAME_BYTES)
        runtime.run(place(slot, PRODUCT.good(0)), 0.1)
        monkeypatch.setattr(EmulatedGraph, "launch", lambda self, stream: None)
        with pytest.raises(CudaError, match="no result"):
            runtime.run(place(slot, PRODUCT.good(0)), 0.1)


def test_prompts_drawn_at_random_are_for_the_portable_runtime(half: TinyBundle, tmp_path: Path) -> None:
    path = tmp_path / "redi.plan"
    path.write_bytes(half.path.read_bytes())
    forge(path, lambda manifest, _: manifest["model"]["core"].update(prompt_choice="random"))
    gpu = EmulatedGpu()
    with Bundle.open(path) as bundle, pytest.raises(RuntimeUnavailableError, match="random") as caught:
        CudaRuntime(bundle, gpu=gpu, engine=NetworkEngine(bundle, gpu))
    assert "portable" in caught.value.hint


def test_one_line_says_what_runs_and_how_frames_get_there(half: TinyBundle) -> None:
    for integrated, how in ((True, "read in place"), (False, "copied once")):
        with emulated(half.path, EmulatedGpu(integrated)) as runtime:
            assert runtime.describe.startswith("cuda: a network of tests on Emulated (compute capability 8.")
            assert how in runtime.describe


# What the emulated device is for: leave out one thing that puts work in order, and some frame is wrong.


def wrong_frames(half: TinyBundle, reference: Reference) -> list[int]:
    """Inspect as a station does, the next frame staged meanwhile; return the frames whose results are not theirs."""
    wrong = []
    gpu = EmulatedGpu()
    with Bundle.open(half.path) as bundle:
        runtime = CudaRuntime(bundle, gpu=gpu, engine=NetworkEngine(bundle, gpu))
        slots = runtime.make_slots(2, FRAME_BYTES)
        staged(runtime, place(slots[0], PRODUCT.good(0)))
        for index in range(4):
            staged(runtime, place(slots[(index + 1) % 2], PRODUCT.good(index + 1)))
            try:
                same = found(runtime, slots[index % 2]) == reference(PRODUCT.good(index))
            except CudaError:
                same = False
            if not same:
                wrong.append(index)
    return wrong


@pytest.mark.parametrize("left_out", ["nothing", "upload before graph", "graph before results"])
def test_a_missing_wait_would_show(
    half: TinyBundle, reference: Reference, left_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if left_out == "upload before graph":
        monkeypatch.setattr(EmulatedStream, "wait", lambda self, event: None)
    elif left_out == "graph before results":
        monkeypatch.setattr(EmulatedEvent, "synchronize", lambda self: None)
        monkeypatch.setattr(EmulatedEvent, "elapsed_ms", lambda self, since: 1.0)
    assert bool(wrong_frames(half, reference)) == (left_out != "nothing")
