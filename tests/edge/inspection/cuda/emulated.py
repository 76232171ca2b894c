"""A GPU that is not there: the whole `Gpu` protocol on the CPU, strict where a real device is silently wrong.

    gpu = EmulatedGpu(seed=1)                 # integrated=True: a Jetson
    runtime = CudaRuntime(..., gpu, ...)      # the code under test
    ...
    gpu.close()                               # raises what went wrong unseen

The kernels are the unchanged `.cu` texts, run by fibers (`fibers.h`); a block of 32 to 64 threads is the quickest.
Work that is queued runs as late or as early as the order of streams and events allows, in an order that `seed` chooses:
`seed % 3` is 0: only what a wait needs, when it waits; 1: everything else first; 2: at random, at any time.  A missing
`wait`, or a buffer written again too soon, so shows as a wrong result with one of the seeds 0, 1 and 2: use them all.

`EmulatorError`, an AssertionError, says what the code under test did wrong: a copy or kernel argument outside of live
memory or of the wrong kind, host memory given to a kernel, a write around a buffer, a divergent barrier, a thread
without `make_current`, allocating or waiting while recording.  Where a thread swallowed it, `close` and `check` raise
it again.

For a network in the engine's place, `call(stream, function)` queues a Python function, which is recorded in graphs as
kernels are, and `view(address, dtype, shape)` gives it the device's memory.  `read` copies device memory for a test.
`fail(operation)` makes the driver fail.  `allocations`, `traffic` and `launches` count.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge.errors import CudaError
from edge.frames import U8
from edge.inspection.cuda import device
from edge.inspection.cuda.device import Argument, DeviceFacts, DeviceMemory, HostMemory
from tests.edge.inspection.cuda import fibers
from tests.edge.inspection.cuda.arena import Arena, Block, shared_file
from tests.edge.inspection.cuda.fibers import EmulatorError
from tests.edge.inspection.cuda.schedule import Mark, Queue, Scheduler, Wait, Work

__all__ = ["EmulatedGpu", "EmulatorError"]

_T = TypeVar("_T", bound=np.generic)


class _Owner:
    """Frees its blocks when nobody refers to it any more."""

    def __init__(self, *parts: tuple[Arena, Block]) -> None:
        for arena, block in parts:
            weakref.finalize(self, arena.free, block).atexit = False


@dataclass(eq=False)
class EmulatedStream:
    """A queue of work that the emulated device has not done yet."""

    gpu: EmulatedGpu = field(repr=False)
    handle: int
    queue: Queue = field(repr=False)

    def wait(self, event: device.Event) -> None:
        with self.gpu._using():
            self.gpu._forbid_recording("an event from outside was waited for")
            mark = self.gpu._own(event, EmulatedEvent).mark
            if mark is not None:
                self.queue.items.append(Wait(mark))

    def synchronize(self) -> None:
        with self.gpu._using("synchronize"):
            self.gpu._forbid_recording("a stream was waited for")
            self.gpu._finish(self.queue)


@dataclass(eq=False)
class EmulatedEvent:
    gpu: EmulatedGpu = field(repr=False)
    timing: bool
    mark: Mark | None = None

    def record(self, stream: device.Stream) -> None:
        with self.gpu._using("record"):
            self.gpu._forbid_recording("an event was recorded")
            self.mark = Mark()
            self.gpu._queue(stream, self.mark)

    def synchronize(self) -> None:
        with self.gpu._using("synchronize"):
            self.gpu._forbid_recording("an event was waited for")
            if self.mark is not None:
                self.gpu._finish(self.mark)

    def elapsed_ms(self, since: device.Event) -> float:
        with self.gpu._using():
            first = self.gpu._own(since, EmulatedEvent)
            if not (self.timing and first.timing):
                self.gpu._wrong("the time of an event made without timing")
            reached = [event.mark.reached if event.mark else None for event in (first, self)]
            if reached[0] is None or reached[1] is None:
                raise CudaError("cuEventElapsedTime: CUDA_ERROR_NOT_READY")
            return reached[1] - reached[0]


@dataclass(frozen=True)
class EmulatedKernel:
    name: str
    module: fibers.Module = field(repr=False)


@dataclass(frozen=True)
class EmulatedGraph:
    gpu: EmulatedGpu = field(repr=False)
    works: tuple[Work, ...] = field(repr=False)

    def launch(self, stream: device.Stream) -> None:
        with self.gpu._using("launch"):
            self.gpu._forbid_recording("another one was launched")
            self.gpu.graph_launches += 1
            for work in self.works:
                self.gpu._queue(stream, work)


class _Thread(threading.local):
    """What is different for each thread that uses the device."""

    current: bool = False
    recording: tuple[device.Stream, list[Work]] | None = None


class EmulatedGpu:
    """See the module's text.

    Args:
        integrated: what `facts` says.
        seed: chooses the order of work, of threads and of blocks.
        kernels: folder of the `.cu` files.
        flags: how they are compiled.
    """

    def __init__(
        self,
        integrated: bool = False,
        seed: int = 0,
        *,
        kernels: Path = fibers.KERNELS,
        flags: Sequence[str] = fibers.FLAGS,
    ) -> None:
        self.facts = DeviceFacts("Emulated", (8, 7) if integrated else (8, 6), integrated, 8 << 30)
        self.allocations = 0
        #: Bytes moved, by the names of the methods: copy_in, copy_out, copy_within, clear; and `copies`, how many.
        self.traffic: Counter[str] = Counter()
        #: How often each kernel ran.
        self.launches: Counter[str] = Counter()
        self.graph_launches = 0
        self._kernels, self._flags = kernels, tuple(flags)
        self._device, self._host = Arena("device", hidden=True), Arena("page-locked host", hidden=False)
        self._scheduler = Scheduler(seed)
        self._handles = 0x5000
        self._lock = threading.RLock()
        self._thread = _Thread()
        self._thread.current = True
        self._wrongs: list[str] = []
        self._failures: dict[str, tuple[int, str]] = {}
        self._closed = False

    # ---- the protocol

    def make_current(self) -> None:
        self._thread.current = True

    def allocate(self, size: int) -> DeviceMemory:
        with self._using("allocate"):
            block = self._new(self._device, size)
            return DeviceMemory(block.address, size, _Owner((self._device, block)))

    def pin(self, size: int) -> HostMemory:
        with self._using("allocate"):
            block = self._new(self._host, size)
            return self._host_memory(block, None, _Owner((self._host, block)))

    def map(self, size: int) -> HostMemory:
        with self._using("allocate"), shared_file(max(size, 1)) as file:
            host = self._new(self._host, size, file)
            there = self._device.allocate(size, file)
            return self._host_memory(host, there.address, _Owner((self._host, host), (self._device, there)))

    def stream(self) -> EmulatedStream:
        with self._using():
            self._forbid_recording("a stream was made")
            self._handles += 16
            return EmulatedStream(self, self._handles, self._scheduler.queue())

    def event(self, *, timing: bool = False) -> EmulatedEvent:
        with self._using():
            return EmulatedEvent(self, timing)

    def copy_in(self, target: int, source: int, size: int, stream: device.Stream) -> None:
        self._copy("copy_in", (target, self._device), (source, self._host), size, stream)

    def copy_out(self, target: int, source: int, size: int, stream: device.Stream) -> None:
        self._copy("copy_out", (target, self._host), (source, self._device), size, stream)

    def copy_within(self, target: int, source: int, size: int, stream: device.Stream) -> None:
        self._copy("copy_within", (target, self._device), (source, self._device), size, stream)

    def clear(self, target: int, size: int, stream: device.Stream) -> None:
        def work() -> None:
            self._bytes(target, size, self._device, "clear")[:] = 0
            self.traffic["clear"] += size

        with self._using("copy"):
            self._bytes(target, size, self._device, "clear")
            self._queue(stream, work)

    def kernel(self, source: str, name: str) -> EmulatedKernel:
        with self._using("kernel"):
            self._forbid_recording("a kernel was loaded")
            path = self._kernels / f"{source}.cu"
            if not path.is_file():
                raise CudaError(f"no kernels {path}")
            module = fibers.module(path, self._flags)
            if name not in module.names:
                raise CudaError(f"{path} has no kernel {name}: CUDA_ERROR_NOT_FOUND")
            return EmulatedKernel(name, module)

    def launch(
        self, kernel: device.Kernel, blocks: int, threads: int, arguments: Sequence[Argument], stream: device.Stream
    ) -> None:
        with self._using("launch"):
            own = self._own(kernel, EmulatedKernel)
            if blocks < 0 or not 1 <= threads <= 1024:
                self._wrong(f"{own.name}: {blocks} blocks of {threads} threads")
            try:
                packed = own.module.check(own.name, arguments)
            except EmulatorError as error:
                self._wrong(str(error))
            addresses = [address for argument in arguments for address in fibers.pointers(argument)]

            def work() -> None:
                blocks_touched = [self._block(address, 1, self._device, own.name) for address in addresses]
                try:
                    own.module.run(own.name, blocks, threads, packed, self._scheduler.random.getrandbits(62))
                    for block in blocks_touched:
                        self._device.check_slack(block)
                except EmulatorError as error:
                    self._wrong(f"{own.name}: {error}")
                self.launches[own.name] += 1

            for address in addresses:
                self._block(address, 1, self._device, own.name)
            if blocks:
                self._queue(stream, work)

    def record(self, stream: device.Stream, work: Callable[[], None]) -> EmulatedGraph:
        with self._using("record"):
            self._forbid_recording("another graph was recorded")
            self._own(stream, EmulatedStream)
            works: list[Work] = []
            self._thread.recording = stream, works
            try:
                work()
            finally:
                self._thread.recording = None
            return EmulatedGraph(self, tuple(works))

    def close(self) -> None:
        """End the device, after doing what is queued; raise what went wrong before."""
        with self._lock:
            if not self._closed:
                self._closed = True
                with self._device.opened():
                    self._scheduler.finish_all()
            self.check()

    # ---- for tests

    def check(self) -> None:
        """Raise the first thing that went wrong, also where its error was swallowed."""
        if self._wrongs:
            raise EmulatorError(self._wrongs[0])

    def call(self, stream: device.Stream, function: Callable[[], None]) -> None:
        """Queue a Python function, which reaches device memory by `view`."""
        with self._using("launch"):
            self._queue(stream, function)

    def view(self, address: int, dtype: type[_T], shape: tuple[int, ...]) -> NDArray[_T]:
        """Return device memory as an array, to be used only within a function queued by `call`."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self._bytes(address, size, self._device, "view").view(dtype).reshape(shape)

    def read(self, address: int, dtype: type[_T], shape: tuple[int, ...]) -> NDArray[_T]:
        """Return a copy of device memory as it is now, whatever is still queued."""
        with self._lock, self._device.opened():
            return self.view(address, dtype, shape).copy()

    def write(self, address: int, values: NDArray[Any]) -> None:
        """Fill device memory now, whatever is still queued."""
        with self._lock, self._device.opened():
            self.view(address, values.dtype.type, values.shape)[...] = values

    def fail(self, operation: str, name: str = "CUDA_ERROR_LAUNCH_FAILED", *, after: int = 0) -> None:
        """Let one `CudaError` come from an operation, once `after` more of them have succeeded.

        Operations: allocate, copy, launch, record, synchronize, kernel.
        """
        self._failures[operation] = after, name

    # ---- inside

    @contextmanager
    def _using(self, operation: str = "") -> Iterator[None]:
        with self._lock:
            if self._closed:
                self._wrong("the device was used after it was closed")
            if not self._thread.current:
                self._wrong(f"thread {threading.current_thread().name} never called make_current")
            if operation in self._failures:
                after, name = self._failures.pop(operation)
                if after == 0:
                    raise CudaError(f"{operation}: {name}")
                self._failures[operation] = after - 1, name
            yield
            if self._scheduler.dawdles and self._thread.recording is None:
                with self._device.opened():
                    self._scheduler.dawdle()

    def _wrong(self, problem: str) -> Any:
        self._wrongs.append(problem)
        raise EmulatorError(problem)

    def _own(self, thing: object, kind: type[Any]) -> Any:
        if not isinstance(thing, kind) or getattr(thing, "gpu", self) is not self:
            self._wrong(f"{thing!r} is not of this device")
        return thing

    def _forbid_recording(self, what: str) -> None:
        if self._thread.recording is not None:
            self._wrong(f"{what} while a graph was recorded")

    def _new(self, arena: Arena, size: int, file: int = -1) -> Block:
        self._forbid_recording("memory was allocated")
        self.allocations += 1
        return arena.allocate(size, file)

    def _host_memory(self, block: Block, there: int | None, owner: _Owner) -> HostMemory:
        return HostMemory(block.owned_view(owner), there, owner)

    def _block(self, address: int, size: int, arena: Arena, who: str) -> Block:
        block = arena.find(address)
        if block is None or address + size > block.address + block.size:
            other = self._host if arena is self._device else self._device
            if block is not None:
                why = f"{size} bytes from byte {address - block.address} of {block.size}"
            elif other.find(address) is not None:
                why = f"an address of {other.kind} memory, {arena.kind} memory is needed"
            elif arena.holds(address):
                why = f"an address of {arena.kind} memory that has been freed, or never was allocated"
            else:
                why = f"0x{address:x}, which is no {arena.kind} memory"
            self._wrong(f"{who}: {why}")
        assert block is not None
        return block

    def _bytes(self, address: int, size: int, arena: Arena, who: str) -> U8:
        if size <= 0:
            self._wrong(f"{who}: {size} bytes")
        return self._block(address, size, arena, who).view(address, size)

    def _copy(
        self, name: str, target: tuple[int, Arena], source: tuple[int, Arena], size: int, stream: device.Stream
    ) -> None:
        def work() -> None:
            to, from_ = (self._bytes(address, size, arena, name) for address, arena in (target, source))
            to[:] = from_
            self.traffic[name] += size
            self.traffic["copies"] += 1

        with self._using("copy"):
            for address, arena in (target, source):
                self._bytes(address, size, arena, name)
            self._queue(stream, work)

    def _queue(self, stream: device.Stream, work: Work | Mark) -> None:
        own = self._own(stream, EmulatedStream)
        if self._thread.recording is None:
            own.queue.items.append(work)
        elif self._thread.recording[0] is own and not isinstance(work, Mark):
            self._thread.recording[1].append(work)
        else:
            self._wrong("work for another stream while a graph was recorded")

    def _finish(self, goal: Queue | Mark) -> None:
        with self._device.opened():
            self._scheduler.finish(goal)
