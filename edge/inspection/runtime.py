"""The seam between one meaning and several machines: what every runtime does with one frame.

    before   frame bytes → X, H, descriptor → nearest prompt
    core     X, H, prompt features → F_X, F_Y at every scale
    after    F_X, F_Y → anomaly map, bit mask, image score

`portable.py` is the runtime for any CPU.  A runtime may queue its work and return early from `before` and `core`;
once `after` returns, the results lie in the slot.  Only the runtime knows when its stages really began and ended, so
it measures them itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from edge.frames import Slot

#: The stages of an inspection, in order: the keys of `Outcome.latency_ms`.
STAGES = ("before", "core", "after")


@dataclass(frozen=True)
class Outcome:
    """What the runtime found: image score and peak (raw, map units), the chosen prompt (-1: none), stage times."""

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

    def before(self, slot: Slot) -> None:
        """Turn the slot's pixels into the core's inputs and choose the prompt.

        Raises:
            FrameError: the frame cannot be used (size zero, wrong channel count).
        """
        ...

    def core(self, slot: Slot) -> None:
        """Run the network on what `before` prepared."""
        ...

    def after(self, slot: Slot, pixel_threshold: float) -> Outcome:
        """Compare the features: fill the slot's `anomaly_map` and `mask` (map above `pixel_threshold`) and return."""
        ...

    def close(self) -> None:
        """Free the model; the slots' memory stays valid as long as it is referenced."""
        ...
