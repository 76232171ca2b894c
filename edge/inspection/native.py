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

import msgspec
import numpy as np

from edge.errors import BundleMismatchError, FrameError
from edge.frames import F32, MAX_SIDE, U8, Area, PixelFormat, Roi, aligned_f32
from edge.inspection.canvas import Canvas
from edge.inspection.compare import Comparer, Comparison
from edge.inspection.corrections import NOTHING, Corrections
from edge.inspection.library import (
    BAYER,
    COLOUR,
    HOG_ORIENTATIONS,
    HOG_STRIP,
    MONO,
    NV12,
    PREPARE_COLUMNS,
    PREPARE_PLANE,
    PREPARE_SAMPLES,
    Axis,
    Colour,
    Frame,
    HogTables,
    LensTerms,
    PrepareTables,
    address,
    choose_isa,
    isas,
    kernel_function,
    output_address,
)
from edge.inspection.taps import Taps, shifted
from edge.manifest import ONE_TILE, CanvasSpec, InputSpec, MapSpec

__all__ = ["Comparer", "Comparison", "Preprocessor", "choose_isa", "isas", "nearest"]

#: Frame sizes whose tables are kept by a `Preprocessor`.
_KEPT_SIZES = 8


class FrameTables(NamedTuple):
    """The tables of one frame size and format, one for each tile; they point into `kept`.

    Attributes:
        area: where what is inspected of the frame lies on the canvas.
        region: what is inspected of the frame.
    """

    tiles: tuple[PrepareTables, ...]
    kept: tuple[Taps, Taps]
    area: Area
    region: Roi


def _axis(taps: Taps, begin: int) -> Axis:
    """Point to the taps from output `begin` on."""
    return Axis(taps.start[begin:].ctypes.data, taps.weight[begin:].ctypes.data, taps.weight.shape[1])


