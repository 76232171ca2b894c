"""Histograms of oriented gradients as other libraries have them, where they are installed.

OpenCV's gives the descriptors of all blocks side by side, four times as many numbers, from bins with linear shares.
CuPy has none of its own: the station's cells are written in its arrays, as one would in NumPy's.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.benchmarks.bench_kernels import measure

#: Cells of 8 x 8 pixels, blocks of 2 x 2 cells, 9 orientations: the station's, and everyone's.
CELL, BLOCK, ORIENTATIONS = 8, 16, 9


def cells(arrays: Any, grey: Any) -> Any:
    """Grey `(H, W)` in [0, 1] → the station's cell tensor `(9, H/8, W/8)`; `arrays` is NumPy, CuPy or alike."""
    across, down = arrays.zeros_like(grey), arrays.zeros_like(grey)
    across[:, 1:-1] = grey[:, 2:] - grey[:, :-2]
    down[1:-1] = grey[2:] - grey[:-2]
    magnitude = arrays.hypot(across, down)
    angles = [(index + 0.5) * math.pi / ORIENTATIONS for index in range(ORIENTATIONS)]
    along = arrays.stack([arrays.abs(across * math.cos(angle) + down * math.sin(angle)) for angle in angles])
    share = arrays.maximum(along - magnitude * math.cos(math.pi / ORIENTATIONS), 0)
    votes = share * (magnitude / (share.sum(0) + 1e-20))
    height, width = grey.shape[0] // CELL, grey.shape[1] // CELL
    found = votes.reshape(ORIENTATIONS, height, CELL, width, CELL).mean((2, 4))
    corners = [(slice(y, y - 1 or None), slice(x, x - 1 or None)) for y in (0, 1) for x in (0, 1)]
    blocks = arrays.concatenate([found[:, rows, columns] for rows, columns in corners])
    for limit in (0.2, math.inf):
        blocks = arrays.minimum(blocks / arrays.sqrt((blocks * blocks).sum(0) + 0.05**2), limit)
    total, count = arrays.zeros_like(found), arrays.zeros_like(found[0])
    for part, (rows, columns) in zip(blocks.reshape(4, ORIENTATIONS, height - 1, width - 1), corners, strict=True):
        total[:, rows, columns] += part
        count[rows, columns] += 1
    return total / count


def other_hogs_ms(side: int, repeats: int) -> dict[str, float]:
    """Return each library's median time for an image of `side` x `side` that lies where it works on it, in ms.

    A library that is missing, or was built without HOG or without CUDA, is left out.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (side, side), np.uint8)
    found: dict[str, float] = {}
    opencv = _module("cv2")
    if hasattr(opencv, "HOGDescriptor"):
        hog = opencv.HOGDescriptor((side, side), (BLOCK, BLOCK), (CELL, CELL), (CELL, CELL), ORIENTATIONS)
        found["OpenCV, CPU"] = _ms(lambda: hog.compute(pixels), lambda: None, repeats)
    if hasattr(opencv, "cuda") and hasattr(opencv.cuda, "HOG_create") and opencv.cuda.getCudaEnabledDeviceCount():
        device_hog = opencv.cuda.HOG_create((side, side), (BLOCK, BLOCK), (CELL, CELL), (CELL, CELL), ORIENTATIONS)
        image, stream = opencv.cuda_GpuMat(), opencv.cuda_Stream()
        image.upload(pixels)
        found["OpenCV, CUDA"] = _ms(lambda: device_hog.compute(image, stream=stream), stream.waitForCompletion, repeats)
    cupy = _module("cupy")
    if cupy is not None and cupy.cuda.is_available():
        grey = cupy.asarray(pixels.astype(np.float32) / 255)
        found["CuPy"] = _ms(lambda: cells(cupy, grey), cupy.cuda.get_current_stream().synchronize, repeats)
    return found


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _ms(work: Callable[[], object], wait: Callable[[], object], repeats: int) -> float:
    """Return the median by the host's clock, each time until the device has done."""

    def whole() -> None:
        work()
        wait()

    return measure(whole, repeats)["median_ms"]
