"""Pseudo-anomalies: defects drawn onto good images, as a part may have them.

A line that wanders as cracks and scratches do, a spot with a soft or a sharp edge, a cloudy stain, or a piece of
another good image where it does not belong.  Lines, spots and stains differ from what is there by about as much as the
product's own colours do, along its own axes of colour: where all is grey, defects are grey, too.  Nothing is taken from
images of real defects.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from edge.frames import F32
from edge.manifest import InputSpec

#: What is drawn: each as likely as another.
KINDS = ("line", "line", "spot", "stain", "piece")

#: How far off a defect's colour is, in units of the deviation of the product's colours: anything between, by its
#: logarithm.
CONTRAST = (0.25, 2.5)

#: Lengths of lines and radii of spots, as shares of the shorter side, and widths of lines in pixels.
LENGTH, RADIUS, WIDTH = (0.06, 0.5), (1 / 128, 1 / 12), (1, 4)

#: The least that a product's colours count as deviating, in units of the normalised image: about 10 grey levels.
PLAIN = 0.2

#: Change, in units of the normalised image, from which on a pixel is part of a defect: 4 or 5 of 255 grey levels.
VISIBLE = 0.08

#: Good images that colours are taken from, and every how many of their pixels.
_SAMPLE, _STEP = 64, 8

#: Fractions of pixels that lines are drawn with: 1/16.
_SHIFT = 4


class PseudoAnomalies:
    """Draws them.

    Args:
        good: normalised good images, `(N, 3, H, W)`; pieces come from them.
        spec: says which values pixels can have.
    """

    def __init__(self, good: Tensor, spec: InputSpec) -> None:
        self._good = good
        rows = np.unique(np.linspace(0, len(good) - 1, min(len(good), _SAMPLE)).astype(np.int64))
        pixels = [good[int(row), :, ::_STEP, ::_STEP].double().numpy().reshape(3, -1) for row in rows]
        values, vectors = np.linalg.eigh(np.cov(np.concatenate(pixels, 1)))
        axes = vectors * np.sqrt(np.maximum(values, 0))
        spread = float(np.linalg.norm(axes))
        if spread < PLAIN:
            # What is all of one colour has no axes of its own: darker and brighter is what is left.
            axes, spread = np.full((3, 3), PLAIN / 3), PLAIN
        self._axes, self._spread = axes, spread
        mean, std = (np.array(three, np.float32)[:, None, None] for three in (spec.mean, spec.std))
        self._darkest, self._brightest = -mean / std, (1 - mean) / std

    def draw(self, x: F32, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Draw one onto `x` `(3, H, W)`, in place, and return which pixels it changed visibly, `(H, W)`."""
        kind = KINDS[int(rng.integers(len(KINDS)))]
        height, width = x.shape[1:]
        if kind == "line":
            shape = _line(height, width, rng)
        elif kind == "stain":
            shape = _stain(height, width, rng)
        else:
            shape = _spot(height, width, rng)
        other = self._piece(x.shape, rng) if kind == "piece" else self._toned(x, rng)
        changed: F32 = np.clip(x + shape * (other - x), self._darkest, self._brightest)
        visible: NDArray[np.bool_] = np.abs(changed - x).mean(0) > VISIBLE
        x[:] = changed
        return visible

    def _toned(self, x: F32, rng: np.random.Generator) -> F32:
        """Return the image, or what is left of it out of focus, in another colour; some of it grainy."""
        base = x if rng.random() < 0.5 else np.stack([cv2.GaussianBlur(channel, (0, 0), 4) for channel in x])
        axis = self._axes @ rng.normal(size=3)
        lowest, highest = np.log(CONTRAST)
        by = np.exp(rng.uniform(lowest, highest)) * self._spread / max(float(np.linalg.norm(axis)), 1e-6)
        toned: F32 = base + (by * axis).astype(np.float32)[:, None, None]
        if rng.random() < 0.3:
            toned += (0.3 * self._spread * rng.normal(size=x.shape[1:])).astype(np.float32)
        return toned

    def _piece(self, shape: tuple[int, ...], rng: np.random.Generator) -> F32:
        """Return another good image, shifted round, maybe mirrored, maybe toned."""
        donor = self._good[int(rng.integers(len(self._good)))].float().numpy()
        shifted = np.roll(donor, (int(rng.integers(shape[1])), int(rng.integers(shape[2]))), (1, 2))
        if rng.random() < 0.5:
            shifted = shifted[:, :, ::-1]
        if rng.random() < 0.5:
            shifted = shifted + (self._axes @ rng.normal(0, 0.3, 3)).astype(np.float32)[:, None, None]
        piece: F32 = shifted
        return piece


def _line(height: int, width: int, rng: np.random.Generator) -> F32:
    """Return how much of each pixel a wandering line covers, `(H, W)`."""
    left, turn = rng.uniform(*LENGTH) * min(height, width), rng.uniform(0, 0.5)
    at, angle = rng.uniform(0, (width, height)), rng.uniform(0, 2 * np.pi)
    drawn = np.zeros((height, width), np.uint8)
    thickness = int(rng.integers(WIDTH[0], WIDTH[1] + 1))
    while left > 0:
        step = rng.uniform(2, 8)
        to = at + step * np.array([np.cos(angle), np.sin(angle)])
        ends = [tuple(int(v) for v in np.round(point * 2**_SHIFT)) for point in (at, to)]
        cv2.line(drawn, ends[0], ends[1], 255, max(1, thickness + int(rng.integers(-1, 2))), cv2.LINE_AA, _SHIFT)
        at, angle, left = to, angle + rng.normal(0, turn), left - step
    covered: F32 = drawn / np.float32(255)
    return covered


def _spot(height: int, width: int, rng: np.random.Generator) -> F32:
    """Return an ellipse that lies at any angle, its edge more or less soft, 0 to 1, `(H, W)`."""
    side = min(height, width)
    radii = np.maximum(rng.uniform(*RADIUS, 2) * side, 1.5)
    angle, x, y = rng.uniform(0, np.pi), rng.uniform(0, width), rng.uniform(0, height)
    rows, columns = np.ogrid[:height, :width]
    along = ((columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)) / radii[0]
    across = ((rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)) / radii[1]
    soft = rng.uniform(0.05, 0.5)
    spot: F32 = np.clip((1 - np.hypot(along, across)) / soft + 0.5, 0, 1).astype(np.float32)
    return spot


def _stain(height: int, width: int, rng: np.random.Generator) -> F32:
    """Return clouds of every size, where a blurred spot is, 0 to 1, `(H, W)`."""
    clouds = np.zeros((height, width))
    for cells in (4, 8, 16, 32):
        coarse = rng.normal(size=(cells, cells)).astype(np.float32)
        clouds += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) / cells**0.5
    where = cv2.GaussianBlur(_spot(height, width, rng), (0, 0), min(height, width) / 42)
    limit = np.quantile(clouds, rng.uniform(0.5, 0.9))
    stain: F32 = (np.clip((clouds - limit) * 4, 0, 1) * np.clip(3 * where, 0, 1)).astype(np.float32)
    return stain
