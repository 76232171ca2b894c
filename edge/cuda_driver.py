"""What the NVIDIA driver says of itself and its devices, asked through ctypes: no CUDA package is needed.

Every figure is an attribute that the driver was asked for; nothing is concluded from a name.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

LIBRARY = "libcuda.so.1"

#: `CUdevice_attribute` of the driver's interface.
_INTEGRATED, _MAJOR, _MINOR = 18, 75, 76
_NAME_BYTES = 256


class DriverError(Exception):
    """There is no driver, or it refuses; the text says which."""


@dataclass(frozen=True)
class Device:
    """One GPU: its name, compute capability, memory in bytes, and whether it shares the processor's memory."""

    name: str
    compute_capability: tuple[int, int]
    memory: int
    integrated: bool


@dataclass(frozen=True)
class Driver:
    """The driver: the newest CUDA version that it runs, and its devices."""

    cuda: tuple[int, int]
    devices: tuple[Device, ...]


def probe_driver(library: str = LIBRARY) -> Driver:
    """Ask the driver.

    Raises:
        DriverError: it is not installed, or answers with an error.
    """
    try:
        cuda = ctypes.CDLL(library)
    except OSError as error:
        raise DriverError(f"cannot be loaded: {error}") from error
    call(cuda, "cuInit", ctypes.c_uint(0))
    version = _integer(cuda, "cuDriverGetVersion")
    count = _integer(cuda, "cuDeviceGetCount")
    return Driver((version // 1000, version % 1000 // 10), tuple(_device(cuda, ordinal) for ordinal in range(count)))


def _device(cuda: ctypes.CDLL, ordinal: int) -> Device:
    handle = ctypes.c_int(_integer(cuda, "cuDeviceGet", ctypes.c_int(ordinal)))
    name = ctypes.create_string_buffer(_NAME_BYTES)
    call(cuda, "cuDeviceGetName", name, ctypes.c_int(_NAME_BYTES), handle)
    memory = ctypes.c_size_t()
    call(cuda, "cuDeviceTotalMem_v2", ctypes.byref(memory), handle)
    major, minor, integrated = (
        _integer(cuda, "cuDeviceGetAttribute", ctypes.c_int(attribute), handle)
        for attribute in (_MAJOR, _MINOR, _INTEGRATED)
    )
    return Device(name.value.decode(errors="replace"), (major, minor), memory.value, bool(integrated))


def _integer(cuda: ctypes.CDLL, function: str, *arguments: Any) -> int:
    """Call a function whose first argument is where it writes an int, and return that int."""
    value = ctypes.c_int()
    call(cuda, function, ctypes.byref(value), *arguments)
    return value.value


def call(cuda: ctypes.CDLL, function: str, *arguments: Any) -> None:
    """Call a function of the driver.

    Raises:
        DriverError: it is not there, or answers with an error; says which by the driver's name.
    """
    try:
        code = getattr(cuda, function)(*arguments)
    except AttributeError as error:
        raise DriverError(f"the driver has no {function}") from error
    if code:
        raise DriverError(f"{function}: {_error_name(cuda, code)}")


def _error_name(cuda: ctypes.CDLL, code: int) -> str:
    name = ctypes.c_char_p()
    try:
        known = cuda.cuGetErrorName(ctypes.c_int(code), ctypes.byref(name)) == 0
    except AttributeError:
        known = False
    return f"{name.value.decode(errors='replace')} ({code})" if known and name.value else f"error {code}"
