"""Which kernels make a frame's *before* and *after* on a GPU, with which grids and arguments: the only place that says.

The tables are those of the native kernels, mirrored; what `kernels/host.cpp` does block by block is done here launch by
launch.  Scratch memory belongs to the plan: everything is queued on one stream, in order.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.frames import Area
from edge.inspection import native
from edge.inspection.compare import Comparer
from edge.inspection.cuda.device import Argument, Gpu, Stream
from edge.inspection.cuda.mirror import Mirror
from edge.inspection.library import GATHER_STRIP, GROUP, HOG_STRIP, AreaBounds, HogTables, PrepareTables
from edge.inspection.ports import core_inputs, core_outputs
from edge.manifest import ModelSpec

#: COMPARE_STRIP of `kernels/compare.cu`.
_COMPARE_STRIP = 256
#: By the layout of a frame's bytes, as `edge.inspection.library` numbers them.
_LAYOUTS = ("colour", "mono", "nv12", "bayer")
_BEFORE = tuple(f"prepare_{how}{layout}" for how in ("", "flat_", "straight_") for layout in _LAYOUTS)
#: The kernels by the file that they are in, and how many threads a block of each has.
KERNELS = {
    "prepare": dict.fromkeys(_BEFORE, 256),
    "hog": {"hog_cells": 256, "hog_norms": 64, "hog_map": 64},
    "nearest": {"descriptor_pool": 32, "descriptor_unit": 64, "bank_similarity": 64, "bank_nearest": 32},
    "prompts": {"gather_prompt": 256},
    "compare": {
        "cosine_distance": 256,
        "spread_columns": 256,
        "combine_rows": 256,
        "combine_tile": 256,
        "finish_map": 256,
        "top_mean": 256,
    },
}


@dataclass(frozen=True)
class FrameTables:
    """The device's tables of one kind of frames, as `native.FrameTables` on the host; `mirror` holds the memory."""

    tiles: tuple[PrepareTables, ...]
    area: Area
    mirror: Mirror


@dataclass(frozen=True)
class Results:
    """Addresses on the device: where a frame's results go.

    `map` is float32, `mask` uint8; `score` and `peak` are float32, `flagged` is int32; `prompts` is int32, one for each
    tile.
    """

    map: int
    mask: int
    score: int
    peak: int
    flagged: int
    prompts: int


