"""The emulated device finds what it is there to find."""

from __future__ import annotations

import ctypes
import functools
import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edge.errors import CudaError
from edge.inspection.cuda.device import Gpu
from edge.inspection.cuda.device import Stream as AnyStream
from tests.edge.inspection.cuda import fibers
from tests.edge.inspection.cuda.emulated import EmulatedGpu, EmulatorError

POINTER, INT, FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_float
KEPT: list[object] = []
TEXT = """
#include "phases.h"
struct Table { const float* values; int32_t n; };
KERNEL(scale, const float* in, float factor, int n, float* out) {
  PHASE(i, n) out[BLOCK * n + i] = in[BLOCK * n + i] * factor;
}
KERNEL(neighbour, const float* in, int n, float* out) {
  SHARED(float, value, 64);
  PHASE(i, n) value[i] = in[i];
  SYNC();
  PHASE(i, n) out[i] = value[(i + 1) % n];
}
KERNEL(diverge, int n, float* out) {
  PHASE(i, n) SYNC();
  out[0] = 1.0f;
}
KERNEL(forgets, float* out) {
  SHARED(float, value, 64);
  PHASE(i, 8) out[i] = value[i];
}
KERNEL(first, Table table, int64_t at, float* out) {
  ONCE out[0] = table.values[at];
}
KERNEL(poke, float* out, int64_t at) {
  ONCE out[at] = 7.0f;
}
KERNEL(count, int* out, int n) {
  EACH(i, n) { ATOMIC_ADD(out, 1); ATOMIC_MAX(out + 1, i); }
}
"""


class Table(ctypes.Structure):
    _fields_ = (("values", POINTER), ("n", ctypes.c_int32))


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "probe.cu").write_text(TEXT)
    (folder / "phases.h").write_text((fibers.KERNELS / "phases.h").read_text())
    return folder


@pytest.fixture(params=[0, 1, 2])
def gpu(request: pytest.FixtureRequest, kernels: Path) -> Iterator[EmulatedGpu]:
    made = EmulatedGpu(seed=request.param, kernels=kernels, flags=fibers.QUICK)
    yield made
    made.close()


@pytest.fixture
def any_gpu(kernels: Path) -> EmulatedGpu:
    """A device that is not closed: misuse is expected of it."""
    return EmulatedGpu(kernels=kernels, flags=fibers.QUICK)


def run(gpu: EmulatedGpu, name: str, *arguments, blocks: int = 1, threads: int = 8) -> None:
    stream = gpu.stream()
    gpu.launch(gpu.kernel("probe", name), blocks, threads, arguments, stream)
    stream.synchronize()


def floats(gpu: EmulatedGpu, values: np.ndarray) -> int:
    memory = gpu.allocate(4 * values.size)
    KEPT.append(memory)
    gpu.write(memory.address, values.astype(np.float32))
    return memory.address


def misuse(gpu: EmulatedGpu, match: str, work: Callable[[], object]) -> None:
    with pytest.raises(EmulatorError, match=match):
        work()
    with pytest.raises(EmulatorError, match=match):
        gpu.close()


def test_it_is_a_gpu(gpu: EmulatedGpu) -> None:
    def needs(given: Gpu) -> str:
        return given.facts.name

    assert needs(gpu) == "Emulated"
    assert not gpu.facts.integrated
    assert EmulatedGpu(integrated=True).facts.integrated


@pytest.mark.parametrize("threads", [1, 7, 64, 256])
def test_kernels_run(gpu: EmulatedGpu, threads: int) -> None:
    source, target = floats(gpu, np.arange(96)), floats(gpu, np.zeros(96))
    run(gpu, "scale", POINTER(source), FLOAT(0.5), INT(32), POINTER(target), blocks=3, threads=threads)
    np.testing.assert_array_equal(gpu.read(target, np.float32, (96,)), np.arange(96) / 2)
    run(gpu, "neighbour", POINTER(source), INT(50), POINTER(target), threads=threads)
    np.testing.assert_array_equal(gpu.read(target, np.float32, (50,)), (np.arange(50) + 1) % 50)
    counter = gpu.allocate(8)
    run(gpu, "count", POINTER(counter.address), INT(40), threads=threads)
    assert gpu.read(counter.address, np.int32, (2,)).tolist() == [40, 39]
    assert gpu.launches == {"scale": 1, "neighbour": 1, "count": 1}


