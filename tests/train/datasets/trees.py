"""Writers of the small images and masks that the layouts are made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

RNG = np.random.default_rng(5)


def image(path: Path, size: tuple[int, int] = (12, 10), value: int | None = None) -> Path:
    """Write a small colour image of (width, height) with the writer that the suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 256, (size[1], size[0], 3), np.uint8)
    if value is not None:
        pixels[:] = value
    Image.fromarray(pixels).save(path)
    return path


def mask(path: Path, size: tuple[int, int] = (12, 10), defect: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((size[1], size[0]), np.uint8)
    if defect:
        pixels[2:6, 3:8] = 255
    Image.fromarray(pixels).save(path)
    return path
