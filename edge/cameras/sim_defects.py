"""The defects of the simulated line, painted on one upright part before it is placed in the frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge.cameras.sim_products import Product
from edge.frames import F32, U8

F64 = NDArray[np.float64]
Rng = np.random.Generator


@dataclass(frozen=True)
class Draft:
    """A part being made: its raw material and its look, both uint8 BGRA `(H, W, 4)`, alpha premultiplied."""

    product: Product
    stock: U8
    image: U8

    def copy(self) -> Draft:
        """Return a copy that a defect may be painted on."""
        return Draft(self.product, self.stock, self.image.copy())


def paint_defect(kind: str, draft: Draft, rng: Rng, strength: float) -> None:
    """Paint a defect of one of the product's kinds at a random place; `strength` 1 is usual, more is plainer."""
    _PAINTERS[kind](draft, rng, strength)


def _scratch(draft: Draft, rng: Rng, strength: float) -> None:
    unit = draft.product.unit
    along = np.linspace(0, 1, 24)
    heading = rng.uniform(0, 2 * np.pi) + rng.uniform(-0.5, 0.5) * along
    line = _walk(_point(draft.product.solid_spots, rng), heading, rng.uniform(0.10, 0.32) * unit)
    visible = min(1.0, strength * rng.uniform(0.45, 0.9)) * np.sin(np.pi * (0.12 + 0.8 * along))
    width = rng.uniform(0.8, 1.7) * draft.product.pen
    window = _Window(draft, line, 4 * draft.product.pen)
    window.blend(window.stroke(line + 1.1 * draft.product.pen, width, 0.45 * visible), (40, 40, 44))
    window.blend(window.stroke(line, width, visible), (236, 240, 242))


def _dent(draft: Draft, rng: Rng, strength: float) -> None:
    centre = _point(draft.product.solid_spots, rng)
    spread, aspect = rng.uniform(0.014, 0.036) * draft.product.unit, rng.uniform(0.7, 1.4)
    window = _Window(draft, centre[None], 4 * spread * 1.4)
    dx, dy = (window.x - centre[0]) / (spread * aspect), (window.y - centre[1]) / (spread / aspect)
    # A hollow lit from the upper left: dark where its wall turns away from the light, bright on the far wall.
    slope = (dx + dy) * np.exp(-(dx * dx + dy * dy) / 2)
    window.scale(1 + min(0.9, strength * rng.uniform(0.22, 0.5)) * slope[..., None])


#: What stains leave of blue, green and red: oil, rust, coolant, burn.
_STAINS = ((0.42, 0.58, 0.70), (0.30, 0.48, 0.78), (0.92, 0.80, 0.58), (0.40, 0.42, 0.46))


def _stain(draft: Draft, rng: Rng, strength: float) -> None:
    centre = _point(draft.product.solid_spots, rng)
    radius, aspect = rng.uniform(0.025, 0.075) * draft.product.unit, rng.uniform(0.7, 1.4)
    window = _Window(draft, centre[None], 2.6 * radius)
    distance = np.hypot((window.x - centre[0]) / (radius * aspect), (window.y - centre[1]) / (radius / aspect))
    depth = 1 + window.cloud(rng, 5, 0.30) + window.cloud(rng, 14, 0.12) - distance
    # Liquids dry darker at the rim.
    wet = np.clip(depth * rng.uniform(2.5, 6.0), 0, 1) * (0.75 + 0.25 * np.exp(-((depth / 0.12) ** 2)))
    wet *= min(1.0, strength * rng.uniform(0.35, 0.85))
    tint = np.array(_STAINS[rng.integers(len(_STAINS))], np.float32)
    window.scale(1 - wet[..., None] * (1 - tint))


#: BGR of plastic, wood, swarf, soot, rubber.
_PARTICLES = ((150, 70, 40), (90, 130, 170), (235, 238, 240), (28, 28, 30), (52, 48, 120))