def test_structures_are_passed_by_value(gpu: EmulatedGpu) -> None:
    source, target = floats(gpu, np.arange(9) * 3), floats(gpu, np.zeros(1))
    table = Table(source, 9)
    stream = gpu.stream()
    gpu.launch(gpu.kernel("probe", "first"), 1, 1, [table, ctypes.c_int64(5), POINTER(target)], stream)
    table.values = None  # what was queued has its own
    stream.synchronize()
    assert gpu.read(target, np.float32, (1,)) == 15


def test_no_blocks_are_no_work(gpu: EmulatedGpu) -> None:
    target = floats(gpu, np.zeros(8))
    run(gpu, "forgets", POINTER(target), blocks=0)
    assert not gpu.launches


def test_a_divergent_barrier_is_found(any_gpu: EmulatedGpu) -> None:
    target = floats(any_gpu, np.zeros(1))
    run(any_gpu, "diverge", INT(8), POINTER(target))
    work = functools.partial(run, any_gpu, "diverge", INT(5), POINTER(target))
    misuse(any_gpu, r"diverge: .*divergent barrier.*probe\.cu:14", work)


def test_a_removed_barrier_is_found(gpu: EmulatedGpu) -> None:
    source, target = floats(gpu, np.arange(50)), floats(gpu, np.zeros(50))
    line = 1 + TEXT.splitlines().index("  SYNC();")
    module = fibers.module(gpu._kernels / "probe.cu", fibers.QUICK)
    module.skip_barrier("probe.cu", line)
    try:
        run(gpu, "neighbour", POINTER(source), INT(50), POINTER(target), threads=32)
        assert module.skipped == 32
    finally:
        module.skip_barrier("", 0)
    found = gpu.read(target, np.float32, (50,))
    assert (found != np.float32((np.arange(50) + 1) % 50)).any()


def test_shared_memory_begins_as_no_number(gpu: EmulatedGpu) -> None:
    target = floats(gpu, np.zeros(8))
    run(gpu, "forgets", POINTER(target))
    assert np.isnan(gpu.read(target, np.float32, (8,))).all()


@pytest.mark.parametrize(("at", "match"), [(9, "behind"), (-1, "before"), (1 << 20, "may not"), (-4096, "may not")])
def test_writing_out_of_bounds_is_found(any_gpu: EmulatedGpu, at: int, match: str) -> None:
    target = floats(any_gpu, np.zeros(9))
    misuse(any_gpu, match, lambda: run(any_gpu, "poke", POINTER(target), ctypes.c_int64(at)))


def test_reading_far_out_of_bounds_is_found(any_gpu: EmulatedGpu) -> None:
    source, target = floats(any_gpu, np.zeros(64)), floats(any_gpu, np.zeros(1))
    arguments = Table(source, 64), ctypes.c_int64(64), POINTER(target)
    misuse(any_gpu, "touched", lambda: run(any_gpu, "first", *arguments))


def test_arguments_are_compared_with_the_kernel(any_gpu: EmulatedGpu) -> None:
    target = floats(any_gpu, np.zeros(32))
    wrong = POINTER(target), INT(2), INT(8), POINTER(target)
    misuse(any_gpu, "takes p f4 i4 p, not p i4 i4 p", lambda: run(any_gpu, "scale", *wrong))


def test_host_memory_in_a_kernel_is_found(any_gpu: EmulatedGpu) -> None:
    for memory in (any_gpu.pin(64), any_gpu.map(64)):
        with pytest.raises(EmulatorError, match="page-locked host"):
            run(any_gpu, "forgets", POINTER(memory.address))
    with pytest.raises(EmulatorError, match="no device memory"):
        run(any_gpu, "forgets", POINTER(np.zeros(8, np.float32).ctypes.data))


