"""The native comparison after the network: features → anomaly map, defect mask, image score; tile by tile where a
frame has several.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.errors import BundleMismatchError
from edge.frames import F32, MAX_SIDE, U8, Area, aligned_bytes, aligned_f32
from edge.inspection.canvas import Canvas
from edge.inspection.library import (
    GROUP,
    AreaBounds,
    CanvasTables,
    CompareTables,
    ComparisonResult,
    ScaleTables,
    address,
    choose_isa,
    kernel_function,
    output_address,
)
from edge.inspection.taps import banded, compressed_rows, feather, smoothing_matrix
from edge.manifest import ONE_TILE, CanvasSpec, CompareSpec, InputSpec


class Comparison(NamedTuple):
    """Image score (mean of the top-k map values), peak (maximum) and number of pixels above the pixel threshold.

    Score and peak are NaN where the map holds a NaN.
    """

    score: float
    peak: float
    flagged: int


class Comparer:
    """The fused comparison after the network: two sets of features → anomaly map, defect mask, image score.

    A frame of one tile is compared by a call.  One of several is put together on its map: `add` each tile in order,
    and `finish` with the last.

    Args:
        spec: scales, smoothing and top-k.
        height: of one tile, a multiple of 32, in pixels.
        width: likewise.
        canvas: how many tiles make the map, and how they overlap.
        isa: instruction set; see `choose_isa`.

    Attributes:
        canvas: the geometry.
        kept: all tables and scratch arrays; every pointer in the following lies in one of them.
        tables, scales, whole: what the kernels are told, for runtimes that launch them elsewhere.
        shares: of each tile, the addresses of its shares by row and by column, and how many bytes into the map it
            begins.

    Raises:
        BundleMismatchError: the kernels cannot serve this specification.
        RuntimeUnavailableError: the kernels are missing, or `isa` cannot run here.
    """

    def __init__(
        self, spec: CompareSpec, height: int, width: int, canvas: CanvasSpec = ONE_TILE, *, isa: str | None = None
    ) -> None:
        self.isa = choose_isa(isa)
        self.spec = spec
        self.canvas = Canvas(InputSpec(height=height, width=width), canvas)
        self.shape = self.canvas.height, self.canvas.width
        for high, wide in ((height, width), self.shape):
            if not (0 < high <= MAX_SIDE and 0 < wide <= MAX_SIDE) or high % 32 or wide % 32:
                raise BundleMismatchError(f"an anomaly map of {wide} x {high} pixels: no multiples of 32 to {MAX_SIDE}")
        if not spec.scales or any(len(scale) != 3 or min(scale) < 1 for scale in spec.scales):
            raise BundleMismatchError(f"feature scales {spec.scales}: each needs channels, height and width above zero")
        if not 0 <= spec.sigma < np.inf or spec.top_k < 1:
            raise BundleMismatchError(f"sigma {spec.sigma} must not be negative and top_k {spec.top_k} at least 1")
        bands = [banded(smoothing_matrix(columns, width, spec.sigma)) for _, _, columns in spec.scales]
        rows = [smoothing_matrix(rows, height, spec.sigma) for _, rows, _ in spec.scales]
        feathers = feather(height, canvas.rows, canvas.overlap), feather(width, canvas.columns, canvas.overlap)
        self.kept: tuple[NDArray[Any], ...] = (
            *compressed_rows(np.concatenate(rows, axis=1)),
            aligned_f32(max(rows * columns for _, rows, columns in spec.scales)),
            aligned_f32(sum(rows for _, rows, _ in spec.scales), width),
            aligned_bytes(4 * self.shape[0] * self.shape[1] // GROUP),
            *(array for band in bands for array in band),
            *feathers,
        )
        n = len(spec.scales)
        self.scales = (ScaleTables * n)(
            *(
                ScaleTables(*scale, weight.shape[1], start.ctypes.data, weight.ctypes.data)
                for scale, (start, weight) in zip(spec.scales, bands, strict=True)
            )
        )
        addresses = [array.ctypes.data for array in self.kept[:6]]
        self.tables = CompareTables(height, width, min(spec.top_k, height * width), n, self.scales, *addresses)
        self.whole = CanvasTables(*self.shape, spec.top_k, addresses[5])
        rows_at, columns_at = (share.ctypes.data for share in feathers)
        self.shares = [
            (
                rows_at + 4 * height * (tile // canvas.columns),
                columns_at + 4 * width * (tile % canvas.columns),
                4 * (top * self.shape[1] + left),
            )
            for tile, (top, left) in enumerate(self.canvas.corners)
        ]
        self._fx, self._fy = (ctypes.c_void_p * n)(), (ctypes.c_void_p * n)()
        self._bounds = AreaBounds()
        self._result = ComparisonResult()
        self._addresses = tuple(map(ctypes.addressof, (self.tables, self._fx, self._fy)))
        self._compare = kernel_function("redi_compare", self.isa)
        self._compare_tile = kernel_function("redi_compare_tile", self.isa)
        self._finish_map = kernel_function("redi_finish_map", self.isa)

    def __call__(
        self, fx: Sequence[F32], fy: Sequence[F32], pixel_threshold: float, anomaly_map: F32, mask: U8
    ) -> Comparison:
        """Compare the features of a frame of one tile, all of it the frame, and fill `anomaly_map` and `mask`.

        Args:
            fx: one array per scale, float32 `(C, h, w)` or `(1, C, h, w)`, C-contiguous.
            fy: likewise.
            pixel_threshold: map value above which a pixel is set in the mask.
            anomaly_map: float32 `(height, width)`; 0 is identical features, each scale adds at most 2.
            mask: uint8 `(height, width // 8)`, rows packed as `numpy.packbits` does.

        Raises:
            BundleMismatchError: the features are not those of the specification.
            ValueError: an output has the wrong type or shape, or the frame has several tiles.
        """
        if len(self.canvas.corners) != 1:
            raise ValueError(f"a frame of {len(self.canvas.corners)} tiles is compared tile by tile")
        self._bind(fx, fy)
        outputs = self._outputs(anomaly_map, mask)
        self._compare(*self._addresses, pixel_threshold, *outputs, ctypes.addressof(self._result))
        return self._answer()

    def add(self, tile: int, fx: Sequence[F32], fy: Sequence[F32], anomaly_map: F32) -> None:
        """Compare the features of one tile and add their distances, in its share, to the canvas's `anomaly_map`.

        The first tile, 0, clears what was in the map.

        Raises:
            BundleMismatchError: the features are not those of the specification.
            ValueError: the map has the wrong type or shape.
        """
        self._bind(fx, fy)
        start = output_address(anomaly_map, np.float32, self.shape, "anomaly_map")
        if tile == 0:
            anomaly_map.fill(0)
        row_share, column_share, corner = self.shares[tile]
        self._compare_tile(*self._addresses, row_share, column_share, self.shape[1], start + corner)

    def finish(
        self,
        fx: Sequence[F32],
        fy: Sequence[F32],
        area: Area,
        pixel_threshold: float,
        anomaly_map: F32,
        mask: U8,
    ) -> Comparison:
        """Compare the last tile, clear what lies outside `area`, where the frame is, fill `mask` and sum up.

        Raises:
            BundleMismatchError: the features are not those of the specification.
            ValueError: an output has the wrong type or shape.
        """
        if len(self.canvas.corners) == 1 and area[2:] == self.shape:
            return self(fx, fy, pixel_threshold, anomaly_map, mask)
        self.add(len(self.canvas.corners) - 1, fx, fy, anomaly_map)
        top, left, height, width = area
        bounds = self._bounds
        bounds.top, bounds.bottom, bounds.left, bounds.right = top, top + height, left, left + width
        self._finish_map(
            ctypes.addressof(self.whole),
            ctypes.addressof(bounds),
            pixel_threshold,
            *self._outputs(anomaly_map, mask),
            ctypes.addressof(self._result),
        )
        return self._answer()

    def _bind(self, fx: Sequence[F32], fy: Sequence[F32]) -> None:
        scales = self.spec.scales
        if len(fx) != len(scales) or len(fy) != len(scales):
            raise BundleMismatchError(f"{len(fx)} and {len(fy)} feature maps for {len(scales)} scales")
        try:
            for level, scale in enumerate(scales):
                self._fx[level] = address(fx[level], np.float32, scale, f"fx[{level}]")
                self._fy[level] = address(fy[level], np.float32, scale, f"fy[{level}]")
        except ValueError as error:
            raise BundleMismatchError(
                f"the network's output does not fit: {error}", "export the bundle again"
            ) from error

    def _outputs(self, anomaly_map: F32, mask: U8) -> tuple[int, int]:
        height, width = self.shape
        return (
            output_address(anomaly_map, np.float32, (height, width), "anomaly_map"),
            output_address(mask, np.uint8, (height, width // 8), "mask"),
        )

    def _answer(self) -> Comparison:
        return Comparison(self._result.score, self._result.peak, self._result.flagged)
