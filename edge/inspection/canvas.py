"""The canvas: where a frame comes to lie before it is cut into tiles, and where the tiles lie on it."""

from __future__ import annotations

from edge.frames import Area
from edge.inspection.taps import Taps, padded, resize_taps
from edge.manifest import CanvasSpec, InputSpec


class Canvas:
    """The geometry of a model's canvas; all of it in pixels.

    Attributes:
        spec: what it was made from.
        height: of the canvas and so of anomaly map and mask.
        width: likewise.
        corners: `(top, left)` of each tile, row by row.
    """

    def __init__(self, tile: InputSpec, spec: CanvasSpec) -> None:
        self.spec = spec
        down, across = tile.height - spec.overlap, tile.width - spec.overlap
        self.height = spec.rows * down + spec.overlap
        self.width = spec.columns * across + spec.overlap
        tops, lefts = (tuple(step * i for i in range(n)) for step, n in ((down, spec.rows), (across, spec.columns)))
        self.corners = tuple((top, left) for top in tops for left in lefts)

    def area(self, height: int, width: int) -> Area:
        """Return where a frame of this size lies: the whole canvas where it is stretched, else centred on it."""
        if self.spec.fit == "stretch":
            return Area(0, 0, self.height, self.width)
        # In whole numbers, so that the side that fills the canvas does so exactly.
        if height * self.width >= width * self.height:
            high, wide = self.height, max(1, (2 * width * self.height + height) // (2 * height))
        else:
            high, wide = max(1, (2 * height * self.width + width) // (2 * width)), self.width
        return Area((self.height - high) // 2, (self.width - wide) // 2, high, wide)

    def taps(self, height: int, width: int) -> tuple[Taps, Taps]:
        """Return the row and column taps that make the whole canvas of a frame of this size."""
        top, left, high, wide = self.area(height, width)
        rows = padded(resize_taps(height, high), top, self.height - top - high)
        columns = padded(resize_taps(width, wide), left, self.width - left - wide)
        return rows, columns
