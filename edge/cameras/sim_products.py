"""The products of the simulated line: their look, drawn once per frame size, and what varies from part to part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.cameras.sim_drawing import Canvas, draw_belt, draw_clay, draw_sheen, draw_turned_metal, to_u8
from edge.frames import F32, U8


@dataclass(frozen=True)
class Product:
    """One product at one frame size.  Images are uint8 of the frame's `(height, width)`, the part upright and centred.

    A part is `stock * coat / 255`, BGRA with premultiplied alpha: the raw material, which differs from part to part,
    times print, edges and holes, which do not.  Its alpha hides the belt: 255 on the part, less in holes and shadow.

    Attributes:
        unit: smaller side of the frame, in pixels; all sizes are shares of it.
        rotation_deg: parts lie within plus and minus this angle.
        shift: parts lie within plus and minus this share of `unit`, in x and in y.
        stock, coat: as above, `(H, W, 4)`; `coat_unprinted`, `coat_undrilled`: with print or holes left out.
        solid: 255 where the part's surface is.
        solid_spots, print_spots, rim_spots: `(x, y)` of all pixels, int32 `(N, 2)`, on the surface, print, edges.
        holes: `(x, y, radius)` in pixels of every hole that can be missing.
        belt: what the part lies on, larger than the frame.
        sheen: fixed highlights of the part in the frame's axes, `(2 height, 2 width, 3)`, 128 = none; or None.
        defects: the kinds of defect that this product can have.
    """

    name: str
    unit: float
    rotation_deg: float
    shift: float
    stock: Callable[[np.random.Generator], U8]
    coat: U8
    coat_unprinted: U8
    solid: U8
    print_spots: NDArray[np.int32]
    belt: U8
    defects: tuple[str, ...]
    sheen: U8 | None = None
    holes: tuple[tuple[float, float, float], ...] = ()
    coat_undrilled: U8 = field(default_factory=lambda: np.empty((0, 0, 4), np.uint8))
    solid_spots: NDArray[np.int32] = field(init=False)
    rim_spots: NDArray[np.int32] = field(init=False)

    def __post_init__(self) -> None:
        rim = self.solid - cv2.erode(self.solid, np.ones((3, 3), np.uint8))
        object.__setattr__(self, "solid_spots", _spots(self.solid))
        object.__setattr__(self, "rim_spots", _spots(rim))

    @property
    def pen(self) -> float:
        """Width in pixels of the finest line that the product's defects have."""
        return max(1.0, self.unit / 320)


@lru_cache(maxsize=4)
def load_product(name: str, width: int, height: int) -> Product:
    """Draw a product for a frame size; `name` is one of `PRODUCTS`."""
    return PRODUCTS[name](width, height)


def _disc(width: int, height: int) -> Product:
    """A turned metal disc: bore, groove, a ring of six holes, a part number and a code block."""
    unit = float(min(width, height))
    rng = np.random.default_rng(101)
    canvas = Canvas(width, height)
    holes = tuple(
        (0.31 * np.cos(angle), 0.31 * np.sin(angle), 0.034) for angle in np.deg2rad(np.arange(0, 360, 60) + 15.0)
    )
    bores = ((0.0, 0.0, 0.088), *holes)

    disc = canvas.disc(0, 0, 0.41)
    cut = np.maximum.reduce([canvas.disc(*hole) for hole in bores])
    bore = canvas.disc(*bores[0])
    ink = np.zeros((height, width), np.float32)
    for text, y, scale in (("RD7-410", -0.205, 1.0), ("24V  0.8", 0.232, 0.78)):
        ink = np.maximum(ink, canvas.text(text, 0, y, scale))
    for cell in np.argwhere(rng.random((6, 6)) < 0.55):
        x, y = -0.213 + 0.012 * cell[1], 0.01 + 0.012 * (cell[0] - 3)
        ink = np.maximum(ink, canvas.box(x, y, 0.012, 0.012))

    def relief(drilled: tuple[tuple[float, float, float], ...]) -> F32:
        # Bevels catch the light from the upper left on one side and lose it on the other.
        light = np.full((height, width), 0.74, np.float32)
        light += 0.16 * canvas.bevel(0, 0, 0.402, 0.010)
        light += 0.12 * canvas.bevel(0, 0, 0.150, 0.006) - 0.12 * canvas.bevel(0, 0, 0.160, 0.006)
        for x, y, radius in drilled:
            light -= 0.20 * canvas.bevel(x, y, radius + 0.007, 0.007)
        return np.clip(light, 0, 1)

    shadow = 0.55 * canvas.soften(canvas.disc(0.018, 0.022, 0.41), 0.016) * (1 - disc)

    def coat(drilled: tuple[tuple[float, float, float], ...], opening: F32, print_: F32) -> U8:
        colour = relief(drilled)[..., None] * (1 - print_[..., None] * np.array((0.62, 0.66, 0.72), np.float32))
        alpha = np.maximum(disc * (1 - 0.22 * opening), shadow)
        return to_u8(255 * np.dstack([colour * (disc * (1 - opening))[..., None], alpha]))

    brush = draw_turned_metal(rng, width, height)
    centre = ((width - 1) / 2, (height - 1) / 2)

    def stock(part: np.random.Generator) -> U8:
        turn = cv2.getRotationMatrix2D(centre, float(part.uniform(0, 360)), 1.0)
        grey = cv2.warpAffine(brush, turn, (width, height), borderMode=cv2.BORDER_REFLECT)
        metal: U8 = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGRA)
        return metal

    return Product(
        name="disc",
        unit=unit,
        rotation_deg=12.0,
        shift=0.03,
        stock=stock,
        coat=coat(bores, cut, ink),
        coat_unprinted=coat(bores, cut, np.zeros_like(ink)),
        coat_undrilled=coat(bores[:1], bore, ink),
        solid=to_u8(255 * disc * (1 - cut)),
        print_spots=_spots(to_u8(255 * ink)),
        holes=tuple((float(centre[0] + x * unit), float(centre[1] + y * unit), float(r * unit)) for x, y, r in holes),
        belt=draw_belt(rng, width, height, (62, 66, 60)),
        sheen=draw_sheen(width, height),
        defects=("scratch", "dent", "stain", "missing_hole", "missing_print", "particle", "crack"),
    )


