"""The native kernels on this machine's CPU: a frame's *before* and *after*, the same code in training and at the edge.

The kernels are the `.cu` texts in `kernels/`, built into `libredi_kernels.so`, once for each instruction set; the best
one that the CPU has is chosen when an object is made.  All give the same bits.  Tables and scratch memory belong to the
object and are made once; a call allocates nothing, runs on the calling thread and does not hold the interpreter lock.
Different objects may be called from different threads at the same time, one object only from one.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.errors import BundleMismatchError, FrameError
from edge.frames import F32, MAX_SIDE, U8, PixelFormat, aligned_bytes, aligned_f32
from edge.inspection.library import (
    GROUP,
    HOG_ORIENTATIONS,
    HOG_STRIP,
    PREPARE_COLUMNS,
    PREPARE_SAMPLES,
    Axis,
    Colour,
    CompareTables,
    ComparisonResult,
    HogTables,
    PrepareTables,
    ScaleTables,
    choose_isa,
    isas,
    kernel_function,
)
from edge.inspection.taps import Taps, banded, compressed_rows, resize_taps, smoothing_matrix
from edge.manifest import CompareSpec, InputSpec, MapSpec

__all__ = ["Comparer", "Comparison", "Preprocessor", "choose_isa", "isas", "nearest"]

#: Frame sizes whose tables are kept by a `Preprocessor`.
_KEPT_SIZES = 8


def _address(array: NDArray[Any], dtype: type[np.generic], shape: tuple[int, ...], name: str) -> int:
    """Return where `array` lies, after checking that it is C-contiguous, of this type and shape (or `(1, *shape)`)."""
    if array.dtype != dtype or not array.flags.c_contiguous or (array.shape != shape and array.shape != (1, *shape)):
        order = "C-contiguous" if array.flags.c_contiguous else "not contiguous"
        wanted = np.dtype(dtype).name
        raise ValueError(f"{name} must be C-contiguous {wanted} {shape}, not {order} {array.dtype} {array.shape}")
    return array.ctypes.data


def _output(array: NDArray[Any], dtype: type[np.generic], shape: tuple[int, ...], name: str) -> int:
    if not array.flags.writeable:
        raise ValueError(f"{name} is read-only")
    return _address(array, dtype, shape, name)


def _axis(taps: Taps) -> Axis:
    return Axis(taps.start.ctypes.data, taps.weight.ctypes.data, taps.weight.shape[1])


class Preprocessor:
    """The work before the network: camera bytes → network input `X`, self-generated map `H` and its descriptor.

    `grey`, float32 `(height, width)`, levels 0–1, and `cells`, float32 `map_shape`, the un-normalised cell means, are
    views of the scratch memory and hold the last frame's values.

    Raises:
        BundleMismatchError: the kernels cannot serve these specifications.
        RuntimeUnavailableError: the kernels are missing, or `isa` cannot run here.
    """

    def __init__(self, input_spec: InputSpec, map_spec: MapSpec, *, isa: str | None = None) -> None:
        self.isa = choose_isa(isa)
        self.input_spec = input_spec
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
        self._tables: dict[tuple[tuple[int, ...], PixelFormat], tuple[PrepareTables, Taps, Taps]] = {}
        self._run_prepare = kernel_function("redi_prepare", self.isa)
        self._run_hog = kernel_function("redi_hog", self.isa)
        self._run_descriptor = kernel_function("redi_descriptor", self.isa)

    def __call__(self, pixels: U8, pixel_format: PixelFormat, x: F32, h: F32, descriptor: F32) -> None:
        """Fill `x` `(3, height, width)`, `h` `map_shape` and `descriptor` `(descriptor_size,)` from one frame.

        Args:
            pixels: uint8 `(rows, columns)` for mono8, else `(rows, columns, 3)`; rows may lie apart (a view of a larger
                buffer), pixels within a row may not.
            pixel_format: layout of `pixels`.
            x: the network input.
            h: histograms of oriented gradients, L2-Hys normalised, 0–1.
            descriptor: `h` pooled and scaled to unit length; all zeros for a frame without any gradient.

        Raises:
            FrameError: the frame is empty, too large, or not of its format's shape and type.
            ValueError: an output has the wrong type or shape.
        """
        self.prepare(pixels, pixel_format, x)
        self.hog(h)
        out = _output(descriptor, np.float32, (self.descriptor_size,), "descriptor")
        self._run_descriptor(self._hog_address, h.ctypes.data, out)

    def prepare(self, pixels: U8, pixel_format: PixelFormat, x: F32) -> None:
        """Fill `x` and `self.grey` from one frame; see `__call__`."""
        tables = self._tables.get((pixels.shape, pixel_format))
        if tables is None:
            tables = self._make_tables(pixels.shape, pixel_format)
        if pixels.dtype != np.uint8:
            raise FrameError(f"a frame of {pixels.dtype} samples, uint8 is needed", "configure the camera for 8 bits")
        channels = pixel_format.channels
        if (channels > 1 and pixels.strides[2] != 1) or (pixels.strides[1] != channels and pixels.shape[1] > 1):
            raise FrameError(f"a frame whose rows are not contiguous: strides {pixels.strides}")
        shape = (3, self.input_spec.height, self.input_spec.width)
        out = _output(x, np.float32, shape, "x")
        self._run_prepare(ctypes.addressof(tables[0]), pixels.ctypes.data, pixels.strides[0], out, self._grey_address)

    def hog(self, h: F32) -> None:
        """Fill `h`, float32 `map_shape`, and `self.cells` from `self.grey`."""
        self._run_hog(self._hog_address, self._grey_address, _output(h, np.float32, self.map_shape, "h"))

    def _make_tables(self, shape: tuple[int, ...], pixel_format: PixelFormat) -> tuple[PrepareTables, Taps, Taps]:
        channels = pixel_format.channels
        if len(shape) != (2 if channels == 1 else 3) or shape[2:] not in ((), (channels,)):
            raise FrameError(f"a frame of shape {shape} is not {pixel_format.value}", "check the camera's pixel format")
        if not (0 < shape[0] <= MAX_SIDE and 0 < shape[1] <= MAX_SIDE):
            raise FrameError(f"a frame of {shape[1]} x {shape[0]} pixels, 1 to {MAX_SIDE} a side are possible")
        spec = self.input_spec
        rows, columns = resize_taps(shape[0], spec.height), resize_taps(shape[1], spec.width)
        strip = min(spec.width, PREPARE_COLUMNS)
        taps = columns.weight.shape[1]
        while any(
            (columns.start[min(at + strip, spec.width) - 1] + taps - columns.start[at]) * channels > PREPARE_SAMPLES
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
        if len(self._tables) >= _KEPT_SIZES:
            self._tables.pop(next(iter(self._tables)))
        tables = PrepareTables(_axis(rows), _axis(columns), colour, channels, spec.height, spec.width, strip)
        self._tables[shape, pixel_format] = entry = (tables, rows, columns)
        return entry


def _check_specs(inputs: InputSpec, maps: MapSpec) -> None:
    height, width, cell, pool = inputs.height, inputs.width, maps.cell, maps.descriptor_pool
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE) or height % 32 or width % 32:
        raise BundleMismatchError(f"an input of {width} x {height} pixels: both must be multiples of 32 to {MAX_SIDE}")
    if inputs.order not in ("rgb", "bgr") or not all(inputs.std):
        raise BundleMismatchError(f"an input of order {inputs.order!r} and std {inputs.std}: rgb or bgr, std not zero")
    if maps.kind != "hog":
        raise BundleMismatchError(f"a self-generated map of kind {maps.kind!r}: only 'hog' is known")
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
        _address(descriptor, np.float32, (size,), "descriptor"),
        _address(bank, np.float32, (entries, size), "bank"),
        entries,
        size,
        similarity.ctypes.data,
        ctypes.addressof(best),
    )
    return best.value, float(similarity[best.value])


class Comparison(NamedTuple):
    """Image score (mean of the top-k map values), peak (maximum) and number of pixels above the pixel threshold.

    Score and peak are NaN where the map holds a NaN.
    """

    score: float
    peak: float
    flagged: int


class Comparer:
    """The fused comparison after the network: two sets of features → anomaly map, defect mask, image score.

    Args:
        spec: scales, smoothing and top-k.
        height: of the anomaly map, a multiple of 32, in pixels.
        width: likewise.
        isa: instruction set; see `choose_isa`.

    Raises:
        BundleMismatchError: the kernels cannot serve this specification.
        RuntimeUnavailableError: the kernels are missing, or `isa` cannot run here.
    """

    def __init__(self, spec: CompareSpec, height: int, width: int, *, isa: str | None = None) -> None:
        self.isa = choose_isa(isa)
        self.spec = spec
        self.shape = (height, width)
        if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE) or height % 32 or width % 32:
            raise BundleMismatchError(f"an anomaly map of {width} x {height} pixels: not multiples of 32 to {MAX_SIDE}")
        if not spec.scales or any(len(scale) != 3 or min(scale) < 1 for scale in spec.scales):
            raise BundleMismatchError(f"feature scales {spec.scales}: each needs channels, height and width above zero")
        if not 0 <= spec.sigma < np.inf or spec.top_k < 1:
            raise BundleMismatchError(f"sigma {spec.sigma} must not be negative and top_k {spec.top_k} at least 1")
        bands = [banded(smoothing_matrix(columns, width, spec.sigma)) for _, _, columns in spec.scales]
        rows = [smoothing_matrix(rows, height, spec.sigma) for _, rows, _ in spec.scales]
        self._kept = (
            *compressed_rows(np.concatenate(rows, axis=1)),
            aligned_f32(max(rows * columns for _, rows, columns in spec.scales)),
            aligned_f32(sum(rows for _, rows, _ in spec.scales), width),
            aligned_bytes(4 * height * width // GROUP),
            *(array for band in bands for array in band),
        )
        n = len(spec.scales)
        self._scales = (ScaleTables * n)(
            *(
                ScaleTables(*scale, weight.shape[1], start.ctypes.data, weight.ctypes.data)
                for scale, (start, weight) in zip(spec.scales, bands, strict=True)
            )
        )
        top_k = min(spec.top_k, height * width)
        addresses = (array.ctypes.data for array in self._kept[:6])
        self._tables = CompareTables(height, width, top_k, n, self._scales, *addresses)
        self._fx, self._fy = (ctypes.c_void_p * n)(), (ctypes.c_void_p * n)()
        self._result = ComparisonResult()
        self._addresses = tuple(map(ctypes.addressof, (self._tables, self._fx, self._fy, self._result)))
        self._run = kernel_function("redi_compare", self.isa)

    def __call__(
        self, fx: Sequence[F32], fy: Sequence[F32], pixel_threshold: float, anomaly_map: F32, mask: U8
    ) -> Comparison:
        """Compare the features and fill `anomaly_map` and `mask`.

        Args:
            fx: one array per scale, float32 `(C, h, w)` or `(1, C, h, w)`, C-contiguous.
            fy: likewise.
            pixel_threshold: map value above which a pixel is set in the mask.
            anomaly_map: float32 `(height, width)`; 0 is identical features, each scale adds at most 2.
            mask: uint8 `(height, width // 8)`, rows packed as `numpy.packbits` does.

        Raises:
            BundleMismatchError: the features are not those of the specification.
            ValueError: an output has the wrong type or shape.
        """
        scales = self.spec.scales
        if len(fx) != len(scales) or len(fy) != len(scales):
            raise BundleMismatchError(f"{len(fx)} and {len(fy)} feature maps for {len(scales)} scales")
        try:
            for level, scale in enumerate(scales):
                self._fx[level] = _address(fx[level], np.float32, scale, f"fx[{level}]")
                self._fy[level] = _address(fy[level], np.float32, scale, f"fy[{level}]")
        except ValueError as error:
            raise BundleMismatchError(
                f"the network's output does not fit: {error}", "export the bundle again"
            ) from error
        height, width = self.shape
        map_address = _output(anomaly_map, np.float32, (height, width), "anomaly_map")
        mask_address = _output(mask, np.uint8, (height, width // 8), "mask")
        tables, fx_address, fy_address, result_address = self._addresses
        self._run(tables, fx_address, fy_address, pixel_threshold, map_address, mask_address, result_address)
        result = self._result
        return Comparison(result.score, result.peak, result.flagged)
