"""How large the network's input is, how many tiles an image is cut into, and what becomes of its aspect.

One place decides, from the sizes of good training images alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from edge.errors import UsageError
from edge.manifest import CanvasSpec, InputSpec
from edge.validation import SIZE_MULTIPLE, validate_canvas
from train.datasets import Sample, load_images

#: Pixels of an input whose size is found automatically.
AUTO_PIXELS = 256 * 256

#: Shortest and longest side of the network's input.
MIN_INPUT, MAX_INPUT = 64, 2048

#: Automatic tiles shrink an image by this much at most, where that takes no more than so many along a side.
AUTO_SHRINK, AUTO_TILES = 2.0, 4

#: Automatic fit stretches only where no image's aspect changes by more than this factor.
AUTO_STRETCH = 1.15

#: Good images whose sizes are looked at, evenly spaced.
_LOOKED_AT = 50


@dataclass(frozen=True)
class CanvasRequest:
    """What was asked for; None is automatic.

    `size` and `tiles` are `(height, width)` of the input and `(rows, columns)`; `overlap` in pixels, about an eighth
    of a tile where None; `fit` is `stretch`, `pad` or `auto`.
    """

    size: tuple[int, int] | None = (256, 256)
    tiles: tuple[int, int] | None = (1, 1)
    overlap: int | None = None
    fit: str = "stretch"

    @property
    def automatic(self) -> bool:
        """Whether the images must be asked."""
        return self.size is None or self.tiles is None or self.fit == "auto"


def image_sizes(samples: Sequence[Sample]) -> list[tuple[int, int]]:
    """Return `(height, width)` of some of the images, evenly spaced.

    Raises:
        DataError: none of them can be read.
    """
    looked_at = samples[:: max(1, len(samples) // _LOOKED_AT)]
    return [(image.shape[0], image.shape[1]) for _, image in load_images(looked_at)]


def choose_canvas(sizes: Sequence[tuple[int, int]], request: CanvasRequest) -> tuple[tuple[int, int], CanvasSpec]:
    """Return the input's `(height, width)` and the canvas for images of these sizes.

    Args:
        sizes: `(height, width)` of good training images; needed where the request is automatic.
        request: what was asked for.

    Raises:
        UsageError: the overlap, or the canvas as a whole, is out of bounds.
    """
    height, width = request.size or _input_size(median(wide / high for high, wide in sizes))
    overlap = request.overlap
    if overlap is None:
        overlap = max(SIZE_MULTIPLE, SIZE_MULTIPLE * round(min(height, width) / 8 / SIZE_MULTIPLE))
    if request.tiles is None:
        rows = _tiles([high for high, _ in sizes], height, overlap)
        columns = _tiles([wide for _, wide in sizes], width, overlap)
    else:
        rows, columns = request.tiles
    if rows * columns == 1:
        overlap = 0
    fit = request.fit
    if fit == "auto":
        whole = (columns * (width - overlap) + overlap) / (rows * (height - overlap) + overlap)
        worst = max(abs(math.log(wide / high / whole)) for high, wide in sizes)
        fit = "stretch" if worst <= math.log(AUTO_STRETCH) else "pad"
    spec = CanvasSpec(fit, rows, columns, overlap)
    try:
        validate_canvas(spec, InputSpec(height=height, width=width))
    except ValueError as error:
        problem = f"{rows}x{columns} tiles of {width}x{height} pixels: {error}"
        raise UsageError(problem, "give fewer tiles, or another --overlap; --tiles 2x2 --overlap 32 is usual") from None
    return (height, width), spec


def bank_entries(prompts: int, tiles: int) -> int:
    """Return how many tiles the prompt bank holds where it would hold `prompts` whole images.

    It grows with the root of the number of tiles: each place on a part wants prompts of its own, but places resemble
    each other, and what an entry takes in the bundle does not shrink.
    """
    return round(prompts * math.sqrt(tiles))


def _input_size(aspect: float) -> tuple[int, int]:
    """Return the input of about `AUTO_PIXELS` whose width over height is nearest to `aspect`."""
    height = _multiple(math.sqrt(AUTO_PIXELS / aspect))
    return height, _multiple(AUTO_PIXELS / height)


def _multiple(side: float) -> int:
    return min(MAX_INPUT, max(MIN_INPUT, SIZE_MULTIPLE * round(side / SIZE_MULTIPLE)))


def _tiles(sides: Sequence[int], tile: int, overlap: int) -> int:
    wanted = median(sides) / AUTO_SHRINK
    return min(AUTO_TILES, max(1, math.ceil((wanted - overlap) / max(1, tile - overlap))))
