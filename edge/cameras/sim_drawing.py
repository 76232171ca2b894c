"""What the simulated products are drawn with: smooth-edged shapes, and the surfaces of metal, clay and belt."""

from __future__ import annotations

import cv2
import numpy as np

from edge.frames import F32, U8

#: Extra belt around the frame, as a share of the smaller side: the part of it in sight differs from frame to frame.
_BELT_TRAVEL = 1.0


class Canvas:
    """Draws smooth-edged shapes; coordinates are shares of the smaller side, from the frame's centre; float32 0–1."""

    def __init__(self, width: int, height: int) -> None:
        self._size = (width, height)
        self._unit = float(min(width, height))
        # Large frames need less oversampling for the same smoothness.
        self._over = max(1, min(4, int(2560 / self._unit)))
        x = (np.arange(width, dtype=np.float32) - (width - 1) / 2) / self._unit
        y = (np.arange(height, dtype=np.float32) - (height - 1) / 2) / self._unit
        self._x, self._y = np.meshgrid(x, y)

    def disc(self, x: float, y: float, radius: float) -> F32:
        """A filled circle."""
        return self._inside(radius - np.hypot(self._x - x, self._y - y))

    def bevel(self, x: float, y: float, radius: float, width: float) -> F32:
        """A ring from -1 (lower right) to 1 (upper left)."""
        dx, dy = self._x - x, self._y - y
        distance = np.hypot(dx, dy) + 1e-6
        ring = np.exp(-(((distance - radius) / (width * 0.6)) ** 2))
        lit: F32 = (ring * -(dx + dy) / (distance * np.sqrt(2))).astype(np.float32)
        return lit

    def box(self, x: float, y: float, width: float, height: float, corner: float = 0.0) -> F32:
        """A filled rectangle with round corners; `x`, `y` is its upper left."""
        dx = np.abs(self._x - (x + width / 2)) - (width / 2 - corner)
        dy = np.abs(self._y - (y + height / 2)) - (height / 2 - corner)
        outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0)
        return self._inside(corner - outside)

    def frame(self, half_x: float, half_y: float, width: float) -> F32:
        """A rectangular line around the centre."""
        outer = self.box(-half_x, -half_y, 2 * half_x, 2 * half_y, corner=0.01)
        inset_x, inset_y = half_x - width, half_y - width
        inner = self.box(-inset_x, -inset_y, 2 * inset_x, 2 * inset_y, corner=0.006)
        return np.minimum(outer, 1 - inner)

    def rosette(self, x: float, y: float, radius: float) -> F32:
        """Eight petals within a ring."""
        dx, dy = self._x - x, self._y - y
        distance, angle = np.hypot(dx, dy), np.arctan2(dy, dx)
        petals = self._inside(radius * (0.30 + 0.48 * np.abs(np.cos(4 * angle))) - distance)
        heart = self._inside(0.17 * radius - distance)
        ring = self._inside(0.07 * radius - np.abs(distance - 0.94 * radius))
        flower: F32 = np.maximum(petals * (1 - heart), ring)
        return flower

    def text(self, text: str, x: float, y: float, scale: float) -> F32:
        """Text centred at a point."""
        (width, height), over = self._size, self._over
        font, size = cv2.FONT_HERSHEY_SIMPLEX, 1.25e-3 * self._unit * over * scale
        thick = max(1, round(3.1e-3 * self._unit * over * scale))
        (text_width, text_height), _ = cv2.getTextSize(text, font, size, thick)
        image = np.zeros((height * over, width * over), np.uint8)
        left = (width / 2 + x * self._unit) * over - text_width / 2
        foot = (height / 2 + y * self._unit) * over + text_height / 2
        cv2.putText(image, text, (round(left), round(foot)), font, size, 255, thick, cv2.LINE_AA)
        small = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)
        coverage: F32 = small.astype(np.float32) / np.float32(255)
        return coverage

    def soften(self, shape: F32, sigma: float) -> F32:
        """A shape out of focus."""
        soft: F32 = cv2.GaussianBlur(shape, (0, 0), sigma * self._unit)
        return soft

    def _inside(self, depth: F32) -> F32:
        """From a signed distance in units to coverage: the edge is one pixel wide."""
        coverage: F32 = np.clip(depth * self._unit + 0.5, 0, 1).astype(np.float32)
        return coverage


