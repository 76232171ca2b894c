"""`Gpu` on PyCUDA.

The device's primary context is used, as every other library in the process does.  PyCUDA keeps a stack of contexts for
each thread and ends the process where a thread leaves one behind, so each call here pushes the context and takes it
back.  Memory, streams and events are freed when nobody refers to them, by whichever thread that is, or when the device
is closed.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from edge.cuda_driver import DriverError, probe_driver
from edge.errors import CudaError, RuntimeUnavailableError
from edge.inspection.cuda import device
from edge.inspection.cuda.arguments import pack
from edge.inspection.cuda.compile import compile_kernels
from edge.inspection.cuda.device import Argument, DeviceFacts, DeviceMemory, HostMemory
from edge.inspection.cuda.graphs import DriverGraphs

_HINT = "docs/jetson.md says how to install it, or use --runtime portable"
#: `CU_STREAM_NON_BLOCKING`, for which PyCUDA has no name.
_NON_BLOCKING = 1
_T = TypeVar("_T")


class _Held:
    """Something of the driver's that is freed with the last reference to this, at exit, or with the device."""

    def __init__(self, gpu: PyCudaGpu, thing: Any, free: Callable[[Any], None] | None) -> None:
        # In a box, so that the last reference to it can be dropped while the context is current.
        self._box = [thing]
        self.free = weakref.finalize(self, gpu.release, self._box, free)

    @property
    def thing(self) -> Any:
        """The thing itself.

        Raises:
            CudaError: it has been freed.
        """
        if not self._box:
            raise CudaError("the GPU has been closed")
        return self._box[0]


@dataclass(frozen=True, eq=False)
class PyCudaStream:
    """A stream; see `device.Stream`."""

    gpu: PyCudaGpu = field(repr=False)
    held: _Held = field(repr=False)
    handle: int

    def wait(self, event: device.Event) -> None:
        """See `device.Stream`."""
        with self.gpu.active():
            self.held.thing.wait_for_event(_own(event, PyCudaEvent).held.thing)

    def synchronize(self) -> None:
        """See `device.Stream`."""
        with self.gpu.active():
            self.held.thing.synchronize()


@dataclass(frozen=True, eq=False)
class PyCudaEvent:
    """An event; see `device.Event`."""

    gpu: PyCudaGpu = field(repr=False)
    held: _Held = field(repr=False)

    def record(self, stream: device.Stream) -> None:
        """See `device.Event`."""
        with self.gpu.active():
            self.held.thing.record(_own(stream, PyCudaStream).held.thing)

    def synchronize(self) -> None:
        """See `device.Event`."""
        with self.gpu.active():
            self.held.thing.synchronize()

    def elapsed_ms(self, since: device.Event) -> float:
        """See `device.Event`."""
        with self.gpu.active():
            return float(self.held.thing.time_since(_own(since, PyCudaEvent).held.thing))


@dataclass(frozen=True, eq=False)
class PyCudaKernel:
    """A kernel, with the module that it is in."""

    name: str
    function: Any = field(repr=False)
    held: _Held = field(repr=False)


@dataclass(frozen=True, eq=False)
class PyCudaGraph:
    """Recorded work; see `device.Graph`."""

    gpu: PyCudaGpu = field(repr=False)
    held: _Held = field(repr=False)

    def launch(self, stream: device.Stream) -> None:
        """See `device.Graph`."""
        with self.gpu.active():
            self.gpu.graphs.launch(self.held.thing, stream.handle)


class _Thread(threading.local):
    """What is different for each thread."""

    current: bool = False
    recording: bool = False


