"""What is done to a camera's frame before the model sees it: flat field, lens and region of interest.

They belong to the calibration: they are of this camera over this line, not of the model.  The flat field multiplies
every pixel, so that evenly lit parts look evenly lit; the lens's distortion is taken out, so that straight edges are
straight; what lies outside the region of interest is not inspected.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.bundle import FLAT_FIELD, Bundle
from edge.errors import BundleMismatchError, FrameError
from edge.frames import Roi
from edge.manifest import Calibration, Lens

_HINT = "set the camera to the size that it was calibrated with, or calibrate again"


@dataclass(frozen=True)
class Corrections:
    """`roi` is what is inspected of a frame, None for all; `flat_field` is uint16, one gain for each frame pixel.

    A gain is in units of 1 / `edge.manifest.GAIN_ONE`.  The distortion of `lens` is taken out in between.
    """

    roi: Roi | None = None
    flat_field: NDArray[np.uint16] | None = None
    lens: Lens | None = None

    @classmethod
    def of(cls, bundle: Bundle, calibration: Calibration | None) -> Corrections:
        """Return what a calibration asks for, with the flat field that lies in the bundle.

        Raises:
            BundleMismatchError: it is another flat field's calibration.
        """
        if calibration is None:
            return NOTHING
        roi = None if calibration.roi is None else Roi(*calibration.roi)
        if not calibration.flat_field:
            return cls(roi, lens=calibration.lens)
        member = bundle.members.get(FLAT_FIELD)
        if member is None or member.sha256 != calibration.flat_field:
            raise BundleMismatchError(
                f"{bundle.path}: the flat field of this calibration is not in it", "calibrate this bundle again"
            )
        return cls(roi, np.require(bundle.array(FLAT_FIELD), np.uint16, ["C", "A"]), calibration.lens)

    def region(self, height: int, width: int) -> Roi:
        """Return what is inspected of a frame of this size.

        Raises:
            FrameError: the flat field is of another size, or the region of interest does not lie within the frame.
        """
        if self.flat_field is not None and self.flat_field.shape != (height, width):
            high, wide = self.flat_field.shape
            raise FrameError(f"a frame of {width} x {height} pixels, but the flat field is {wide} x {high}", _HINT)
        if self.roi is None:
            return Roi(0, 0, width, height)
        x, y, wide, high = self.roi
        if x + wide > width or y + high > height:
            raise FrameError(
                f"a frame of {width} x {height} pixels does not hold the region of interest, "
                f"{wide} x {high} at {x}, {y}",
                _HINT,
            )
        return self.roi


NOTHING = Corrections()
