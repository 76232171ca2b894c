"""The simulated line: a product in changing pose and light, with labelled defects and their true masks."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.cameras.sim_defects import Draft, paint_defect
from edge.cameras.sim_products import PRODUCTS, Product, load_product
from edge.frames import F32, U8

#: A defect is where it changes a sample of the noise-free frame by more than this many grey levels.
VISIBLE_LEVELS = 12

#: The smallest frame on which the products' print and defects can still be seen.
MIN_SIZE = 64
#: Larger frames than this are a slip of the keyboard.
MAX_SIZE = 16384

_NOISE_SIGMA = 2.2
_NOISE_TRAVEL = 64


@dataclass(frozen=True)
class SimPart:
    """One part, as the camera sees it and as it truly is.

    `image` is uint8 BGR `(H, W, 3)`, `mask` bool `(H, W)`, true where the defect changed the image visibly; `kind` is
    `good` or the defect's kind.
    """

    index: int
    image: U8
    mask: NDArray[np.bool_]
    kind: str


@dataclass(frozen=True)
class _Scene:
    """Pose and light of one frame: `pose` places the upright part, `light` is float32 `(H, W, 3)`, 1 = unchanged."""

    pose: F32
    moved: tuple[int, int]
    belt: U8
    light: F32
    noise: F32


class SimLine:
    """An endless line of parts; each depends on seed and index alone, whatever was made before it.

    A part lies within the stated rotation and the product's shift, on a belt of which another piece is in sight each
    time, in light that changes in strength (±12 %), evenness (±10 % from the centre to an edge) and colour (±3 %), with
    sensor noise of 2.2 grey levels.  With another `defect_rate` the same good parts come, others defective.

    Args:
        seed: 0 or more.
        width, height: frame size in pixels, at least `MIN_SIZE`.
        defect_rate: share of defective parts, 0–1.
        product: a name in `PRODUCTS`.
        rotation_deg: parts lie turned by up to this angle either way, 0–180; None: the product's own.
    """

    def __init__(
        self,
        seed: int = 0,
        width: int = 320,
        height: int = 320,
        defect_rate: float = 0.25,
        product: str = "disc",
        rotation_deg: float | None = None,
    ) -> None:
        if product not in PRODUCTS:
            raise ValueError(f"no product {product!r}; known: {', '.join(PRODUCTS)}")
        if seed < 0 or min(width, height) < MIN_SIZE or not 0 <= defect_rate <= 1:
            raise ValueError(f"seed >= 0, sides >= {MIN_SIZE} and a defect rate from 0 to 1 are needed")
        self.seed = seed
        self.width = width
        self.height = height
        self.defect_rate = defect_rate
        if rotation_deg is not None and not 0 <= rotation_deg <= 180:
            raise ValueError("a rotation from 0 to 180 degrees is needed")
        self._product: Product = load_product(product, width, height)
        self._rotation = self._product.rotation_deg if rotation_deg is None else rotation_deg
        self._x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
        self._y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
        self._lens = 1 - np.float32(0.06) * (self._x**2 + self._y**2)
        noise = np.random.default_rng(303).standard_normal(
            (height + _NOISE_TRAVEL, width + _NOISE_TRAVEL, 3), np.float32
        )
        self._noise: F32 = noise * np.float32(_NOISE_SIGMA)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of defect that this product can have."""
        return self._product.defects

    def kind(self, index: int) -> str:
        """Return what the part is: `good` or a kind of defect."""
        return self._kind(self._fate(index))

    def part(self, index: int, kind: str | None = None) -> SimPart:
        """Make a part with its truth.

        Args:
            index: which part, 0 or more.
            kind: `good` or one of `kinds`; None lets the defect rate decide.
        """
        if kind is not None and kind not in ("good", *self.kinds):
            raise ValueError(f"no defect {kind!r}; known: {', '.join(self.kinds)}")
        good, draft, scene, kind = self._make(index, kind)
        image = self._develop(self._place(draft, scene), scene)
        return SimPart(index, image, self._truth(good, draft, scene), kind)

    def render(self, index: int, out: U8) -> None:
        """Write the image of `part(index)` into `out`, uint8 `(H, W, 3)`, without working out its truth."""
        _, draft, scene, _ = self._make(index, None)
        self._develop(self._place(draft, scene), scene, out)

    def _fate(self, index: int) -> np.random.Generator:
        # Apart from the pose's generator, so that a part keeps pose and light whether or not it is defective.
        return np.random.default_rng((self.seed, index, 1))

    def _kind(self, fate: np.random.Generator) -> str:
        defective, which = fate.random() < self.defect_rate, int(fate.integers(len(self.kinds)))
        return self.kinds[which] if defective else "good"

    def _make(self, index: int, kind: str | None) -> tuple[Draft, Draft, _Scene, str]:
        """Return the part as it should be, as it is (the same object where it is good), its scene and kind."""
        rng, fate = np.random.default_rng((self.seed, index, 0)), self._fate(index)
        drawn = self._kind(fate)
        kind = drawn if kind is None else kind
        product = self._product
        scene = self._scene(rng)
        stock = product.stock(rng)
        good = Draft(product, stock, cv2.multiply(stock, product.coat, scale=1 / 255))
        return good, good if kind == "good" else self._spoil(good, kind, fate), scene, kind

    def _scene(self, rng: np.random.Generator) -> _Scene:
        product, width, height = self._product, self.width, self.height
        angle = float(rng.uniform(-self._rotation, self._rotation))
        moved_x, moved_y = rng.uniform(-product.shift, product.shift, 2) * product.unit
        pose = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
        pose[:, 2] += moved_x, moved_y
        y, x = rng.integers(0, (product.belt.shape[0] - height, product.belt.shape[1] - width))
        gain, tilt, slope = rng.uniform(0.88, 1.12), rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.10)
        warmth = np.float32(rng.uniform(-0.03, 0.03))
        ramp = (
            np.float32(gain) + np.float32(slope * np.cos(tilt)) * self._x + np.float32(slope * np.sin(tilt)) * self._y
        )
        ramp *= self._lens
        light = cv2.merge((ramp * (1 - warmth), ramp, ramp * (1 + warmth)))
        noise_y, noise_x = rng.integers(0, _NOISE_TRAVEL, 2)
        return _Scene(
            pose=pose,
            moved=(round(moved_x), round(moved_y)),
            belt=product.belt[y : y + height, x : x + width],
            light=light,
            noise=self._noise[noise_y : noise_y + height, noise_x : noise_x + width],
        )

    def _spoil(self, good: Draft, kind: str, fate: np.random.Generator) -> Draft:
        """Return a copy with a defect that can be seen: drawn anew, plainer each time, until it can."""
        strength = 1.0
        while True:
            draft = good.copy()
            paint_defect(kind, draft, fate, strength)
            # Blurred as the turn into the frame's pose will blur it, then with the darkest light in mind.
            change = cv2.blur(cv2.absdiff(draft.image, good.image), (2, 2))
            if np.count_nonzero(change > 2 * VISIBLE_LEVELS) > max(6, 1e-4 * change.size):
                return draft
            strength *= 1.2

    def _place(self, draft: Draft, scene: _Scene) -> U8:
        """Lay the part on the belt: the scene as a noiseless camera would see it in even light."""
        part = cv2.warpAffine(draft.image, scene.pose, (self.width, self.height))
        colour = cv2.cvtColor(part, cv2.COLOR_BGRA2BGR)
        clear = 255 - cv2.extractChannel(part, 3)
        sheen = self._product.sheen
        if sheen is not None:
            y, x = self.height // 2 - scene.moved[1], self.width // 2 - scene.moved[0]
            cv2.multiply(colour, sheen[y : y + self.height, x : x + self.width], colour, scale=1 / 128)
        belt = cv2.multiply(scene.belt, cv2.merge((clear, clear, clear)), scale=1 / 255)
        placed: U8 = cv2.add(colour, belt, belt)
        return placed

    def _develop(self, placed: U8, scene: _Scene, out: U8 | None = None) -> U8:
        lit = cv2.multiply(placed, scene.light, dtype=cv2.CV_32F)
        image: U8 = cv2.add(lit, scene.noise, out, dtype=cv2.CV_8U)
        return image

    def _truth(self, good: Draft, draft: Draft, scene: _Scene) -> NDArray[np.bool_]:
        if draft is good:
            return np.zeros((self.height, self.width), np.bool_)
        lit = [cv2.multiply(self._place(each, scene), scene.light, dtype=cv2.CV_32F) for each in (good, draft)]
        changed = (np.maximum.reduce(cv2.split(cv2.absdiff(*lit))) > VISIBLE_LEVELS).astype(np.uint8)
        # Texture makes pinholes in what a person would mark as one region.
        closed = cv2.morphologyEx(changed, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
        mask: NDArray[np.bool_] = closed > 0
        return mask