class PyCudaGpu:
    """The device with this number, as `CUDA_VISIBLE_DEVICES` orders them; see `device.Gpu`.

    Raises:
        RuntimeUnavailableError: no driver, no such device, or no PyCUDA.
        CudaError: the driver refuses a context.
    """

    def __init__(self, ordinal: int = 0) -> None:
        # Asked first: importing PyCUDA fails in unclear ways without a driver.
        try:
            driver = probe_driver()
        except DriverError as error:
            raise RuntimeUnavailableError(f"no NVIDIA driver: {error}", _HINT) from error
        if ordinal >= len(driver.devices):
            raise RuntimeUnavailableError(f"the NVIDIA driver has no GPU {ordinal}", _HINT)
        try:
            import pycuda.driver
        except (ImportError, OSError) as error:
            raise RuntimeUnavailableError(f"PyCUDA cannot be imported: {error}", _HINT) from error
        found = driver.devices[ordinal]
        self.facts = DeviceFacts(found.name, found.compute_capability, found.integrated, found.memory)
        self.allocations = 0
        self.graphs = DriverGraphs()
        self._cuda: Any = pycuda.driver
        self._driver = driver.cuda
        self._thread = _Thread()
        self._lock = threading.Lock()
        self._modules: dict[str, _Held] = {}
        self._all: weakref.WeakValueDictionary[int, _Held] = weakref.WeakValueDictionary()
        self._numbers = itertools.count()
        self._late: list[tuple[list[Any], Callable[[Any], None] | None]] = []
        self._context: Any = None
        with self._errors():
            self._cuda.init()
            self._context = self._cuda.Device(ordinal).retain_primary_context()
        # Made before everything that it holds, so that at exit it comes last.
        self._detach = weakref.finalize(self, _detach, self._context, self.graphs)
        self.make_current()
        self._setup = self.stream()

    def make_current(self) -> None:
        """See `device.Gpu`."""
        if not self._thread.current:
            self.graphs.set_current(self._open_context().handle)
            self._thread.current = True

    def allocate(self, size: int) -> DeviceMemory:
        """See `device.Gpu`."""
        with self.active():
            self.allocations += 1
            memory = self._cuda.mem_alloc(size)
            address, held = int(memory), self._hold(memory)
            # A stream that does not wait for the default one would not wait for this either.
            stream = self._setup.held.thing
            self._cuda.memset_d8_async(address, 0, size, stream)
            stream.synchronize()
            return DeviceMemory(address, size, held)

    def pin(self, size: int) -> HostMemory:
        """See `device.Gpu`."""
        return self._page_locked(size, self._cuda.host_alloc_flags.PORTABLE, mapped=False)

    def map(self, size: int) -> HostMemory:
        """See `device.Gpu`."""
        flags = self._cuda.host_alloc_flags
        return self._page_locked(size, flags.PORTABLE | flags.DEVICEMAP, mapped=True)

    def stream(self) -> PyCudaStream:
        """See `device.Gpu`."""
        with self.active():
            stream = self._cuda.Stream(_NON_BLOCKING)
            return PyCudaStream(self, self._hold(stream), int(stream.handle))

    def event(self, *, timing: bool = False) -> PyCudaEvent:
        """See `device.Gpu`."""
        flags = self._cuda.event_flags
        with self.active():
            event = self._cuda.Event(flags.DEFAULT if timing else flags.DISABLE_TIMING)
            return PyCudaEvent(self, self._hold(event))

    def copy_in(self, target: int, source: int, size: int, stream: device.Stream) -> None:
        """See `device.Gpu`."""
        with self.active():
            self._cuda.memcpy_htod_async(target, _bytes(source, size), _own(stream, PyCudaStream).held.thing)

    def copy_out(self, target: int, source: int, size: int, stream: device.Stream) -> None:
        """See `device.Gpu`."""
        with self.active():
            self._cuda.memcpy_dtoh_async(_bytes(target, size), source, _own(stream, PyCudaStream).held.thing)

    def copy_within(self, target: int, source: int, size: int, stream: device.Stream) -> None:
        """See `device.Gpu`."""
        with self.active():
            self._cuda.memcpy_dtod_async(target, source, size, _own(stream, PyCudaStream).held.thing)

    def clear(self, target: int, size: int, stream: device.Stream) -> None:
        """See `device.Gpu`."""
        with self.active():
            self._cuda.memset_d8_async(target, 0, size, _own(stream, PyCudaStream).held.thing)

    def kernel(self, source: str, name: str) -> PyCudaKernel:
        """See `device.Gpu`."""
        with self._lock, self.active():
            held = self._modules.get(source)
            if held is None:
                code = compile_kernels(source, self.facts.compute_capability, self._driver)
                held = self._modules[source] = self._hold(self._cuda.module_from_buffer(code))
            return PyCudaKernel(name, held.thing.get_function(name), held)

    def launch(
        self, kernel: device.Kernel, blocks: int, threads: int, arguments: Sequence[Argument], stream: device.Stream
    ) -> None:
        """See `device.Gpu`."""
        if blocks == 0:
            return
        with self.active():
            function = _own(kernel, PyCudaKernel).function
            on = _own(stream, PyCudaStream).held.thing
            # What PyCUDA's own `function(...)` ends in, which packs the arguments by rules of its own before.
            function._launch_kernel((blocks, 1, 1), (threads, 1, 1), pack(arguments), 0, on)

    def record(self, stream: device.Stream, work: Callable[[], None]) -> PyCudaGraph:
        """See `device.Gpu`."""
        with self.active():
            self._thread.recording = True
            try:
                graph = self.graphs.capture(stream.handle, work)
            finally:
                self._thread.recording = False
                while self._late:
                    self.release(*self._late.pop())
            return PyCudaGraph(self, self._hold(graph, self.graphs.free))

    def close(self) -> None:
        """See `device.Gpu`."""
        if self._context is None:
            return
        with self.active():
            # What is still queued may use what is freed now.
            with contextlib.suppress(CudaError), self._errors():
                self._context.synchronize()
            self._modules.clear()
            for _, held in sorted(self._all.items(), reverse=True):
                held.free()
        self._context = None
        with self._errors():
            self._detach()

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Make the context current for PyCUDA meanwhile; the driver's errors come as `CudaError`."""
        context = self._open_context()
        with self._errors():
            context.push()
            try:
                yield
            finally:
                context.pop()

    def release(self, box: list[Any], free: Callable[[Any], None] | None) -> None:
        """Free what nobody holds any more."""
        if self._context is None:
            return
        if self._thread.recording:
            # Freeing now would spoil the recording.
            self._late.append((box, free))
            return
        # Once a kernel has failed, the driver refuses this too: there is nothing left to free then.
        with contextlib.suppress(CudaError), self.active():
            thing = box.pop()
            if free is not None:
                free(thing)
            del thing

    def _open_context(self) -> Any:
        if self._context is None:
            raise CudaError("the GPU has been closed")
        return self._context

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._cuda.Error as error:
            raise CudaError(str(error)) from error

    def _hold(self, thing: Any, free: Callable[[Any], None] | None = None) -> _Held:
        held = self._all[next(self._numbers)] = _Held(self, thing, free)
        return held

    def _page_locked(self, size: int, flags: int, *, mapped: bool) -> HostMemory:
        with self.active():
            self.allocations += 1
            array = self._cuda.pagelocked_empty((size,), np.uint8, mem_flags=flags)
            array.fill(0)
            address = int(array.base.get_device_pointer()) if mapped else None
            memory = _bytes(array.ctypes.data, size)
            held = memory.owner = self._hold(array)
            return HostMemory(np.frombuffer(memory, np.uint8), address, held)


def _detach(context: Any, graphs: DriverGraphs) -> None:
    """Give the device's context back, from whichever thread."""
    # Where it is not current, PyCUDA gives it back in the thread that made it only; and of an object that it destroys
    # itself it forgets that this is the primary context.
    context.push()
    context.detach()
    graphs.pop()


def _bytes(address: int, size: int) -> Any:
    """Return host memory as something with the buffer protocol."""
    return (ctypes.c_uint8 * size).from_address(address)


def _own(thing: object, kind: type[_T]) -> _T:
    if not isinstance(thing, kind):
        raise CudaError(f"{thing!r} is not of this device")
    return thing


def own_gpu() -> PyCudaGpu:
    """Return the first GPU that the driver shows this process.

    Raises:
        RuntimeUnavailableError: no driver, no GPU, or no PyCUDA.
        CudaError: the driver refuses a context.
    """
    return PyCudaGpu()
