"""The native kernels on this machine's CPU: a frame's *before* and *after*, the same code in training and at the edge.

The kernels are the `.cu` texts in `kernels/`, built into `libredi_kernels.so`, once for each instruction set; the best
one that the CPU has is chosen when an object is made.  All give the same bits.  Tables and scratch memory belong to the
object and are made once; a call allocates nothing, runs on the calling thread and does not hold the interpreter lock.
Different objects may be called from different threads at the same time, one object only from one.
"""

from __future__ import annotations

import ctypes
import threading
from typing import NamedTuple

import numpy as np

from edge.errors import BundleMismatchError, FrameError
from edge.frames import F32, MAX_SIDE, U8, PixelFormat, aligned_f32
from edge.inspection.canvas import Canvas
from edge.inspection.compare import Comparer, Comparison
from edge.inspection.library import (
    HOG_ORIENTATIONS,
    HOG_STRIP,
    PREPARE_COLUMNS,
    PREPARE_SAMPLES,
    Axis,
    Colour,
    HogTables,
    PrepareTables,
    address,
    choose_isa,
    isas,
    kernel_function,
    output_address,
)
from edge.inspection.taps import Taps
from edge.manifest import ONE_TILE, CanvasSpec, InputSpec, MapSpec

__all__ = ["Comparer", "Comparison", "Preprocessor", "choose_isa", "isas", "nearest"]

#: Frame sizes whose tables are kept by a `Preprocessor`.
_KEPT_SIZES = 8


class _Frame(NamedTuple):
    """The tables of one frame size: `tiles` point into `kept`."""

    tiles: tuple[PrepareTables, ...]
    kept: tuple[Taps, Taps]


def _axis(taps: Taps, begin: int) -> Axis:
    """Point to the taps from output `begin` on."""
    return Axis(taps.start[begin:].ctypes.data, taps.weight[begin:].ctypes.data, taps.weight.shape[1])


