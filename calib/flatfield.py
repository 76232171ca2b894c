"""The flat field: what each pixel is to be multiplied by, from photographs of an evenly lit, evenly grey surface."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.errors import CalibrationError, FrameError
from edge.images import read_image
from edge.manifest import GAIN_ONE

#: Grey levels between which a photograph says how much light there is: below, noise does; above, it is cut off.
DARKEST, BRIGHTEST = 16, 250

_HINT = "photograph a plain grey surface where the parts will lie, with the line's light and exposure"


def flat_field(paths: Sequence[Path]) -> NDArray[np.uint16]:
    """Return each pixel's gain, uint16 `(height, width)` in units of 1 / `GAIN_ONE`.

    It brings the pixel's grey level (Rec. 601, the mean of all photographs) to the median level of the frame.

    Raises:
        CalibrationError: a photograph cannot be read, is of another size, or is too dark or too bright somewhere.
    """
    total: NDArray[np.float64] | None = None
    for path in paths:
        try:
            grey = cv2.cvtColor(read_image(path), cv2.COLOR_BGR2GRAY).astype(np.float64)
        except FrameError as error:
            raise CalibrationError(error.problem, error.hint or _HINT) from error
        if total is not None and total.shape != grey.shape:
            (high, wide), (height, width) = total.shape, grey.shape
            raise CalibrationError(f"{path}: {width} x {height} pixels, the others {wide} x {high}", _HINT)
        total = grey if total is None else total + grey
    assert total is not None
    level = total / len(paths)
    for wrong, what in ((level < DARKEST, "dark"), (level > BRIGHTEST, "bright")):
        if wrong.any():
            y, x = (int(at) for at in np.argwhere(wrong)[0])
            raise CalibrationError(
                f"the flat field is too {what} at {x}, {y}: grey level {level[y, x]:.0f}, "
                f"but {DARKEST} to {BRIGHTEST} are needed",
                _HINT,
            )
    gain: NDArray[np.uint16] = np.rint(np.median(level) / level * GAIN_ONE).astype(np.uint16)
    return gain