def _tile(width: int, height: int) -> Product:
    """A rough fired plate with a printed ornament; each part has a texture of its own."""
    unit = float(min(width, height))
    rng = np.random.default_rng(202)
    canvas = Canvas(width, height)
    half_x, half_y = 0.44 * width / unit, 0.44 * height / unit

    plate = canvas.box(-half_x, -half_y, 2 * half_x, 2 * half_y, corner=0.03)
    inner = canvas.box(-half_x + 0.014, -half_y + 0.014, 2 * half_x - 0.028, 2 * half_y - 0.028, corner=0.022)
    ink = canvas.frame(half_x - 0.045, half_y - 0.045, 0.010)
    ink = np.maximum(ink, canvas.frame(half_x - 0.066, half_y - 0.066, 0.004))
    for x in (-half_x / 2, half_x / 2):
        for y in (-half_y / 2, half_y / 2):
            ink = np.maximum(ink, canvas.rosette(x * 0.82, y * 0.82, 0.135))
    ink = np.maximum(ink, canvas.rosette(0, 0, 0.07))
    # Worn ink on a rough surface: grains stay bare.
    wear = cv2.resize(rng.random((height // 2 + 1, width // 2 + 1), np.float32), (width, height))
    ink = (ink * np.clip(0.35 + 1.1 * wear, 0, 1)).astype(np.float32)

    moved = canvas.box(-half_x + 0.014, -half_y + 0.018, 2 * half_x, 2 * half_y, corner=0.03)
    alpha = np.maximum(plate, 0.6 * canvas.soften(moved, 0.012) * (1 - plate))

    def coat(print_: F32) -> U8:
        edge = (0.80 + 0.20 * inner) * plate
        colour = edge[..., None] * (1 - print_[..., None] * np.array((0.34, 0.58, 0.72), np.float32))
        return to_u8(255 * np.dstack([colour, alpha]))

    margin = max(64, int(unit / 2))
    clay = draw_clay(rng, width + margin, height + margin)

    def stock(part: np.random.Generator) -> U8:
        y, x = part.integers(0, margin, 2)
        return clay[y : y + height, x : x + width]

    return Product(
        name="tile",
        unit=unit,
        rotation_deg=4.0,
        shift=0.02,
        stock=stock,
        coat=coat(ink),
        coat_unprinted=coat(np.zeros_like(ink)),
        solid=to_u8(255 * plate),
        print_spots=_spots(to_u8(255 * ink)),
        belt=draw_belt(rng, width, height, (70, 62, 56)),
        defects=("scratch", "dent", "stain", "missing_print", "particle", "crack"),
    )


#: Every product by name.
PRODUCTS: dict[str, Callable[[int, int], Product]] = {"disc": _disc, "tile": _tile}


def _spots(image: U8) -> NDArray[np.int32]:
    """Return `(x, y)` of every pixel above half."""
    return np.argwhere(image > 127)[:, ::-1].astype(np.int32)
