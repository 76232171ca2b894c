"""What the CUDA runtime asks of a GPU: memory, streams, events, kernel launches and graphs, and nothing else.

`pycuda_device.py` gives it on PyCUDA.  All addresses are plain integers, as kernels, TensorRT and ctypes take them; the
objects that hold them keep the memory alive.  What is queued on a stream runs in order; what is queued on two streams
runs in any order, unless one waits for an event of the other.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from edge.frames import U8

#: One argument of a kernel, by value: a number, a pointer (`c_void_p`) or a structure of `edge.inspection.library`.
Argument: TypeAlias = "ctypes._SimpleCData[Any] | ctypes.Structure"


@dataclass(frozen=True)
class DeviceMemory:
    """`size` bytes on the device from `address` on, zeroed when they were allocated."""

    address: int
    size: int
    owner: object = field(repr=False)


@dataclass(frozen=True)
class HostMemory:
    """Page-locked memory of the host: `array`, uint8 `(size,)`, at least 64-byte aligned and zeroed.

    `device_address` is where kernels reach the same bytes; None where they cannot, and it has to be copied.
    """

    array: U8
    device_address: int | None
    owner: object = field(repr=False)

    @property
    def address(self) -> int:
        """Where the host reaches it."""
        return self.array.ctypes.data


class Event(Protocol):
    """A point in a stream's work."""

    def record(self, stream: Stream) -> None:
        """Mark the end of what has been queued on `stream` so far."""
        ...

    def synchronize(self) -> None:
        """Wait until the marked point is reached, without holding the interpreter lock."""
        ...

    def elapsed_ms(self, since: Event) -> float:
        """Return the device's time between the two points, both reached."""
        ...


class Stream(Protocol):
    """Work that runs in the order in which it was queued.  Never the default stream."""

    @property
    def handle(self) -> int:
        """The driver's `CUstream`, for TensorRT."""
        ...

    def wait(self, event: Event) -> None:
        """Let what is queued from now on wait for the event."""
        ...

    def synchronize(self) -> None:
        """Wait for everything queued, without holding the interpreter lock."""
        ...


class Kernel(Protocol):
    """One `__global__` function of a module."""

    @property
    def name(self) -> str:
        """As in the source."""
        ...


class Graph(Protocol):
    """Recorded work, launched as one."""

    def launch(self, stream: Stream) -> None:
        """Queue all of it on `stream`."""
        ...


@dataclass(frozen=True)
class DeviceFacts:
    """What the driver says of the device; `integrated` is asked, never concluded from a name."""

    name: str
    compute_capability: tuple[int, int]
    integrated: bool
    memory: int


class Gpu(Protocol):
    """One device with its context.  Any thread may call it; `make_current` first in a thread that has not yet.

    Errors of the driver come as `CudaError`.
    """

    @property
    def facts(self) -> DeviceFacts:
        """What it is."""
        ...

    @property
    def allocations(self) -> int:
        """How many `allocate`, `pin` and `map` calls there have been: constant once the loop runs."""
        ...

    def make_current(self) -> None:
        """Let the calling thread use the device; cheap where it already does."""
        ...

    def allocate(self, size: int) -> DeviceMemory:
        """Return zeroed device memory."""
        ...

    def pin(self, size: int) -> HostMemory:
        """Return page-locked host memory that is copied from and to."""
        ...

    def map(self, size: int) -> HostMemory:
        """Return page-locked host memory that kernels reach through `device_address`."""
        ...

    def stream(self) -> Stream:
        """Return a new stream that does not wait for the default one."""
        ...

    def event(self, *, timing: bool = False) -> Event:
        """Return a new event."""
        ...

    def copy_in(self, target: int, source: int, size: int, stream: Stream) -> None:
        """Queue a copy from page-locked host memory to the device."""
        ...

    def copy_out(self, target: int, source: int, size: int, stream: Stream) -> None:
        """Queue a copy from the device to page-locked host memory."""
        ...

    def copy_within(self, target: int, source: int, size: int, stream: Stream) -> None:
        """Queue a copy on the device."""
        ...

    def clear(self, target: int, size: int, stream: Stream) -> None:
        """Queue filling device memory with zero bytes."""
        ...

    def kernel(self, source: str, name: str) -> Kernel:
        """Return the function `name` of `kernels/SOURCE.cu`, compiled for this device and kept on disk."""
        ...

    def launch(self, kernel: Kernel, blocks: int, threads: int, arguments: Sequence[Argument], stream: Stream) -> None:
        """Queue `blocks` blocks of `threads` threads each; none where `blocks` is 0."""
        ...

    def record(self, stream: Stream, work: Callable[[], None]) -> Graph:
        """Return what `work` queues on `stream`, recorded and not run.  `work` must neither allocate nor wait."""
        ...

    def close(self) -> None:
        """Free the context; memory that is still referenced becomes invalid."""
        ...
