"""The library of native kernels: where it is, what it was built for, and its C interface as ctypes sees it.

The structures mirror those of `kernels/host.cpp`.  A library whose interface number, structure sizes or constants are
not these is refused before it is called: a stale build must not crash a station.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edge.inspection
from edge.errors import RuntimeUnavailableError

LIBRARY = "libredi_kernels.so"
_ABI = 4
#: Constants of the kernels that the tables depend on.
PREPARE_SAMPLES, PREPARE_COLUMNS, PREPARE_PLANE, HOG_STRIP, HOG_ORIENTATIONS = 4096, 512, 680, 256, 18
GROUP, GATHER_STRIP = 32, 2048
#: How a frame's bytes lie.
COLOUR, MONO, NV12, BAYER = range(4)
_HINT = "build it: pip install . (or: pip install --no-build-isolation -e .) with a C++ compiler present"


class Axis(ctypes.Structure):
    """Taps of one image axis."""

    _fields_ = (("start", ctypes.c_void_p), ("weight", ctypes.c_void_p), ("taps", ctypes.c_int32))


class Colour(ctypes.Structure):
    """Where a source sample goes and how it is scaled."""

    _fields_ = (
        ("plane", ctypes.c_int32 * 3),
        ("gain", ctypes.c_float * 3),
        ("offset", ctypes.c_float * 3),
        ("blue_first", ctypes.c_int32),
    )


class LensTerms(ctypes.Structure):
    """A lens, in the terms of `edge.manifest.Lens`."""

    _fields_ = tuple((name, ctypes.c_float) for name in ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2", "k3"))


class Frame(ctypes.Structure):
    """The frame that the taps point into, and how it is corrected."""

    _fields_ = (
        ("gain", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("height", "width", "red", "bent")),
        ("lens", LensTerms),
    )


class PrepareTables(ctypes.Structure):
    """All that `redi_prepare` needs for one frame size."""

    _fields_ = (
        ("rows", Axis),
        ("columns", Axis),
        ("colour", Colour),
        ("frame", Frame),
        *((name, ctypes.c_int32) for name in ("layout", "height", "width", "strip")),
    )


class HogTables(ctypes.Structure):
    """All that `redi_hog` and `redi_descriptor` need."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("height", "width", "cell", "orientations", "pool")),
        *((name, ctypes.c_float) for name in ("nearest", "epsilon", "clip")),
        *((name, ctypes.c_void_p) for name in ("direction", "cells", "first", "second")),
    )


class ScaleTables(ctypes.Structure):
    """One feature scale and its column taps."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("channels", "rows", "columns", "taps")),
        *((name, ctypes.c_void_p) for name in ("start", "weight")),
    )


class CompareTables(ctypes.Structure):
    """All that `redi_compare` needs."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("height", "width", "top_k", "scales")),
        ("scale", ctypes.POINTER(ScaleTables)),
        *((name, ctypes.c_void_p) for name in ("begin", "row", "weight", "distance", "spread", "group_peak")),
    )


class CanvasTables(ctypes.Structure):
    """A map put together from tiles, for `redi_finish_map`."""

    _fields_ = (*((name, ctypes.c_int32) for name in ("height", "width", "top_k")), ("group_peak", ctypes.c_void_p))


class AreaBounds(ctypes.Structure):
    """Where a frame lies on a map: its first row and the one after its last, then its columns likewise."""

    _fields_ = tuple((name, ctypes.c_int32) for name in ("top", "bottom", "left", "right"))


class ComparisonResult(ctypes.Structure):
    """What `redi_compare` and `redi_finish_map` return."""

    _fields_ = (("score", ctypes.c_float), ("peak", ctypes.c_float), ("flagged", ctypes.c_int32))


#: In the order of `LAYOUT` in `kernels/host.cpp`.
_LAYOUT = (
    *map(ctypes.sizeof, (Axis, Colour, Frame, PrepareTables, HogTables, ScaleTables, CompareTables)),
    *map(ctypes.sizeof, (CanvasTables, AreaBounds, ComparisonResult)),
    *(PREPARE_SAMPLES, PREPARE_COLUMNS, PREPARE_PLANE, HOG_STRIP, HOG_ORIENTATIONS, GROUP, GATHER_STRIP),
)

