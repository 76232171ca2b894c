"""The self-generated maps other than HOG: edges, local binary patterns and grey averages, computed from `X`.

HOG comes from the station's native kernels; these three are part of the core's graph, so they are written in tensor
operations of static shape that every runtime has.  All end in one vector per cell: nothing finer than a cell gets out.
Comparisons allow a margin well above rounding, so that runtimes that round differently agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edge.manifest import InputSpec, MapSpec

#: Rec. 601 luma of red, green and blue, as the native kernels weigh them.
LUMA = (0.299, 0.587, 0.114)

#: In grey levels 0–1; a tenth of the smallest step that an 8-bit camera sees would still be 40 times as much.
MARGIN = 1e-5

#: Canny's settings, scikit-image's defaults on grey levels 0–1: the Gaussian's sigma and the two thresholds of the
#: gradient's magnitude.
CANNY_SIGMA, CANNY_LOW, CANNY_HIGH = 1.0, 0.1, 0.2

#: How far, in pixels, hysteresis follows a weak edge from a strong one.
CANNY_REACH = 8

#: Unsigned directions of the edges' gradients that a cell counts apart.
CANNY_DIRECTIONS = 4

#: Rotation-invariant uniform patterns of eight neighbours: by number of brighter ones, 0 to 8, and all others.
LBP_PATTERNS = 10


class Map(nn.Module):
    """A map computed from network input `(N, 3, H, W)`: `(N, channels, H / cell, W / cell)`, values about 0–1.

    Args:
        input_spec: how to undo the normalisation of the input.
        cell: side of a cell in pixels.
    """

    channels: int

    def __init__(self, input_spec: InputSpec, cell: int) -> None:
        super().__init__()
        luma = LUMA if input_spec.order == "rgb" else LUMA[::-1]
        unit = 1 / (input_spec.scale * 255)
        self._weights = [weight * std * unit for weight, std in zip(luma, input_spec.std, strict=True)]
        self._offset = sum(weight * mean * unit for weight, mean in zip(luma, input_spec.mean, strict=True))
        self._cell = cell

    def grey(self, x: Tensor) -> Tensor:
        """Return the image's grey levels 0–1, `(N, 1, H, W)`, float32 whatever the precision around it."""
        x = x.float()
        red, green, blue = self._weights
        return x[:, 0:1] * red + x[:, 1:2] * green + x[:, 2:3] * blue + self._offset

    def detail(self, grey: Tensor) -> Tensor:
        """Return what is averaged over each cell, `(N, channels, H, W)`."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return the map, in the type of `x`."""
        return F.avg_pool2d(self.detail(self.grey(x)), self._cell).to(x.dtype)


class LowPass(Map):
    """The mean grey level of each cell."""

    channels = 1

    def detail(self, grey: Tensor) -> Tensor:
        """Return the grey levels themselves."""
        return grey


class LocalBinaryPatterns(Map):
    """A cell's histogram of rotation-invariant uniform local binary patterns, Ojala et al. 2002, P = 8, R = 1."""

    channels = LBP_PATTERNS

    def codes(self, grey: Tensor) -> Tensor:
        """Return each pixel's pattern, 0 to 9 as float32 `(N, 1, H, W)`; beyond its edges the image repeats them."""
        around = F.pad(grey, (1, 1, 1, 1), mode="replicate")
        # The four diagonal neighbours lie on the circle of radius 1, between pixels: bilinear, as in the paper.
        near = 1 - math.sqrt(0.5)
        ring = []
        for dy, dx in ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1)):
            sample = shifted(around, dy, dx)
            if dy and dx:
                beside = shifted(around, dy, 0) + shifted(around, 0, dx)
                sample = (1 - near) ** 2 * sample + near * (1 - near) * beside + near * near * grey
            ring.append((sample - grey >= -MARGIN).float())
        ones = torch.stack(ring).sum(0)
        changes = torch.stack([(a - b).abs() for a, b in zip(ring, ring[1:] + ring[:1], strict=True)]).sum(0)
        return torch.where(changes <= 2.5, ones, torch.full_like(ones, LBP_PATTERNS - 1))

    def detail(self, grey: Tensor) -> Tensor:
        """Return one plane for each pattern: 1 where the pixel has it."""
        codes = self.codes(grey)
        return torch.cat([((codes - pattern).abs() < 0.5).float() for pattern in range(LBP_PATTERNS)], 1)