def test_mapped_memory_is_the_same_bytes(gpu: EmulatedGpu) -> None:
    memory = gpu.map(96)
    assert memory.device_address not in (None, memory.address)
    assert memory.array.ctypes.data % 64 == 0
    memory.array.view(np.float32)[:8] = np.arange(8)
    run(gpu, "scale", POINTER(memory.device_address), FLOAT(2), INT(8), POINTER(memory.device_address + 32))
    np.testing.assert_array_equal(memory.array.view(np.float32)[8:16], np.arange(8) * 2)
    assert gpu.traffic["copies"] == 0


def test_copies(gpu: EmulatedGpu) -> None:
    source, target, there, further = gpu.pin(100), gpu.pin(100), gpu.allocate(100), gpu.allocate(60)
    assert not source.array.any()
    assert not gpu.read(there.address, np.uint8, (100,)).any()
    source.array[:] = np.arange(100)
    stream = gpu.stream()
    gpu.copy_in(there.address, source.address, 100, stream)
    gpu.copy_within(further.address, there.address + 40, 60, stream)
    gpu.clear(further.address, 10, stream)
    gpu.copy_out(target.address + 40, further.address, 60, stream)
    stream.synchronize()
    assert target.array.tolist() == [0] * 50 + list(range(50, 100))
    assert gpu.traffic == {"copies": 3, "copy_in": 100, "copy_within": 60, "copy_out": 60, "clear": 10}
    assert gpu.allocations == 4


def test_copies_out_of_bounds_and_of_the_wrong_kind_are_found(any_gpu: EmulatedGpu) -> None:
    host, there, stream = any_gpu.pin(100), any_gpu.allocate(100), any_gpu.stream()
    ordinary = np.zeros(100, np.uint8)
    for target, source, size in [
        (there.address, host.address, 101),
        (there.address + 1, host.address, 100),
        (host.address, there.address, 100),
        (there.address, there.address, 100),
        (there.address, ordinary.ctypes.data, 100),
        (there.address - 1, host.address, 10),
        (there.address, host.address, 0),
    ]:
        with pytest.raises(EmulatorError, match="copy_in"):
            any_gpu.copy_in(target, source, size, stream)


def test_use_after_free_is_found(any_gpu: EmulatedGpu) -> None:
    host, there, stream = any_gpu.pin(100), any_gpu.allocate(100), any_gpu.stream()
    any_gpu.copy_in(there.address, host.address, 100, stream)
    address = there.address
    del there
    gc.collect()
    with pytest.raises(EmulatorError, match="freed"):
        stream.synchronize()
    assert any_gpu.allocate(100).address != address


def test_host_arrays_keep_their_memory(gpu: EmulatedGpu) -> None:
    view = gpu.map(5000).array[100:]
    gc.collect()
    view[:] = 3
    assert view.sum() == 4900 * 3


@pytest.mark.parametrize("waits", [True, False])
def test_a_missing_wait_is_found(kernels: Path, waits: bool) -> None:
    right = []
    for seed in range(3):
        gpu = EmulatedGpu(seed=seed, kernels=kernels, flags=fibers.QUICK)
        host, there, result = gpu.pin(32), gpu.allocate(32), gpu.allocate(32)
        host.array.view(np.float32)[:] = 3
        copying, computing, event = gpu.stream(), gpu.stream(), gpu.event()
        gpu.copy_in(there.address, host.address, 32, copying)
        event.record(copying)
        if waits:
            computing.wait(event)
        arguments = POINTER(there.address), FLOAT(2), INT(8), POINTER(result.address)
        gpu.launch(gpu.kernel("probe", "scale"), 1, 8, arguments, computing)
        computing.synchronize()
        right.append(bool((gpu.read(result.address, np.float32, (8,)) == 6).all()))
        gpu.close()
    assert all(right) if waits else not all(right)