_pointer, _int, _float = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "redi_prepare": (_pointer, _pointer, ctypes.c_int64, _pointer, _pointer),
    "redi_hog": (_pointer, _pointer, _pointer),
    "redi_descriptor": (_pointer, _pointer, _pointer),
    "redi_nearest": (_pointer, _pointer, _int, _int, _pointer, _pointer),
    "redi_gather": (_pointer, _pointer, _int, _pointer),
    "redi_compare": (_pointer, _pointer, _pointer, _float, _pointer, _pointer, _pointer),
    "redi_compare_tile": (_pointer, _pointer, _pointer, _pointer, _pointer, _int, _pointer),
    "redi_finish_map": (_pointer, _pointer, _float, _pointer, _pointer, _pointer),
}


@functools.cache
def _library() -> ctypes.CDLL:
    """Load the kernels from beside this package, or from where an editable installation put them."""
    installed = [Path(sysconfig.get_path(kind), "edge", "inspection") for kind in ("platlib", "purelib")]
    folders = [*map(Path, edge.inspection.__path__), *installed]
    tried = list(dict.fromkeys(folder / LIBRARY for folder in folders))
    for path in tried:
        if path.is_file():
            return _load(path)
    raise RuntimeUnavailableError(f"the native kernels are not installed: no {' or '.join(map(str, tried))}", _HINT)


def _load(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
        library.redi_isas.restype = ctypes.c_char_p
        built = library.redi_abi()
        if built != _ABI:
            raise RuntimeUnavailableError(f"{path} has interface {built}, this release needs {_ABI}", _HINT)
        for isa in library.redi_isas().decode().split():
            sizes = (ctypes.c_int64 * len(_LAYOUT))()
            count = getattr(library, f"redi_layout_{isa}")(sizes, len(sizes))
            if count != len(_LAYOUT) or tuple(sizes) != _LAYOUT:
                raise RuntimeUnavailableError(f"{path} is of another release: its tables are laid out otherwise", _HINT)
            for name in _SIGNATURES:
                getattr(library, f"{name}_{isa}")
    except (OSError, AttributeError) as error:
        raise RuntimeUnavailableError(f"{path} cannot be loaded: {error}", _HINT) from error
    return library


@functools.cache
def isas() -> tuple[str, ...]:
    """Return the instruction sets that the kernels were built for and this CPU has, the best last.

    Raises:
        RuntimeUnavailableError: the kernels are missing or of another release.
    """
    return tuple(_library().redi_isas().decode().split())


def choose_isa(isa: str | None = None) -> str:
    """Return `isa`, or else the environment's `REDI_ISA`, or else the best one, after checking that it can run here.

    Raises:
        RuntimeUnavailableError: it cannot, or the kernels are missing.
    """
    usable = isas()
    wanted = isa or os.environ.get("REDI_ISA") or usable[-1]
    if wanted not in usable:
        hint = f"use one of {', '.join(usable)} (in the environment variable REDI_ISA), or unset it"
        raise RuntimeUnavailableError(f"this machine cannot run the kernels for {wanted!r}", hint)
    return wanted


@functools.cache
def kernel_function(name: str, isa: str) -> Any:
    """Return the kernel `name`, a key of `_SIGNATURES`, compiled for `isa`; its arguments are checked by ctypes."""
    function = getattr(_library(), f"{name}_{isa}")
    function.argtypes = _SIGNATURES[name]
    function.restype = None
    return function


def address(array: NDArray[Any], dtype: type[np.generic], shape: tuple[int, ...], name: str) -> int:
    """Return where `array` lies, after checking that it is C-contiguous, of this type and shape (or `(1, *shape)`)."""
    if array.dtype != dtype or not array.flags.c_contiguous or (array.shape != shape and array.shape != (1, *shape)):
        order = "C-contiguous" if array.flags.c_contiguous else "not contiguous"
        wanted = np.dtype(dtype).name
        raise ValueError(f"{name} must be C-contiguous {wanted} {shape}, not {order} {array.dtype} {array.shape}")
    return array.ctypes.data


def output_address(array: NDArray[Any], dtype: type[np.generic], shape: tuple[int, ...], name: str) -> int:
    """Return the same of an array that is to be written."""
    if not array.flags.writeable:
        raise ValueError(f"{name} is read-only")
    return address(array, dtype, shape, name)