class Preprocessor:
    """The work before the network: camera bytes → network input `X`, HOG map `H` and its descriptor.

    HOG is made whatever the kind of `map_spec`: every other map is made by the network itself, from `X`.
    Each tile of the frame's canvas is a network input; by default there is one, the frame itself.  `corrections` are
    made on the way: of the frame as a colour image, each pixel is multiplied by its gain, then the lens's distortion is
    taken out, then the region of interest is cut out, then it is resized.
    `grey`, float32 `(height, width)`, levels 0–1, and `cells`, float32 `map_shape`, the un-normalised cell means, are
    views of the scratch memory and hold the last tile's values.  `hog_tables` are what the map's kernels are told, for
    runtimes that launch them elsewhere; their pointers lie in the arrays `kept`.

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
        corrections: Corrections = NOTHING,
    ) -> None:
        self.isa = choose_isa(isa)
        self.corrections = corrections
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
        self.kept = (
            np.concatenate([np.cos(angle), np.sin(angle)]).astype(np.float32),
            aligned_f32(high + 1, wide + 1),
            aligned_f32(high + 1, wide + 1),
            self.cells,
        )
        direction, first, second = (array.ctypes.data for array in self.kept[:3])
        self.hog_tables = HogTables(
            height, width, cell, n, pool, float(np.cos(np.pi / n)), map_spec.epsilon, map_spec.clip,
            direction, self.cells.ctypes.data, first, second,
        )  # fmt: skip
        self._hog_address = ctypes.addressof(self.hog_tables)
        self._grey_address = self.grey.ctypes.data
        self._frames: dict[tuple[tuple[int, ...], PixelFormat, bool], FrameTables] = {}
        self._run_prepare = kernel_function("redi_prepare", self.isa)
        self._run_hog = kernel_function("redi_hog", self.isa)
        self._run_descriptor = kernel_function("redi_descriptor", self.isa)

    def __call__(
        self,
        pixels: U8,
        pixel_format: PixelFormat,
        x: F32,
        h: F32,
        descriptor: F32,
        tile: int = 0,
        *,
        corrected: bool = False,
    ) -> None:
        """Fill `x` `(3, height, width)`, `h` `map_shape` and `descriptor` `(descriptor_size,)` from a frame's tile.

        Args:
            pixels: uint8, of its format's shape; rows may lie apart (a view of a larger buffer), pixels within a row
                may not.
            pixel_format: layout of `pixels`.
            x: the network input.
            h: histograms of oriented gradients, L2-Hys normalised, 0–1.
            descriptor: `h` pooled and scaled to unit length; all zeros for a tile without any gradient.
            tile: its number, row by row from 0.
            corrected: the corrections are not for this frame.

        Raises:
            FrameError: the frame is empty, too large, not of its format's shape and type, or not what the corrections
                are for.
            ValueError: an output has the wrong type or shape.
        """
        self.prepare(pixels, pixel_format, x, tile, corrected=corrected)
        self.describe(h, descriptor)

    def describe(self, h: F32, descriptor: F32) -> None:
        """Fill `h` and `descriptor` from `self.grey`; see `__call__`."""
        self.hog(h)
        out = output_address(descriptor, np.float32, (self.descriptor_size,), "descriptor")
        self._run_descriptor(self._hog_address, h.ctypes.data, out)

    def prepare(self, pixels: U8, pixel_format: PixelFormat, x: F32, tile: int = 0, *, corrected: bool = False) -> None:
        """Fill `x` and `self.grey` from a frame's tile; see `__call__`."""
        frame = self.tables(pixels, pixel_format, corrected=corrected)
        shape = (3, self.input_spec.height, self.input_spec.width)
        out = output_address(x, np.float32, shape, "x")
        tables = ctypes.addressof(frame.tiles[tile])
        self._run_prepare(tables, pixels.ctypes.data, pixels.strides[0], out, self._grey_address)

    def tables(self, pixels: U8, pixel_format: PixelFormat, *, corrected: bool = False) -> FrameTables:
        """Return the tables for a frame like this one, made at the first of its kind; a few kinds are kept.

        Raises:
            FrameError: see `__call__`.
        """
        key = (pixels.shape, pixel_format, corrected)
        frame = self._frames.get(key)
        if frame is None:
            frame = self._make_tables(pixels.shape, pixel_format, NOTHING if corrected else self.corrections)
            if len(self._frames) >= _KEPT_SIZES:
                self._frames.pop(next(iter(self._frames)))
            self._frames[key] = frame
        if pixels.dtype != np.uint8:
            raise FrameError(f"a frame of {pixels.dtype} samples, uint8 is needed", "configure the camera for 8 bits")
        channels = pixel_format.channels
        if (channels > 1 and pixels.strides[2] != 1) or (pixels.strides[1] != channels and pixels.shape[1] > 1):
            raise FrameError(f"a frame whose rows are not contiguous: strides {pixels.strides}")
        return frame

    def hog(self, h: F32) -> None:
        """Fill `h`, float32 `map_shape`, and `self.cells` from `self.grey`."""
        self._run_hog(self._hog_address, self._grey_address, output_address(h, np.float32, self.map_shape, "h"))

    def _make_tables(self, shape: tuple[int, ...], pixel_format: PixelFormat, corrections: Corrections) -> FrameTables:
        height, width = pixel_format.size(shape)
        if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
            raise FrameError(f"a frame of {width} x {height} pixels, 1 to {MAX_SIDE} a side are possible")
        region = corrections.region(height, width)
        gain = corrections.flat_field
        layout = _layout(pixel_format)
        spec = self.input_spec
        rows, columns = self.canvas.taps(region.height, region.width)
        rows, columns = shifted(rows, region.y), shifted(columns, region.x)
        interleaved = layout in (COLOUR, MONO) and gain is None and corrections.lens is None
        limit = PREPARE_SAMPLES // pixel_format.channels if interleaved else PREPARE_PLANE
        strip = self._strip(columns, limit)
        blue_first = pixel_format is PixelFormat.BGR8
        plane = np.array([0, 1, 2] if blue_first == (spec.order == "bgr") else [2, 1, 0])
        mean, std = np.array(spec.mean)[plane], np.array(spec.std)[plane]
        colour = Colour(
            (ctypes.c_int32 * 3)(*plane),
            (ctypes.c_float * 3)(*(spec.scale / std)),
            (ctypes.c_float * 3)(*(-mean / std)),
            blue_first,
        )
        red = max(0, pixel_format.bayer.find("r"))
        lens = corrections.lens
        terms = LensTerms() if lens is None else LensTerms(*msgspec.structs.astuple(lens))
        frame = Frame(None if gain is None else gain.ctypes.data, height, width, red, lens is not None, terms)
        tiles = tuple(
            PrepareTables(_axis(rows, top), _axis(columns, left), colour, frame, layout, spec.height, spec.width, strip)
            for top, left in self.canvas.corners
        )
        return FrameTables(tiles, (rows, columns), self.canvas.area(region.height, region.width), region)

    def _strip(self, columns: Taps, limit: int) -> int:
        """Return how many output columns a block makes, of at most `limit` pixels of a source row."""
        width = self.input_spec.width
        # A tile's tables are those of the canvas from its corner on.
        strip = min(width, PREPARE_COLUMNS)
        taps = columns.weight.shape[1]
        while any(
            columns.start[left + min(at + strip, width) - 1] + taps - columns.start[left + at] > limit
            for left in {left for _, left in self.canvas.corners}
            for at in range(0, width, strip)
        ):
            strip = (strip + 1) // 2
        return strip


def _layout(pixel_format: PixelFormat) -> int:
    if pixel_format.bayer:
        return BAYER
    if pixel_format is PixelFormat.NV12:
        return NV12
    return MONO if pixel_format is PixelFormat.MONO8 else COLOUR


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
