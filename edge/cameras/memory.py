"""Frames from memory, as a camera's DMA would deliver them: for measurements in which no decoder is to be timed."""

from __future__ import annotations

import time
from collections.abc import Sequence

from edge.cameras.base import Camera, EndOfStream
from edge.frames import U8, Slot


class MemoryCamera(Camera):
    """Delivers prepared frames round and round, each as soon as there is a slot for it.

    Args:
        name: the camera's name.
        frames: uint8, `(height, width)` or BGR `(height, width, 3)`; at least one.
        count: how many frames there will be.
    """

    def __init__(self, name: str, frames: Sequence[U8], count: int) -> None:
        super().__init__(name, live=False, total=count)
        self._prepared = frames

    def capture(self, slot: Slot, timeout_s: float) -> bool:
        """Copy the next frame into the slot; `timeout_s` does not matter, memory is always there."""
        if self._frames == self.total:
            raise EndOfStream
        started_ns = time.monotonic_ns()
        self._deliver(slot, self._prepared[self._frames % len(self._prepared)], self.name, started_ns)
        return True
