"""The seam between one meaning and several machines: what every runtime does with one frame.

    before   frame bytes → X, H, descriptor → nearest prompt
    core     X, H, prompt features → F_X, F_Y at every scale
    after    F_X, F_Y → anomaly map; at the end, bit mask and image score

A frame of several tiles goes through all three tile by tile.  `portable.py` is the runtime for any CPU.  Only the
runtime knows when its stages really began and ended, so it measures them itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from edge.frames import Slot

#: The stages of an inspection, in order: the keys of `Outcome.latency_ms`.
STAGES = ("before", "core", "after")


@dataclass(frozen=True)
class Outcome:
    """What the runtime found: image score and peak (raw, map units), the chosen prompt, and each stage's time.

    `prompt` is that of the first tile, -1 where the model takes none.  Times are sums over the tiles.
    """

    score: float
    peak: float
    prompt: int
    latency_ms: dict[str, float]


class Runtime(Protocol):
    """One bundle's model, ready to run.  Not thread-safe: one thread inspects."""

    @property
    def describe(self) -> str:
        """One line for people: runtime, device, precision, threads, kernels."""
        ...

    def make_slots(self, count: int, frame_bytes: int) -> list[Slot]:
        """Allocate frame slots in memory that this runtime reads without a copy."""
        ...

    def fit(self, slot: Slot) -> None:
        """Give a slot that was made for another model the arrays that this one fills; nothing where it has them."""
        ...

    def run(self, slot: Slot, pixel_threshold: float) -> Outcome:
        """Inspect the slot's pixels: fill its `anomaly_map`, `mask` (map above `pixel_threshold`) and `area`.

        Raises:
            FrameError: the frame cannot be used (size zero, wrong channel count).
        """
        ...

    def close(self) -> None:
        """Free the model; the slots' memory stays valid as long as it is referenced."""
        ...
