"""What `test_pycuda_device.py` runs, each in a process of its own: the real PyCUDA over the driver of `stub_cuda.c`.

python -m tests.edge.inspection.cuda.pycuda_checks LIBRARY FUNCTION
"""

from __future__ import annotations

import ctypes
import gc
import os
import struct
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from edge.bundle import Bundle
from edge.errors import CudaError, RuntimeUnavailableError
from edge.inspection.cuda import pycuda_device
from edge.inspection.cuda.compile import KERNELS
from edge.inspection.cuda.device import Gpu, Stream
from edge.inspection.cuda.pycuda_device import PyCudaGpu, own_gpu
from edge.inspection.library import Axis
from edge.inspection.ports import core_outputs
from edge.manifest import ModelSpec
from tests.edge.inspection.cuda import fibers
from tests.edge.inspection.cuda.emulated import EmulatedGpu
from tests.edge.inspection.cuda.pycuda_names import PYCUDA
from tests.edge.inspection.cuda.stages import run_all

CONTEXT, DEVICE_MEMORY, HOST_MEMORY, STREAM, EVENT, MODULE, GRAPH, READY_GRAPH = 1, 2, 3, 4, 5, 6, 8, 9
CUBIN = b"\x7fELF and so on"


class Stub:
    """The driver under PyCUDA."""

    def __init__(self, path: str) -> None:
        self.library = ctypes.CDLL(path, os.RTLD_NOW | os.RTLD_GLOBAL)
        self.library.stub_log.restype = ctypes.c_char_p

    def live(self, kind: int) -> int:
        return int(self.library.stub_live(kind))

    def fail(self, name: str, code: int, after: int = 0) -> None:
        self.library.stub_fail(name.encode(), code, after)

    def log(self) -> list[str]:
        """Return the calls since the last time, less those that change contexts."""
        lines = self.library.stub_log().decode().split("\n")[:-1]
        self.library.stub_clear_log()
        return [line for line in lines if not line.startswith("cuCtx")]


def names(stub: Stub) -> None:
    import pycuda.driver

    for name, members in PYCUDA.items():
        found = getattr(pycuda.driver, name)
        assert not members - set(dir(found)), name


def facts(stub: Stub) -> None:
    gpu: Gpu = own_gpu()
    assert (gpu.facts.name, gpu.facts.compute_capability, gpu.facts.integrated) == ("Stub", (8, 7), False)
    with pytest.raises(RuntimeUnavailableError, match="no GPU 1"):
        PyCudaGpu(1)
    os.environ["STUB_INTEGRATED"] = "1"
    assert PyCudaGpu().facts.integrated


def memory_and_copies(stub: Stub) -> None:
    gpu = own_gpu()
    there, further, stream = gpu.allocate(1000), gpu.allocate(1000), gpu.stream()
    source, target, mapped = gpu.pin(1000), gpu.pin(1000), gpu.map(64)
    assert not any(memory.array.any() for memory in (source, target, mapped))
    assert all(memory.address % 64 == 0 for memory in (source, target, mapped))
    assert source.device_address is None
    assert mapped.device_address == mapped.address  # as on a Jetson
    gpu.copy_out(target.address, there.address, 1000, stream)
    stream.synchronize()
    assert not target.array.any(), "device memory must begin as zeros"
    source.array[:] = np.arange(1000) % 251
    gpu.copy_in(there.address, source.address, 1000, stream)
    gpu.copy_within(further.address, there.address, 1000, stream)
    gpu.clear(further.address, 10, stream)
    gpu.copy_out(target.address, further.address, 1000, stream)
    stream.synchronize()
    assert not target.array[:10].any()
    np.testing.assert_array_equal(target.array[10:], source.array[10:])
    assert gpu.allocations == 5
    # Freed with the last reference; a view of an array is one.
    view = target.array[5:]
    del there, source, target, mapped
    gc.collect()
    assert (stub.live(DEVICE_MEMORY), stub.live(HOST_MEMORY)) == (1, 1)
    view[0] = 3
    assert (further.size, gpu.allocate(5).size) == (1000, 5)
    gpu.close()
    assert [stub.live(kind) for kind in (CONTEXT, DEVICE_MEMORY, HOST_MEMORY, STREAM)] == [0] * 4


def events(stub: Stub) -> None:
    gpu = own_gpu()
    first, last, plain = gpu.event(timing=True), gpu.event(timing=True), gpu.event()
    one, other = gpu.stream(), gpu.stream()
    assert len({one.handle, other.handle, 0}) == 3
    stub.log()
    first.record(one)
    other.wait(first)
    last.record(other)
    last.synchronize()
    assert last.elapsed_ms(first) == 2.5
    assert stub.log()[:-1] == ["cuEventRecord", "cuStreamWaitEvent", "cuEventRecord", "cuEventSynchronize"]
    with pytest.raises(CudaError, match="another error"):
        plain.elapsed_ms(first)
    del first, last, plain
    gc.collect()
    assert stub.live(EVENT) == 0