class Canny(Map):
    """How much edge of each direction a cell holds, after Canny 1986; 1: an edge straight through the cell."""

    channels = CANNY_DIRECTIONS

    def gradient(self, grey: Tensor) -> tuple[Tensor, Tensor]:
        """Return the derivatives down and right of the smoothed image (Gaussian, then Sobel's two kernels)."""
        radius = math.ceil(4 * CANNY_SIGMA)
        taps = [math.exp(-0.5 * (at / CANNY_SIGMA) ** 2) for at in range(-radius, radius + 1)]
        gaussian = [tap / sum(taps) for tap in taps]
        smooth = separable(grey, gaussian, gaussian)
        ramp, blur = (-1.0, 0.0, 1.0), (1.0, 2.0, 1.0)
        return separable(smooth, ramp, blur), separable(smooth, blur, ramp)

    def edges(self, down: Tensor, right: Tensor) -> Tensor:
        """Return 1 where there is an edge, else 0: thin lines, at most `CANNY_REACH` pixels away from a strong edge."""
        magnitude = torch.sqrt(down * down + right * right)
        thin = self._is_ridge(magnitude, down, right)
        weak = (thin & (magnitude >= CANNY_LOW)).float()
        found = (thin & (magnitude >= CANNY_HIGH)).float()
        for _ in range(CANNY_REACH):
            found = F.max_pool2d(found, 3, 1, 1) * weak
        return found

    @staticmethod
    def _is_ridge(magnitude: Tensor, down: Tensor, right: Tensor) -> Tensor:
        """Whether no gradient to either side, along its direction, is larger; the sides lie between pixels."""
        around = F.pad(magnitude, (1, 1, 1, 1))
        steep, same_sign = down.abs() >= right.abs(), down * right >= 0
        longer = torch.maximum(down.abs(), right.abs())
        share = torch.minimum(down.abs(), right.abs()) / torch.clamp(longer, min=1e-12)
        ridge = torch.ones_like(steep)
        for sign in (1, -1):
            straight = torch.where(steep, shifted(around, sign, 0), shifted(around, 0, sign))
            # The diagonal neighbour on the gradient's own side of the straight one.
            falling, rising = shifted(around, sign, sign), shifted(around, sign, -sign)
            rising = torch.where(steep, rising, shifted(around, -sign, sign))
            diagonal = torch.where(same_sign, falling, rising)
            ridge = ridge & (diagonal * share + straight * (1 - share) <= magnitude + MARGIN)
        return ridge

    def detail(self, grey: Tensor) -> Tensor:
        """Return the edges apart by direction, so scaled that a line across a cell averages 1."""
        down, right = self.gradient(grey)
        edges = self.edges(down, right) * self._cell
        # The direction's double angle has no sign; its quadrants, turned by 45 degrees, are the four directions.
        even, odd = right * right - down * down, 2 * right * down
        across, upright = even.abs() >= odd.abs(), even >= 0
        kinds = (across & upright, ~across & (odd >= 0), across & ~upright, ~across & (odd < 0))
        return torch.cat([edges * kind.float() for kind in kinds], 1)


def shifted(around: Tensor, dy: int, dx: int) -> Tensor:
    """Return each pixel's neighbour `dy` below and `dx` to the right, of an image padded by one pixel."""
    height, width = around.shape[2] - 2, around.shape[3] - 2
    return around[:, :, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]


def separable(image: Tensor, column: Sequence[float], row: Sequence[float]) -> Tensor:
    """Correlate `(N, 1, H, W)` with an odd `column` times an odd `row`; beyond its edges the image repeats them."""
    y, x = len(column) // 2, len(row) // 2
    image = F.pad(image, (x, x, y, y), mode="replicate")
    tall = F.conv2d(image, torch.tensor(column, device=image.device).view(1, 1, -1, 1))
    return F.conv2d(tall, torch.tensor(row, device=image.device).view(1, 1, 1, -1))


_MAPS: dict[str, type[Map]] = {"canny": Canny, "lbp": LocalBinaryPatterns, "lowpass": LowPass}


def make_map(input_spec: InputSpec, map_spec: MapSpec) -> Map | None:
    """Return the module that computes the map of this kind from `X`; None for HOG, which the native kernels make."""
    return None if map_spec.kind == "hog" else _MAPS[map_spec.kind](input_spec, map_spec.cell).eval()


def map_channels(map_spec: MapSpec) -> int:
    """Return how many channels the map of this kind has."""
    return map_spec.orientations if map_spec.kind == "hog" else _MAPS[map_spec.kind].channels
