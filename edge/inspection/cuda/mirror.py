"""Tables of the native kernels, copied to the device, so that what runs there runs on the very same numbers."""

from __future__ import annotations

import bisect
import ctypes
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge.inspection.cuda.device import DeviceMemory, Gpu, Stream

_S = TypeVar("_S", bound=ctypes.Structure)


class Mirror:
    """Copies of host arrays in device memory, found by the addresses that the arrays have on the host.

    Args:
        gpu: where to.
        arrays: C-contiguous, none empty.
        stream: queues the copies; they are done on return.
    """

    def __init__(self, gpu: Gpu, arrays: Sequence[NDArray[Any]], stream: Stream) -> None:
        ordered = sorted(arrays, key=lambda array: array.ctypes.data)
        self._starts = [array.ctypes.data for array in ordered]
        self._ends = [array.ctypes.data + array.nbytes for array in ordered]
        # Kept: the addresses would mean nothing once something else lay there.
        self._arrays = ordered
        self._copies: list[DeviceMemory] = []
        staging = gpu.pin(max(array.nbytes for array in ordered))
        for array in ordered:
            copy = gpu.allocate(array.nbytes)
            staging.array[: array.nbytes] = array.reshape(-1).view(np.uint8)
            gpu.copy_in(copy.address, staging.address, array.nbytes, stream)
            stream.synchronize()
            self._copies.append(copy)

    @property
    def size(self) -> int:
        """Bytes on the device."""
        return sum(copy.size for copy in self._copies)

    def address(self, pointer: int | None) -> int:
        """Return where on the device lies what lies at `pointer` on the host; 0 for a null pointer.

        Raises:
            LookupError: no array holds it.
        """
        if not pointer:
            return 0
        at = bisect.bisect_right(self._starts, pointer) - 1
        if at < 0 or pointer >= self._ends[at]:
            raise LookupError(f"{pointer:#x} lies in none of the arrays")
        return self._copies[at].address + pointer - self._starts[at]

    def moved(self, structure: _S) -> _S:
        """Return a copy of a structure, and of those inside it, with device addresses in place of its pointers."""
        copy = type(structure)()
        for name, kind in (field[:2] for field in structure._fields_):
            value = getattr(structure, name)
            if kind is ctypes.c_void_p:
                value = self.address(value)
            elif isinstance(value, ctypes.Structure):
                value = self.moved(value)
            setattr(copy, name, value)
        return copy