def test_a_buffer_written_again_too_soon_is_found(kernels: Path) -> None:
    right = []
    for seed in range(3):
        gpu = EmulatedGpu(seed=seed, kernels=kernels, flags=fibers.QUICK)
        host, there, stream = gpu.pin(4), gpu.allocate(4), gpu.stream()
        host.array[:] = 1
        gpu.copy_in(there.address, host.address, 4, stream)
        host.array[:] = 2
        stream.synchronize()
        right.append(gpu.read(there.address, np.uint8, (4,)).tolist() == [1] * 4)
    assert not all(right)


def test_graphs_are_recorded_and_replayed(gpu: EmulatedGpu) -> None:
    host, there, result = gpu.pin(32), gpu.allocate(32), gpu.allocate(32)
    stream, other, kernel = gpu.stream(), gpu.stream(), gpu.kernel("probe", "scale")
    seen = []

    def work() -> None:
        gpu.copy_in(there.address, host.address, 32, stream)
        arguments = POINTER(there.address), FLOAT(2), INT(8), POINTER(result.address)
        gpu.launch(kernel, 1, 8, arguments, stream)
        gpu.call(stream, lambda: seen.append(float(gpu.view(result.address, np.float32, (8,))[0])))

    graph = gpu.record(stream, work)
    stream.synchronize()
    assert not gpu.launches
    for value, on in ((1, stream), (2, other), (3, stream)):
        host.array.view(np.float32)[:] = value
        graph.launch(on)
        on.synchronize()
        assert (gpu.read(result.address, np.float32, (8,)) == 2 * value).all()
    assert seen == [2, 4, 6]
    assert gpu.graph_launches == 3


def test_what_must_not_be_recorded_is_found(any_gpu: EmulatedGpu) -> None:
    stream, other, event = any_gpu.stream(), any_gpu.stream(), any_gpu.event()
    there, kernel = any_gpu.allocate(4), any_gpu.kernel("probe", "scale")
    event.record(other)
    assert kernel.name == "scale"
    for work in (
        lambda: any_gpu.allocate(4),
        lambda: any_gpu.pin(4),
        stream.synchronize,
        event.synchronize,
        lambda: event.record(stream),
        lambda: stream.wait(event),
        lambda: any_gpu.kernel("probe", "scale"),
        lambda: any_gpu.clear(there.address, 4, other),
    ):
        with pytest.raises(EmulatorError, match="graph was recorded"):
            any_gpu.record(stream, work)


def test_events(gpu: EmulatedGpu) -> None:
    stream, first, last, plain = gpu.stream(), gpu.event(timing=True), gpu.event(timing=True), gpu.event()
    last.synchronize()  # never recorded: nothing to wait for
    memory = gpu.allocate(4)
    first.record(stream)
    gpu.clear(memory.address, 4, stream)
    last.record(stream)
    last.synchronize()
    assert last.elapsed_ms(first) > 0
    assert plain.gpu is gpu
    last.record(stream)  # an event marks its last recording only
    stream.synchronize()
    assert last.elapsed_ms(first) > 0


def test_each_thread_makes_the_device_current(any_gpu: EmulatedGpu) -> None:
    caught: list[BaseException] = []

    def work(first: Callable[[], None]) -> None:
        first()
        try:
            any_gpu.allocate(4)
        except EmulatorError as error:
            caught.append(error)

    for first, expected in ((any_gpu.make_current, 0), (lambda: None, 1)):
        thread = threading.Thread(target=work, args=(first,))
        thread.start()
        thread.join()
        assert len(caught) == expected
    with pytest.raises(EmulatorError, match="make_current"):
        any_gpu.close()


def test_failures_on_demand(gpu: EmulatedGpu) -> None:
    gpu.fail("allocate", "CUDA_ERROR_OUT_OF_MEMORY", after=1)
    gpu.allocate(4)
    with pytest.raises(CudaError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        gpu.allocate(4)
    gpu.allocate(4)
    with pytest.raises(CudaError, match="missing"):
        gpu.kernel("missing", "scale")
    with pytest.raises(CudaError, match="no kernel missing"):
        gpu.kernel("probe", "missing")


def test_nothing_works_once_closed(any_gpu: EmulatedGpu) -> None:
    stream: AnyStream = any_gpu.stream()
    any_gpu.close()
    misuse(any_gpu, "closed", stream.synchronize)
