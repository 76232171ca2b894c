"""The frame slots' way round: camera → inspector → publisher → camera, one owner at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum

from edge.frames import Slot


class SlotState(Enum):
    """Who owns a slot; CAPTURED and INSPECTED slots wait in the ring for their next owner."""

    FREE = "free"
    CAPTURING = "capturing"
    CAPTURED = "captured"
    INSPECTING = "inspecting"
    INSPECTED = "inspected"
    PUBLISHING = "publishing"


class FrameRing:
    """Hands slots from the camera to the inspector to the publisher, in order, and back.

    With `newest_wins` (live cameras) the camera never waits for the inspector: the inspector gets the newest
    captured frame, and frames that nobody will inspect go back to the camera, counted in `skipped`.  Without it
    (files) nothing is ever lost: the camera waits for a free slot.

    Every hand-over checks that the slot was with the right owner and raises `RuntimeError` otherwise: two threads
    on one slot's memory is a bug that must not stay silent.

    Args:
        slots: the slots, each with its own `index`.
        newest_wins: the discipline.
    """

    def __init__(self, slots: Sequence[Slot], *, newest_wins: bool) -> None:
        if not slots or len({slot.index for slot in slots}) != len(slots):
            raise ValueError("a ring needs at least one slot, and each its own index")
        self._newest_wins = newest_wins
        self._slots = {slot.index: slot for slot in slots}
        self._states = dict.fromkeys(self._slots, SlotState.FREE)
        self._free = deque(slots)
        self._captured: deque[Slot] = deque()
        self._inspected: deque[Slot] = deque()
        self._skipped = 0
        self._finished = False
        self._closed = False
        self._nudged = False
        lock = threading.Lock()
        self._for_camera = threading.Condition(lock)
        self._for_inspector = threading.Condition(lock)
        self._for_publisher = threading.Condition(lock)
        self._lock = lock

    # The camera's side

    def acquire(self, timeout_s: float) -> Slot | None:
        """Return a slot to capture into; None when none is there in `timeout_s`, at once when finished or closed."""
        with self._lock:
            self._wait(
                self._for_camera,
                lambda: self._finished or self._free or (self._newest_wins and self._captured),
                timeout_s,
            )
            if self._closed or self._finished:
                return None
            if self._free:
                slot = self._free.popleft()
            elif self._newest_wins and self._captured:
                slot = self._captured.popleft()
                self._skipped += 1
            else:
                return None
            self._states[slot.index] = SlotState.CAPTURING
            slot.inspection = None
            return slot

    def discard(self, slot: Slot) -> None:
        """Give back a slot into which no frame came."""
        with self._lock:
            self._move(slot, SlotState.CAPTURING, SlotState.FREE)
            self._put_free(slot)
            self._wake_if_ended()

    def commit(self, slot: Slot) -> None:
        """Hand a captured frame to the inspector."""
        with self._lock:
            self._move(slot, SlotState.CAPTURING, SlotState.CAPTURED)
            self._captured.append(slot)
            self._for_inspector.notify()

    def finish(self) -> None:
        """End the camera's side: `acquire` gives no more slots; what is under way is still inspected and published."""
        with self._lock:
            self._finished = True
            self._for_camera.notify_all()
            self._wake_if_ended()

    # The inspector's side

    def take(self, timeout_s: float) -> Slot | None:
        """Return the next frame to inspect: the newest where the newest wins, else the oldest.

        None when there is none within `timeout_s`, and at once when `drained`.
        """
        with self._lock:
            self._wait(self._for_inspector, lambda: self._captured or self._is_drained(), timeout_s)
            if self._closed or not self._captured:
                return None
            if self._newest_wins:
                while len(self._captured) > 1:
                    skipped = self._captured.popleft()
                    self._move(skipped, SlotState.CAPTURED, SlotState.FREE)
                    self._put_free(skipped)
                    self._skipped += 1
            slot = self._captured.popleft()
            self._move(slot, SlotState.CAPTURED, SlotState.INSPECTING)
            self._wake_if_ended()
            return slot

    def hand_over(self, slot: Slot) -> None:
        """Hand an inspected frame to the publisher."""
        with self._lock:
            self._move(slot, SlotState.INSPECTING, SlotState.INSPECTED)
            self._inspected.append(slot)
            self._for_publisher.notify()

    # The publisher's side

    def take_inspected(self, timeout_s: float) -> Slot | None:
        """Return the next inspected frame, in the order of inspection.

        None when there is none within `timeout_s`, and at once when `done` or after a `nudge`.
        """
        with self._lock:
            self._wait(self._for_publisher, lambda: self._inspected or self._nudged or self._is_done(), timeout_s)
            self._nudged = False
            if self._closed or not self._inspected:
                return None
            slot = self._inspected.popleft()
            self._move(slot, SlotState.INSPECTED, SlotState.PUBLISHING)
            self._wake_if_ended()
            return slot

    def release(self, slot: Slot) -> None:
        """Give a published frame's slot back to the camera."""
        with self._lock:
            self._move(slot, SlotState.PUBLISHING, SlotState.FREE)
            self._put_free(slot)

    # Everybody's side

    def nudge(self) -> None:
        """Let `take_inspected` return once without a frame: its caller has something else to do."""
        with self._lock:
            self._nudged = True
            self._for_publisher.notify()

    @property
    def depths(self) -> dict[str, int]:
        """How many slots wait, by whom they wait for."""
        with self._lock:
            return {"inspector": len(self._captured), "publisher": len(self._inspected)}

    @property
    def skipped(self) -> int:
        """Frames that were captured and never inspected, since the start."""
        with self._lock:
            return self._skipped

    @property
    def drained(self) -> bool:
        """Nothing more will come out of `take`: the camera's side has finished, or the ring is closed."""
        with self._lock:
            return self._is_drained()

    @property
    def done(self) -> bool:
        """Nothing more will come out of `take_inspected`: drained and nothing left with the inspector, or closed."""
        with self._lock:
            return self._is_done()

    def close(self) -> None:
        """Wake everybody and hand out nothing more; frames still in the ring are abandoned."""
        with self._lock:
            self._closed = True
            for condition in (self._for_camera, self._for_inspector, self._for_publisher):
                condition.notify_all()

    # With the lock held

    def _wait(self, condition: threading.Condition, ready: Callable[[], object], timeout_s: float) -> None:
        condition.wait_for(lambda: self._closed or ready(), timeout_s)

    def _put_free(self, slot: Slot) -> None:
        self._free.append(slot)
        self._for_camera.notify()

    def _move(self, slot: Slot, expected: SlotState, following: SlotState) -> None:
        if self._slots.get(slot.index) is not slot:
            raise RuntimeError(f"slot {slot.index} is not one of this ring")
        state = self._states[slot.index]
        if state is not expected:
            raise RuntimeError(f"slot {slot.index} is {state.value}, not {expected.value}")
        self._states[slot.index] = following

    def _is_drained(self) -> bool:
        return self._closed or (self._finished and not self._any(SlotState.CAPTURING, SlotState.CAPTURED))

    def _is_done(self) -> bool:
        return self._is_drained() and (self._closed or not self._any(SlotState.INSPECTING, SlotState.INSPECTED))

    def _any(self, *states: SlotState) -> bool:
        return any(state in states for state in self._states.values())

    def _wake_if_ended(self) -> None:
        if self._is_drained():
            self._for_inspector.notify_all()
            self._for_publisher.notify_all()