def _particle(draft: Draft, rng: Rng, strength: float) -> None:
    unit, pen = draft.product.unit, draft.product.pen
    centre = _point(draft.product.solid_spots, rng)
    colour = _PARTICLES[rng.integers(len(_PARTICLES))]
    visible = min(1.0, strength * rng.uniform(0.75, 1.0))
    if rng.random() < 0.45:
        fibre = _walk(
            centre, rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.35, 20)), rng.uniform(0.05, 0.12) * unit
        )
        width, full = rng.uniform(1.0, 1.8) * pen, np.full(len(fibre), visible)
        window = _Window(draft, fibre, 5 * pen)
        shade, body = window.stroke(fibre + 1.6 * pen, width, 0.4 * full), window.stroke(fibre, width, full)
    else:
        angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
        radii = rng.uniform(0.006, 0.018) * unit * rng.uniform(0.6, 1.25, 9)
        chip = centre + np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None]
        window = _Window(draft, chip, 0.006 * unit + 4)
        shade, body = window.fill(chip + 0.006 * unit, 0.5 * visible), window.fill(chip, visible)
    window.blend(shade, (24, 24, 26))
    window.blend(body, colour)


def _crack(draft: Draft, rng: Rng, strength: float) -> None:
    unit = draft.product.unit
    start, inside = _point(draft.product.rim_spots, rng), _point(draft.product.solid_spots, rng)
    heading = float(np.arctan2(inside[1] - start[1], inside[0] - start[0]))
    visible = min(1.0, strength * rng.uniform(0.6, 0.95))
    width = rng.uniform(0.9, 1.6) * draft.product.pen
    trunk = _jagged(rng, start, heading, rng.uniform(0.12, 0.30) * unit)
    lines = [trunk]
    for _ in range(int(rng.integers(0, 3))):
        fork = trunk[rng.integers(len(trunk) // 4, len(trunk) - 1)]
        aside = heading + float(rng.choice((-1, 1)) * rng.uniform(0.5, 1.1))
        lines.append(_jagged(rng, fork, aside, rng.uniform(0.03, 0.09) * unit))
    for line in lines:
        window = _Window(draft, line, 4 * draft.product.pen)
        window.blend(window.stroke(line, width, visible * np.linspace(1.0, 0.45, len(line))), (22, 24, 28))


def _missing_hole(draft: Draft, rng: Rng, strength: float) -> None:
    product = draft.product
    x, y, radius = product.holes[rng.integers(len(product.holes))]
    window = _Window(draft, np.array([[x, y]]), 2 * radius)
    draft.image[window.at] = cv2.multiply(draft.stock[window.at], product.coat_undrilled[window.at], scale=1 / 255)


def _missing_print(draft: Draft, rng: Rng, strength: float) -> None:
    product = draft.product
    centre = _point(product.print_spots, rng)
    reach_x, reach_y = rng.uniform(0.03, 0.10, 2) * product.unit
    window = _Window(draft, centre[None], 1.4 * max(reach_x, reach_y))
    depth = 1.3 - np.maximum(np.abs(window.x - centre[0]) / reach_x, np.abs(window.y - centre[1]) / reach_y)
    depth += window.cloud(rng, 6, 0.12)
    bare = np.clip(depth * 4, 0, 1) * np.float32(min(1.0, strength * rng.uniform(0.6, 1.0)))
    unprinted = cv2.multiply(draft.stock[window.at], product.coat_unprinted[window.at], scale=1 / 255)
    window.blend(bare.astype(np.float32), unprinted[..., :3])


_PAINTERS: dict[str, Callable[[Draft, Rng, float], None]] = {
    "scratch": _scratch,
    "dent": _dent,
    "stain": _stain,
    "missing_hole": _missing_hole,
    "missing_print": _missing_print,
    "particle": _particle,
    "crack": _crack,
}


class _Window:
    """The piece of a draft around some points: painting costs by the size of the defect, not of the frame.

    `x` `(1, w)` and `y` `(h, 1)` are float32 pixel coordinates in the whole draft, `at` the slices of it.
    """

    def __init__(self, draft: Draft, points: F64, margin: float) -> None:
        height, width = draft.image.shape[:2]
        left, top = (int(max(0, value)) for value in points.min(axis=0) - margin)
        right, foot = (
            int(min(end, value + 2)) for end, value in zip((width, height), points.max(axis=0) + margin, strict=True)
        )
        # A crack may walk off the frame: a window is never empty.
        left, top = min(left, width - 1), min(top, height - 1)
        right, foot = max(right, left + 1), max(foot, top + 1)
        self.at = (slice(top, foot), slice(left, right))
        self._colour = draft.image[self.at][..., :3]
        self.x = np.arange(left, right, dtype=np.float32)[None, :]
        self.y = np.arange(top, foot, dtype=np.float32)[:, None]
        self._origin = (left, top)
        self._surface = draft.product.solid[self.at][..., None] > 127

    def blend(self, coverage: F32, colour: ArrayLike) -> None:
        """Lay a colour over the part; coverage is 0–1."""
        below = self._colour.astype(np.float32)
        self._set(below + coverage[..., None] * (np.asarray(colour, np.float32) - below))

    def scale(self, gain: NDArray[np.floating]) -> None:
        """Multiply the part's colour, `gain` of shape `(h, w, 1 or 3)`."""
        self._set(self._colour.astype(np.float32) * gain)

    def stroke(self, line: F64, width: float, weights: F64) -> F32:
        """Return the coverage of a line whose opacity varies along it."""
        canvas = np.zeros(self._colour.shape[:2], np.uint8)
        points = self._subpixel(line)
        # A pen of whole pixels, then softened: finer widths come out as fainter lines, as through a lens.
        pen = max(1, round(width))
        for start, end, weight in zip(points[:-1], points[1:], weights[:-1], strict=True):
            cv2.line(canvas, start.tolist(), end.tolist(), int(255 * min(1.0, weight)), pen, cv2.LINE_AA, 4)
        return self._soften(canvas, 0.45, min(1.0, width))

    def fill(self, outline: F64, weight: float) -> F32:
        """Return the coverage of a filled shape."""
        canvas = np.zeros(self._colour.shape[:2], np.uint8)
        cv2.fillPoly(canvas, [self._subpixel(outline)], int(255 * min(1.0, weight)), cv2.LINE_AA, 4)
        return self._soften(canvas, 0.6, 1.0)

    def cloud(self, rng: Rng, cells: int, spread: float) -> F32:
        """Return smooth noise with so many cells along each side."""
        grid = rng.normal(0, spread, (cells, cells)).astype(np.float32)
        height, width = self._colour.shape[:2]
        smooth: F32 = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        return smooth

    def _set(self, colour: NDArray[np.floating]) -> None:
        np.copyto(self._colour, np.clip(np.rint(colour), 0, 255).astype(np.uint8), where=self._surface)

    def _subpixel(self, points: F64) -> NDArray[np.int32]:
        """In sixteenths of a pixel, as OpenCV draws them with `shift=4`."""
        sixteenths: NDArray[np.int32] = np.rint((points - self._origin) * 16).astype(np.int32)
        return sixteenths

    @staticmethod
    def _soften(canvas: U8, sigma: float, weight: float) -> F32:
        soft: F32 = cv2.GaussianBlur(canvas, (0, 0), sigma).astype(np.float32) * np.float32(weight / 255)
        return soft


def _point(spots: NDArray[np.int32], rng: Rng) -> F64:
    """Return one of the spots, `(N, 2)`, as `(x, y)`."""
    point: F64 = spots[rng.integers(len(spots))].astype(np.float64)
    return point


def _walk(start: F64, headings: F64, length: float) -> F64:
    """Return the path, `(N, 2)`, of equal steps in these headings."""
    steps = np.stack([np.cos(headings), np.sin(headings)], 1) * (length / len(headings))
    path: F64 = start + np.cumsum(steps, axis=0)
    return path


def _jagged(rng: Rng, start: F64, heading: float, length: float) -> F64:
    steps = max(6, int(length / 4))
    turns = heading + 0.35 * np.cumsum(rng.normal(0, 0.35, steps)) + rng.normal(0, 0.45, steps)
    return _walk(start, turns, length)
