"""Reading and writing device memory in tests of a real GPU, and a core that needs no library."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edge.inspection.cuda.device import Gpu, Stream
from edge.inspection.ports import Shapes

_T = TypeVar("_T", bound=np.generic)


def read(gpu: Gpu, address: int, dtype: type[_T], shape: tuple[int, ...]) -> NDArray[_T]:
    """Return a copy of device memory; nothing may be under way that writes it."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    host, stream = gpu.pin(size), gpu.stream()
    gpu.copy_out(host.address, address, size, stream)
    stream.synchronize()
    return host.array.view(dtype).reshape(shape).copy()


def write(gpu: Gpu, address: int, values: NDArray[np.generic]) -> None:
    """Fill device memory; nothing may be under way that uses it."""
    host, stream = gpu.pin(values.nbytes), gpu.stream()
    host.array[:] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    gpu.copy_in(address, host.address, values.nbytes, stream)
    stream.synchronize()


class ConstantEngine:
    """An `Engine` whose outputs are always the same random features, whatever the frame: it does nothing at all."""

    def __init__(self, gpu: Gpu, outputs: Shapes) -> None:
        self._gpu, self._outputs = gpu, outputs

    @property
    def describe(self) -> str:
        return "no network"

    def bind(self, addresses: Mapping[str, int]) -> None:
        rng = np.random.default_rng(0)
        for name, shape in self._outputs.items():
            write(self._gpu, addresses[name], rng.standard_normal(shape, np.float32))

    def enqueue(self, stream: Stream) -> None:
        pass

    def close(self) -> None:
        pass
