from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from edge.frames import Slot, aligned_bytes, aligned_f32


@pytest.fixture
def new_slot() -> Callable[..., Slot]:
    """Make slots, each with the next index; by default with room for any frame of these tests."""
    numbers = itertools.count()

    def make(frame_bytes: int = 1 << 20) -> Slot:
        mask = aligned_bytes(8).reshape(8, 1)
        return Slot(next(numbers), aligned_bytes(frame_bytes), aligned_f32(8, 8), mask)

    return make
