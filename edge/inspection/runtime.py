"""The seam between one meaning and several machines: what every runtime does with one frame.

    before   frame bytes → X, H, descriptor → nearest prompt
    core     X, H, prompt features → F_X, F_Y at every scale
    after    F_X, F_Y → anomaly map; at the end, bit mask and image score

A frame of several tiles goes through all three tile by tile.  `portable.py` is the runtime for any CPU.  Only the
runtime knows when its stages really began and ended, so it measures them itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from edge.bundle import CORE, Bundle
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


@dataclass(frozen=True)
class Traffic:
    """What has been copied between host and device since the start: how often, and how many bytes."""

    copies: int = 0
    bytes: int = 0

    @classmethod
    def of(cls, size: int) -> Traffic:
        """Return that of one copy of `size` bytes; of 0 bytes there is none."""
        return cls(1, size) if size else cls()

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.copies + other.copies, self.bytes + other.bytes)


@dataclass(frozen=True)
class CacheReport:
    """How often a cache had what it was asked for, how often it took in what it had not, and what it holds now."""

    hits: int = 0
    misses: int = 0
    promotions: int = 0
    bytes: int = 0


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

    def stage(self, slot: Slot) -> None:
        """Begin to bring the slot's pixels to where they are inspected; the slot's owner calls it, in any thread.

        It neither waits nor raises: what fails here fails in `run`, which also brings what was not staged.
        """
        ...

    def run(self, slot: Slot, pixel_threshold: float) -> Outcome:
        """Inspect the slot's pixels: fill its `anomaly_map`, `mask` (map above `pixel_threshold`) and `area`.

        Raises:
            FrameError: the frame cannot be used (size zero, wrong channel count).
            CudaError: the GPU has failed; no later frame can be inspected.
        """
        ...

    @property
    def caches(self) -> Mapping[str, CacheReport]:
        """What its caches have done, by name."""
        ...

    @property
    def traffic(self) -> Traffic:
        """What it has copied."""
        ...

    def close(self) -> None:
        """Free the model; the slots' memory stays valid as long as it is referenced."""
        ...


def model_digests(bundle: Bundle) -> tuple[str, ...]:
    """Return what a bundle's network and prompt bank are made of: equal digests, equal models."""
    return tuple(
        member.sha256 for name, member in sorted(bundle.members.items()) if name == CORE or name.startswith("prompts/")
    )