class Preprocessor:
    """The work before the network: camera bytes → network input `X`, HOG map `H` and its descriptor.

    HOG is made whatever the kind of `map_spec`: every other map is made by the network itself, from `X`.
    Each tile of the frame's canvas is a network input; by default there is one, the frame itself.
    `grey`, float32 `(height, width)`, levels 0–1, and `cells`, float32 `map_shape`, the un-normalised cell means, are
    views of the scratch memory and hold the last tile's values.

    Raises:
        BundleMismatchError: the kernels cannot serve these specifications.
        RuntimeUnavailableError: the kernels are missing, or `isa` cannot run here.
    """

    def __init__(
        self,
        input_spec: InputSpec,
        map_spec: MapSpec,
        canvas_spec: CanvasSpec = ONE_TILE,
        *,
        isa: str | None = None,
    ) -> None:
        self.isa = choose_isa(isa)
        self.input_spec = input_spec
        self.canvas = Canvas(input_spec, canvas_spec)
        height, width = input_spec.height, input_spec.width
        cell, n, pool = map_spec.cell, map_spec.orientations, map_spec.descriptor_pool
        _check_specs(input_spec, map_spec)
        high, wide = height // cell, width // cell
        self.map_shape = (n, high, wide)
        self.descriptor_size = n * (high // pool) * (wide // pool)
        # The gradient kernel reads one float before and after the plane.
        padded = aligned_f32(height * width + 32)
        self.grey: F32 = padded[16:-16].reshape(height, width)
        self.cells: F32 = aligned_f32(*self.map_shape)
        angle = (np.arange(n) + 0.5) * np.pi / n
        self._kept = (
            np.concatenate([np.cos(angle), np.sin(angle)]).astype(np.float32),
            aligned_f32(high + 1, wide + 1),
            aligned_f32(high + 1, wide + 1),
        )
        direction, first, second = (array.ctypes.data for array in self._kept)
        self._hog = HogTables(
            height, width, cell, n, pool, float(np.cos(np.pi / n)), map_spec.epsilon, map_spec.clip,
            direction, self.cells.ctypes.data, first, second,
        )  # fmt: skip
        self._hog_address = ctypes.addressof(self._hog)
        self._grey_address = self.grey.ctypes.data
        self._frames: dict[tuple[tuple[int, ...], PixelFormat], _Frame] = {}
        self._run_prepare = kernel_function("redi_prepare", self.isa)
        self._run_hog = kernel_function("redi_hog", self.isa)
        self._run_descriptor = kernel_function("redi_descriptor", self.isa)

    def __call__(self, pixels: U8, pixel_format: PixelFormat, x: F32, h: F32, descriptor: F32, tile: int = 0) -> None:
        """Fill `x` `(3, height, width)`, `h` `map_shape` and `descriptor` `(descriptor_size,)` from a frame's tile.

        Args:
            pixels: uint8 `(rows, columns)` for mono8, else `(rows, columns, 3)`; rows may lie apart (a view of a larger
                buffer), pixels within a row may not.
            pixel_format: layout of `pixels`.
            x: the network input.
            h: histograms of oriented gradients, L2-Hys normalised, 0–1.
            descriptor: `h` pooled and scaled to unit length; all zeros for a tile without any gradient.
            tile: its number, row by row from 0.

        Raises:
            FrameError: the frame is empty, too large, or not of its format's shape and type.
            ValueError: an output has the wrong type or shape.
        """
        self.prepare(pixels, pixel_format, x, tile)
        self.describe(h, descriptor)

    def describe(self, h: F32, descriptor: F32) -> None:
        """Fill `h` and `descriptor` from `self.grey`; see `__call__`."""
        self.hog(h)
        out = output_address(descriptor, np.float32, (self.descriptor_size,), "descriptor")
        self._run_descriptor(self._hog_address, h.ctypes.data, out)

    def prepare(self, pixels: U8, pixel_format: PixelFormat, x: F32, tile: int = 0) -> None:
        """Fill `x` and `self.grey` from a frame's tile; see `__call__`."""
        frame = self._frames.get((pixels.shape, pixel_format)) or self._make_tables(pixels.shape, pixel_format)
        if pixels.dtype != np.uint8:
            raise FrameError(f"a frame of {pixels.dtype} samples, uint8 is needed", "configure the camera for 8 bits")
        channels = pixel_format.channels
        if (channels > 1 and pixels.strides[2] != 1) or (pixels.strides[1] != channels and pixels.shape[1] > 1):
            raise FrameError(f"a frame whose rows are not contiguous: strides {pixels.strides}")
        shape = (3, self.input_spec.height, self.input_spec.width)
        out = output_address(x, np.float32, shape, "x")
        tables = ctypes.addressof(frame.tiles[tile])
        self._run_prepare(tables, pixels.ctypes.data, pixels.strides[0], out, self._grey_address)

    def hog(self, h: F32) -> None:
        """Fill `h`, float32 `map_shape`, and `self.cells` from `self.grey`."""
        self._run_hog(self._hog_address, self._grey_address, output_address(h, np.float32, self.map_shape, "h"))

    def _make_tables(self, shape: tuple[int, ...], pixel_format: PixelFormat) -> _Frame:
        channels = pixel_format.channels
        if len(shape) != (2 if channels == 1 else 3) or shape[2:] not in ((), (channels,)):
            raise FrameError(f"a frame of shape {shape} is not {pixel_format.value}", "check the camera's pixel format")
        if not (0 < shape[0] <= MAX_SIDE and 0 < shape[1] <= MAX_SIDE):
            raise FrameError(f"a frame of {shape[1]} x {shape[0]} pixels, 1 to {MAX_SIDE} a side are possible")
        spec = self.input_spec
        rows, columns = self.canvas.taps(*shape[:2])
        # A tile's tables are those of the canvas from its corner on.
        strip = min(spec.width, PREPARE_COLUMNS)
        taps = columns.weight.shape[1]
        while any(
            (columns.start[left + min(at + strip, spec.width) - 1] + taps - columns.start[left + at]) * channels
            > PREPARE_SAMPLES
            for left in {left for _, left in self.canvas.corners}
            for at in range(0, spec.width, strip)
        ):
            strip = (strip + 1) // 2
        blue_first = pixel_format is PixelFormat.BGR8
        plane = np.array([0, 1, 2] if blue_first == (spec.order == "bgr") else [2, 1, 0])
        mean, std = np.array(spec.mean)[plane], np.array(spec.std)[plane]
        colour = Colour(
            (ctypes.c_int32 * 3)(*plane),
            (ctypes.c_float * 3)(*(spec.scale / std)),
            (ctypes.c_float * 3)(*(-mean / std)),
            blue_first,
        )
        if len(self._frames) >= _KEPT_SIZES:
            self._frames.pop(next(iter(self._frames)))
        tiles = tuple(
            PrepareTables(_axis(rows, top), _axis(columns, left), colour, channels, spec.height, spec.width, strip)
            for top, left in self.canvas.corners
        )
        self._frames[shape, pixel_format] = frame = _Frame(tiles, (rows, columns))
        return frame


def _check_specs(inputs: InputSpec, maps: MapSpec) -> None:
    height, width, cell, pool = inputs.height, inputs.width, maps.cell, maps.descriptor_pool
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE) or height % 32 or width % 32:
        raise BundleMismatchError(f"an input of {width} x {height} pixels: both must be multiples of 32 to {MAX_SIDE}")
    if inputs.order not in ("rgb", "bgr") or not all(inputs.std):
        raise BundleMismatchError(f"an input of order {inputs.order!r} and std {inputs.std}: rgb or bgr, std not zero")
    if not 1 <= maps.orientations <= HOG_ORIENTATIONS:
        raise BundleMismatchError(f"{maps.orientations} map orientations: 1 to {HOG_ORIENTATIONS} are possible")
    if not 1 <= cell <= HOG_STRIP or height % cell or width % cell or min(height, width) < 2 * cell:
        raise BundleMismatchError(f"map cells of {cell} pixels do not divide an input of {width} x {height} pixels")
    if pool < 1 or height // cell % pool or width // cell % pool:
        raise BundleMismatchError(
            f"a descriptor pool of {pool} does not divide {width // cell} x {height // cell} cells"
        )
    if not (maps.epsilon > 0 and maps.clip > 0):
        raise BundleMismatchError(f"map epsilon {maps.epsilon} and clip {maps.clip} must be above zero")


_scratch = threading.local()


def nearest(descriptor: F32, bank: F32, *, isa: str | None = None) -> tuple[int, float]:
    """Return the index of the bank entry with the largest dot product with `descriptor`, and that product.

    The lowest index wins a tie.  `descriptor` is float32 `(D,)`, `bank` float32 `(K, D)` with K > 0.

    Raises:
        ValueError: wrong types or shapes.
    """
    if bank.ndim != 2 or bank.shape[0] == 0:
        raise ValueError(f"the bank must have at least one entry: shape {bank.shape}")
    entries, size = bank.shape
    similarity: F32 | None = getattr(_scratch, "similarity", None)
    if similarity is None or similarity.size < entries:
        similarity = _scratch.similarity = aligned_f32(entries)
        _scratch.best = ctypes.c_int()
    best = _scratch.best
    kernel_function("redi_nearest", choose_isa(isa))(
        address(descriptor, np.float32, (size,), "descriptor"),
        address(bank, np.float32, (entries, size), "bank"),
        entries,
        size,
        similarity.ctypes.data,
        ctypes.addressof(best),
    )
    return best.value, float(similarity[best.value])