def launching(stub: Stub) -> None:
    gpu = own_gpu()
    kernel, stream = gpu.kernel("hog", "hog_cells"), gpu.stream()
    assert (kernel.name, gpu.kernel("hog", "hog_map").name, stub.live(MODULE)) == ("hog_cells", "hog_map", 1)
    stub.log()
    arguments = (
        ctypes.c_int32(-2),
        ctypes.c_void_p(0x1122334455667788),
        ctypes.c_float(0.5),
        Axis(0x11, 0x22, 7),
        ctypes.c_int64(5),
        ctypes.c_uint8(9),
    )
    gpu.launch(kernel, 70000, 96, arguments, stream)
    expected = struct.pack("=i4xQf4xQQi4xqB", -2, 0x1122334455667788, 0.5, 0x11, 0x22, 7, 5, 9)
    assert stub.log() == ["cuLaunchKernel", f"kernel hog_cells 70000x1x1 96x1x1 0 {expected.hex()}"]
    gpu.launch(kernel, 0, 96, arguments, stream)
    assert stub.log() == []
    with pytest.raises(CudaError, match="cuModuleGetFunction"):
        gpu.kernel("hog", "missing")


def graphs(stub: Stub) -> None:
    gpu = own_gpu()
    source, there, target, stream = gpu.pin(8), gpu.allocate(8), gpu.pin(8), gpu.stream()
    dropped = [gpu.allocate(8)]
    kernel = gpu.kernel("hog", "hog_map")

    def work() -> None:
        gpu.copy_in(there.address, source.address, 8, stream)
        gpu.launch(kernel, 1, 32, [ctypes.c_int32(1)], stream)
        gpu.copy_out(target.address, there.address, 8, stream)
        dropped.clear()  # must not be freed while the driver records

    source.array[:] = 1
    stub.log()
    graph = gpu.record(stream, work)
    assert not target.array.any()
    assert "cuMemFree_v2" in stub.log()
    for value in (2, 3):
        source.array[:] = value
        graph.launch(stream)
        stream.synchronize()
        assert (target.array == value).all()
        assert stub.log() == ["cuGraphLaunch", "kernel hog_map 1x1x1 32x1x1 0 01000000", "cuStreamSynchronize"]
    assert stub.live(READY_GRAPH) == 1
    del graph
    gc.collect()
    assert stub.live(READY_GRAPH) == 0


def failed_recordings(stub: Stub) -> None:
    gpu = own_gpu()
    there, stream = gpu.allocate(8), gpu.stream()

    def stops() -> None:
        gpu.clear(there.address, 8, stream)
        raise KeyError("of the work's own")

    with pytest.raises(KeyError, match="own"):
        gpu.record(stream, stops)
    for forbidden in (lambda: gpu.allocate(8), stream.synchronize):
        with pytest.raises(CudaError):
            gpu.record(stream, forbidden)
    # The last one leaves the stub's stream recording.
    for name in ("cuStreamBeginCapture_v2", "cuGraphInstantiateWithFlags", "cuStreamEndCapture"):
        stub.fail(name, 719)
        with pytest.raises(CudaError, match=rf"{name}: CUDA_ERROR_LAUNCH_FAILED"):
            gpu.record(stream, lambda: gpu.clear(there.address, 8, stream))
    assert stub.live(GRAPH) == 0
    gpu.close()


def failures(stub: Stub) -> None:
    stub.fail("cuDevicePrimaryCtxRetain", 2)
    with pytest.raises(CudaError, match="out of memory"):
        own_gpu()
    gpu = own_gpu()
    there, host, stream, event = gpu.allocate(8), gpu.pin(8), gpu.stream(), gpu.event()
    kernel = gpu.kernel("hog", "hog_map")
    calls: list[tuple[str, Callable[[], object]]] = [
        ("cuMemAlloc", lambda: gpu.allocate(8)),
        ("cuMemHostAlloc", lambda: gpu.pin(8)),
        ("cuMemHostGetDevicePointer", lambda: gpu.map(8)),
        ("cuStreamCreate", gpu.stream),
        ("cuStreamSynchronize", stream.synchronize),
        ("cuStreamWaitEvent", lambda: stream.wait(event)),
        ("cuEventCreate", gpu.event),
        ("cuEventRecord", lambda: event.record(stream)),
        ("cuEventSynchronize", event.synchronize),
        ("cuMemcpyHtoDAsync", lambda: gpu.copy_in(there.address, host.address, 8, stream)),
        ("cuMemcpyDtoHAsync", lambda: gpu.copy_out(host.address, there.address, 8, stream)),
        ("cuMemcpyDtoDAsync", lambda: gpu.copy_within(there.address, there.address, 8, stream)),
        ("cuMemsetD8Async", lambda: gpu.clear(there.address, 8, stream)),
        ("cuModuleLoadDataEx", lambda: gpu.kernel("nearest", "bank_nearest")),
        ("cuLaunchKernel", lambda: gpu.launch(kernel, 1, 32, [], stream)),
        ("cuCtxPushCurrent", stream.synchronize),
    ]
    for name, call in calls:
        stub.fail(f"{name}_v2" if hasattr(stub.library, f"{name}_v2") else name, 719)
        with pytest.raises(CudaError, match=f"{name} failed: unspecified launch failure"):
            call()
        call()
    assert stub.library.stub_depth() == 1  # what `make_current` has set, and nothing pushed on top of it
    gpu.close()
    gpu.close()
    for _, call in calls:
        with pytest.raises(CudaError, match="closed"):
            call()


