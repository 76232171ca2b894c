"""The simulated line as a camera."""

from __future__ import annotations

import math
import threading
import time

from edge.cameras.base import Camera, EndOfStream
from edge.cameras.sim import MAX_SIZE, MIN_SIZE, SimLine
from edge.cameras.sim_products import PRODUCTS
from edge.errors import CameraError
from edge.frames import PixelFormat, Slot
from edge.parts import Ticket

_ENDLESS = 2**63 - 1


class SimCamera(Camera):
    """Delivers the parts of a simulated line: at a steady rate (live), or one whenever asked.

    Source names are `sim/<seed>/<index>`: they do not give the label away; `line.part(index)` knows it.

    Args:
        name: the camera's name.
        line: the line.
        count: how many parts there are; None for no end.
        rate: parts per second; None for as fast as they are taken.
        by_encoder: a triggered part is the one of its encoder's count, as if the camera hung there over the conveyor.
    """

    def __init__(
        self,
        name: str,
        line: SimLine,
        *,
        count: int | None = None,
        rate: float | None = None,
        by_encoder: bool = False,
    ) -> None:
        super().__init__(name, live=rate is not None, total=count)
        self._by_encoder = by_encoder
        self._encoder: int | None = None
        self.line = line
        self._period_s = None if rate is None else 1 / rate
        self._due_s = time.monotonic()
        self._closed = threading.Event()

    def capture(self, slot: Slot, timeout_s: float) -> bool:
        """Draw the next part into the slot once it is due."""
        if self._frames == self.total:
            raise EndOfStream
        if not self._await_part(timeout_s):
            return False
        started_ns = time.monotonic_ns()
        index = self._frames if self._encoder is None else self._encoder
        self.line.render(index, slot.shape_pixels(self.line.height, self.line.width, PixelFormat.BGR8))
        self._stamp(slot, f"sim/{self.line.seed}/{index:06d}", started_ns)
        return True

    def expect(self, ticket: Ticket) -> None:
        """Show the part that lies at this count of the encoder."""
        if self._by_encoder:
            self._encoder = max(0, ticket.encoder or 0)

    def close(self) -> None:
        """End a wait for the next part."""
        self._closed.set()

    def _await_part(self, timeout_s: float) -> bool:
        if self._period_s is None:
            return True
        now_s = time.monotonic()
        wait_s = self._due_s - now_s
        if wait_s > 0 and (self._closed.wait(min(wait_s, timeout_s)) or wait_s > timeout_s):
            return False
        # After a delay the line goes on at its rate: it does not rush to catch up.
        self._due_s = max(self._due_s, now_s - self._period_s) + self._period_s
        return True


def open_sim(name: str, options: str) -> SimCamera:
    """Open a simulated line from options such as `seed=3,count=100,rate=20`.

    Args:
        name: the camera's name.
        options: comma-separated `key=value`, each at most once.  `seed` (0), `count` of parts (no end), `rate` in
            parts per second (as fast as they are taken), `defects` share 0–1 (0.25), `width` and `height` in pixels
            (320), `product` (disc), `rotation`: parts lie turned by up to so many degrees (the product's own), `index`:
            `frame`, or `encoder` for triggered parts (frame).

    Raises:
        CameraError: an unknown option or product, or a value out of range.
    """
    given: dict[str, str] = {}
    for item in filter(None, options.split(",")):
        key, equals, value = (text.strip() for text in item.partition("="))
        if key not in _KEYS:
            raise CameraError(f"simulated line: no option '{key}'", f"known: {', '.join(_KEYS)}")
        if not equals or key in given:
            raise CameraError(f"simulated line: option '{key}' needs one value", f"write sim:{key}=…")
        given[key] = value
    product = given.get("product", "disc")
    if product not in PRODUCTS:
        raise CameraError(f"simulated line: no product '{product}'", f"known: {', '.join(PRODUCTS)}")
    line = SimLine(
        seed=_whole(given.get("seed", "0"), "seed", 0, _ENDLESS),
        width=_whole(given.get("width", "320"), "width", MIN_SIZE, MAX_SIZE),
        height=_whole(given.get("height", "320"), "height", MIN_SIZE, MAX_SIZE),
        defect_rate=_real(given.get("defects", "0.25"), "defects", 0.0, 1.0),
        product=product,
        rotation_deg=_real(given["rotation"], "rotation", 0.0, 180.0) if "rotation" in given else None,
    )
    count = _whole(given["count"], "count", 1, _ENDLESS) if "count" in given else None
    rate = _real(given["rate"], "rate", 0.001, 100_000.0) if "rate" in given else None
    index = given.get("index", "frame")
    if index not in ("frame", "encoder"):
        raise CameraError(f"simulated line: index={index}", "write index=frame or index=encoder")
    return SimCamera(name, line, count=count, rate=rate, by_encoder=index == "encoder")


_KEYS = ("seed", "count", "rate", "defects", "width", "height", "product", "rotation", "index")


def _whole(text: str, key: str, low: int, high: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise CameraError(f"simulated line: {key}={text}", f"a whole number from {low} to {high} is needed")
    return value


def _real(text: str, key: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    # Not a number fails every comparison.
    if not low <= value <= high:
        raise CameraError(f"simulated line: {key}={text}", f"a number from {low:g} to {high:g} is needed")
    return value