def draw_turned_metal(rng: np.random.Generator, width: int, height: int) -> U8:
    """Concentric tool marks: noise that is fine along the radius and long along the circumference; grey."""
    unit = min(width, height)
    radii, angles = max(32, round(0.75 * max(width, height))), 1024
    marks = rng.normal(0, 1, (angles, radii)).astype(np.float32)
    marks = np.concatenate([marks, marks, marks])
    marks = cv2.GaussianBlur(marks, (0, 0), sigmaX=0.7, sigmaY=45)[angles : 2 * angles]
    marks /= marks.std()
    centre = ((width - 1) / 2, (height - 1) / 2)
    grey = cv2.warpPolar(marks, (width, height), centre, float(radii), cv2.WARP_INVERSE_MAP | cv2.INTER_LINEAR)
    cloud = cv2.GaussianBlur(rng.normal(0, 1, (height, width)).astype(np.float32), (0, 0), 0.06 * unit)
    grey += 0.5 * cloud / cloud.std() + 0.35 * rng.normal(0, 1, (height, width)).astype(np.float32)
    return to_u8(214 + 9 * grey)


def draw_sheen(width: int, height: int) -> U8:
    """The bright fans of a turned surface: they stay with the lamp when the part turns."""
    x = np.arange(2 * width, dtype=np.float32) - (2 * width - 1) / 2
    y = np.arange(2 * height, dtype=np.float32) - (2 * height - 1) / 2
    angle = np.arctan2(y[:, None], x[None, :])
    fans = np.zeros((2 * height, 2 * width), np.float32)
    for at, spread, strength in ((-0.9, 0.30, 0.30), (0.75, 0.18, 0.10)):
        # The surface is symmetric: every fan has its twin on the other side.
        off = np.abs(np.angle(np.exp(2j * (angle - at)))) / 2
        fans += strength * np.exp(-((off / spread) ** 2)).astype(np.float32)
    grey = to_u8(128 * (0.93 + fans))
    colour: U8 = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)
    return colour


def draw_clay(rng: np.random.Generator, width: int, height: int) -> U8:
    """Rough fired clay: noise of several sizes, pits and light grains; BGRA."""
    grey = np.zeros((height, width), np.float32)
    for sigma, strength in ((0.6, 7.0), (1.8, 6.0), (6.0, 4.0), (30.0, 4.0)):
        layer = cv2.GaussianBlur(rng.normal(0, 1, (height, width)).astype(np.float32), (0, 0), sigma)
        grey += strength * layer / layer.std()
    for count, low, high in ((0.0030, -34, -12), (0.0020, 10, 26)):
        grains = np.zeros((height, width), np.float32)
        spots = rng.integers(0, height * width, int(count * height * width))
        grains.ravel()[spots] = rng.uniform(low, high, spots.size)
        grey += 6 * cv2.GaussianBlur(grains, (0, 0), 0.9)
    colour = np.array((158, 180, 196), np.float32) + grey[..., None] * np.array((1.0, 1.0, 0.95), np.float32)
    return to_u8(np.dstack([colour, np.full_like(grey, 255)]))


def draw_belt(rng: np.random.Generator, width: int, height: int, colour: tuple[int, int, int]) -> U8:
    """A conveyor belt of woven rubber with the marks of use; larger than the frame by `_BELT_TRAVEL`."""
    unit = min(width, height)
    travel = int(_BELT_TRAVEL * unit)
    y, x = np.mgrid[0 : height + travel, 0 : width + travel].astype(np.float32) * np.float32(320 / unit)
    weave = np.sin(x * 0.9 + y * 0.45) * np.sin(y * 0.9 - x * 0.45)
    grey = 4.0 * weave + 3.0 * rng.normal(0, 1, x.shape).astype(np.float32)
    cloud = cv2.GaussianBlur(rng.normal(0, 1, x.shape).astype(np.float32), (0, 0), 0.05 * unit)
    grey += 3.5 * cloud / cloud.std()
    return to_u8(np.array(colour, np.float32) + grey[..., None])


def to_u8(image: F32) -> U8:
    """Round and saturate to 0–255."""
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