def threads(stub: Stub) -> None:
    gpu = own_gpu()
    kept = [gpu.allocate(8)]
    seen: list[int] = []

    def work() -> None:
        gpu.make_current()
        gpu.make_current()
        host, there, stream = gpu.pin(8), gpu.allocate(8), gpu.stream()
        gpu.copy_in(there.address, host.address, 8, stream)
        stream.synchronize()
        kept.clear()  # made by another thread
        seen.append(stub.live(DEVICE_MEMORY))
        seen.append(int(stub.library.stub_depth()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [1, 1]
    assert stub.live(DEVICE_MEMORY) == 0
    kept.append(gpu.allocate(8))
    # Not closed: what is left is freed at exit, and PyCUDA must find no context left behind in any thread.


class Readable(PyCudaGpu):
    """Reads and writes device memory for tests, as the emulated device does."""

    def write(self, address: int, values: np.ndarray) -> None:
        host, stream = self.pin(values.nbytes), self.stream()
        host.array[:] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        self.copy_in(address, host.address, values.nbytes, stream)
        stream.synchronize()

    def read(self, address: int, dtype: type[np.generic], shape: tuple[int, ...]) -> np.ndarray:
        host, stream = self.pin(int(np.prod(shape)) * np.dtype(dtype).itemsize), self.stream()
        self.copy_out(host.address, address, host.array.size, stream)
        stream.synchronize()
        return host.array.view(dtype).reshape(shape).copy()


class CopyingEngine:
    """Stands where the network does: its outputs are pieces of its input."""

    describe = "copies"

    def __init__(self, model: ModelSpec, gpu: Gpu) -> None:
        self._outputs, self._gpu = core_outputs(model), gpu
        self._addresses: dict[str, int] = {}

    def bind(self, addresses: Mapping[str, int]) -> None:
        self._addresses = dict(addresses)

    def enqueue(self, stream: Stream) -> None:
        for at, (name, shape) in enumerate(self._outputs.items()):
            self._gpu.copy_within(
                self._addresses[name], self._addresses["x"] + 400 * at, 4 * int(np.prod(shape)), stream
            )

    def close(self) -> None:
        pass


def runnable(source: str, *_: object) -> bytes:
    """Return the library that the emulated device runs, as the stub takes it."""
    return b"\x7fELF" + bytes(fibers.build(KERNELS / f"{source}.cu")) + b"\0"


def runtime(stub: Stub) -> None:
    from edge.inspection.cuda.runtime import CudaRuntime
    from tests.edge.inspection.cuda.cases import FRAME_BYTES, found, place
    from tests.tiny_bundle import FRAME_HEIGHT, FRAME_WIDTH, write_tiny_bundle

    pycuda_device.compile_kernels = runnable  # type: ignore[attr-defined]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_bundle(Path(folder, "redi.plan"))
        with Bundle.open(Path(folder, "redi.plan")) as bundle:
            for gpu in (own_gpu(), EmulatedGpu()):
                engine = CopyingEngine(bundle.manifest.model, gpu)
                made = CudaRuntime(bundle, gpu=gpu, engine=engine)
                slots = made.make_slots(2, FRAME_BYTES)
                for seed in range(4):
                    slot = slots[seed % 2]
                    image = np.random.default_rng(seed).integers(0, 256, (FRAME_HEIGHT, FRAME_WIDTH, 3), dtype=np.uint8)
                    place(slot, image)
                    made.stage(slot)
                    results.append(found(made, slot))
                made.close()
                gpu.close()
    assert results[:4] == results[4:]
    assert len({result.score for result in results}) == 4
    assert [stub.live(kind) for kind in (CONTEXT, DEVICE_MEMORY, HOST_MEMORY, STREAM, EVENT, READY_GRAPH)] == [0] * 6


def kernels(stub: Stub) -> None:
    pycuda_device.compile_kernels = runnable  # type: ignore[attr-defined]
    gpu, sources = Readable(), ("prepare", "hog", "nearest", "compare")
    found, expected = run_all(gpu, sources), run_all(EmulatedGpu(), sources)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    gpu.close()


def main() -> None:
    stub = Stub(sys.argv[1])
    # The stub has what the product calls and no more.
    sys.setdlopenflags(os.RTLD_LAZY)
    import pycuda.driver  # noqa: F401

    sys.setdlopenflags(os.RTLD_NOW)
    pycuda_device.compile_kernels = lambda *_: CUBIN  # type: ignore[attr-defined]
    globals()[sys.argv[2]](stub)
    print("all well")


if __name__ == "__main__":
    main()