class Plan:
    """Queues a model's kernels.

    Args:
        gpu: where they run.
        model: what they do.
        entries: of the prompt bank, 0 for none.
        stream: on which everything is queued.

    Attributes:
        ports: memory of each of the core's inputs and outputs, but the prompt's; `h` also where the core does not take
            it, if prompts are chosen by it.
        canvas: the geometry of frame, canvas and tiles.
        map_shape: of the anomaly map.
    """

    def __init__(self, gpu: Gpu, model: ModelSpec, entries: int, stream: Stream) -> None:
        self._gpu, self._stream, self._entries = gpu, stream, entries
        self._model = model
        height, width = model.input.height, model.input.width
        self._preprocess = native.Preprocessor(model.input, model.map, model.canvas)
        self._compare = Comparer(model.compare, height, width, model.canvas)
        self.canvas = self._preprocess.canvas
        self.map_shape = self._compare.shape
        self._kernels = {
            name: (gpu.kernel(source, name), threads)
            for source, names in KERNELS.items()
            for name, threads in names.items()
        }
        self._mirror = Mirror(gpu, [*self._preprocess.kept, *self._compare.kept], stream)
        self._hog: HogTables = self._mirror.moved(self._preprocess.hog_tables)
        self.ports = {
            name: gpu.allocate(_bytes(shape))
            for name, shape in {**core_inputs(model), **core_outputs(model)}.items()
            if not name.startswith("prompt_")
        }
        self._needs_hog = model.core.uses_map or entries > 0
        self._x = self.ports["x"].address
        self._h = self.ports["h"] if "h" in self.ports else gpu.allocate(_bytes(self._preprocess.map_shape))
        # As on the host, one float before and after the plane is read.
        self._padded = gpu.allocate(4 * (height * width + 32))
        self._grey = self._padded.address + 64
        self._descriptor = gpu.allocate(4 * self._preprocess.descriptor_size)
        self._similarity = gpu.allocate(4 * max(entries, 1))

    def place(self, tables: native.FrameTables, flat_field: NDArray[np.uint16] | None) -> FrameTables:
        """Copy to the device what *before* needs for one kind of frames; the flat field is what they point into."""
        arrays = [array for taps in tables.kept for array in taps]
        mirror = Mirror(self._gpu, arrays if flat_field is None else [*arrays, flat_field], self._stream)
        return FrameTables(tuple(mirror.moved(tile) for tile in tables.tiles), tables.area, mirror)

    def prepare(self, tables: FrameTables, tile: int, pixels: int, stride: int) -> None:
        """Queue: one tile of the frame at `pixels`, its rows `stride` bytes apart, → `x` and grey."""
        p = tables.tiles[tile]
        self._launch(
            f"prepare_{'straight_' if p.frame.bent else 'flat_' if p.frame.gain else ''}{_LAYOUTS[p.layout]}",
            p.height * _divided_up(p.width, p.strip),
            c_void_p(pixels),
            c_int64(stride),
            *(p.rows, p.columns, p.colour, p.frame),
            *map(c_int, (p.height, p.width, p.strip)),
            *map(c_void_p, (self._x, self._grey)),
        )

    def hog(self) -> None:
        """Queue: grey → `h`, where anything needs it."""
        if not self._needs_hog:
            return
        p = self._hog
        high, wide = p.height // p.cell, p.width // p.cell
        n, factors = c_int(p.orientations), (c_void_p(p.first), c_void_p(p.second))
        cells, rows, columns = c_void_p(p.cells), c_int(high), c_int(wide)
        self._launch(
            "hog_cells",
            high * _divided_up(p.width, HOG_STRIP // p.cell * p.cell),
            *(c_void_p(self._grey), c_int(p.height), c_int(p.width), c_int(p.cell), n),
            *(c_void_p(p.direction), c_float(p.nearest), cells),
        )
        numbers = c_float(p.epsilon), c_float(p.clip)
        self._launch("hog_norms", high - 1, cells, rows, columns, n, *numbers, *factors)
        self._launch("hog_map", high, cells, rows, columns, n, c_float(p.clip), *factors, c_void_p(self._h.address))

    def choose(self, descriptors: int, best: int) -> None:
        """Queue: `h` → its descriptor → the index of the nearest of the bank's `descriptors`, to `best`."""
        p = self._hog
        wide = p.width // p.cell
        rows = p.orientations * (p.height // p.cell // p.pool)
        size = c_int(rows * (wide // p.pool))
        descriptor, similarity = c_void_p(self._descriptor.address), c_void_p(self._similarity.address)
        self._launch("descriptor_pool", rows, c_void_p(self._h.address), c_int(wide), c_int(p.pool), descriptor)
        self._launch("descriptor_unit", 1, descriptor, size)
        self._launch("bank_similarity", self._entries, descriptor, c_void_p(descriptors), size, similarity)
        self._launch("bank_nearest", 1, similarity, c_int(self._entries), c_void_p(best))

    def gather(self, table: int, best: int, size: int, to: int) -> None:
        """Queue: the `size` float16 numbers of the entry whose index is at `best` → float32 at `to`."""
        blocks = _divided_up(size, GATHER_STRIP)
        self._launch("gather_prompt", blocks, c_void_p(best), c_void_p(table), c_int(size), c_void_p(to))

    def compare(self, tile: int, area: Area, threshold: float, to: Results) -> None:
        """Queue: the core's outputs for one tile → the map; with the last tile, map → mask, image score and peak."""
        last = tile == self._model.canvas.tiles - 1
        self._spread()
        if last:
            self._gpu.clear(to.flagged, 4, self._stream)
        if self._model.canvas.tiles == 1 and area[2:] == self.map_shape:
            self._combine("combine_rows", c_float(threshold), *self._noted(to))
            self._top_mean(self._compare.tables.top_k, to)
            return
        height, width = self.map_shape
        if tile == 0:
            self._gpu.clear(to.map, 4 * height * width, self._stream)
        row_share, column_share, corner = self._compare.shares[tile]
        shares = c_void_p(self._mirror.address(row_share)), c_void_p(self._mirror.address(column_share))
        self._combine("combine_tile", *shares, c_int(width), c_void_p(to.map + corner))
        if last:
            bounds = AreaBounds(area.top, area.top + area.height, area.left, area.left + area.width)
            blocks = height * _divided_up(width, _COMPARE_STRIP)
            self._launch("finish_map", blocks, bounds, c_int(width), c_float(threshold), *self._noted(to))
            # No value is below zero, so that the largest ones are never those around the frame.
            self._top_mean(min(self._compare.whole.top_k, area.height * area.width), to)

    def _spread(self) -> None:
        """Queue: each scale's distances, spread along its rows."""
        p, at = self._compare.tables, self._mirror.address
        spread = at(p.spread)
        for level, scale in enumerate(self._compare.scales):
            positions = scale.rows * scale.columns
            self._launch(
                "cosine_distance",
                _divided_up(positions, _COMPARE_STRIP),
                *(c_void_p(self.ports[f"{side}_{level}"].address) for side in ("fx", "fy")),
                *(c_int(scale.channels), c_int(positions), c_void_p(at(p.distance))),
            )
            self._launch(
                "spread_columns",
                scale.rows,
                *(c_void_p(at(p.distance)), c_int(scale.columns)),
                *(c_void_p(at(scale.start)), c_void_p(at(scale.weight)), c_int(scale.taps)),
                *(c_int(p.width), c_void_p(spread)),
            )
            spread += 4 * scale.rows * p.width

    def _combine(self, name: str, *rest: Argument) -> None:
        p, at = self._compare.tables, self._mirror.address
        tables = (c_void_p(at(pointer)) for pointer in (p.spread, p.begin, p.row, p.weight))
        self._launch(name, p.height * _divided_up(p.width, _COMPARE_STRIP), *tables, c_int(p.width), *rest)

    def _noted(self, to: Results) -> tuple[c_void_p, ...]:
        peaks = self._mirror.address(self._compare.tables.group_peak)
        return c_void_p(to.map), c_void_p(to.mask), c_void_p(peaks), c_void_p(to.flagged)

    def _top_mean(self, k: int, to: Results) -> None:
        height, width = self.map_shape
        peaks = c_void_p(self._mirror.address(self._compare.tables.group_peak))
        numbers = c_int(height * width // GROUP), c_int(k)
        self._launch("top_mean", 1, c_void_p(to.map), peaks, *numbers, c_void_p(to.score), c_void_p(to.peak))

    def _launch(self, name: str, blocks: int, *arguments: Argument) -> None:
        kernel, threads = self._kernels[name]
        self._gpu.launch(kernel, blocks, threads, arguments, self._stream)


def _bytes(shape: tuple[int, ...]) -> int:
    size = ctypes.sizeof(c_float)
    for length in shape:
        size *= length
    return size


def _divided_up(a: int, b: int) -> int:
    return -(-a // b)
