from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edge.cameras.ring import FrameRing
from edge.frames import Slot, aligned_bytes, aligned_f32

NewSlot = Callable[..., Slot]

#: Long enough to be a hang where it is reached.
LONG = 30.0


def make_slots(count: int) -> list[Slot]:
    return [Slot(index, aligned_bytes(8), aligned_f32(1, 8), aligned_bytes(1).reshape(1, 1)) for index in range(count)]


class RingMachine(RuleBasedStateMachine):
    """The ring against a plain model: where each frame number is, and which slots nobody holds."""

    @initialize(count=st.integers(1, 5), newest_wins=st.booleans())
    def start(self, count: int, newest_wins: bool) -> None:
        self.newest_wins = newest_wins
        self.slots = make_slots(count)
        self.ring = FrameRing(self.slots, newest_wins=newest_wins)
        self.held: dict[str, list[Slot]] = {"camera": [], "inspector": [], "publisher": []}
        self.captured: deque[int] = deque()
        self.inspected: deque[int] = deque()
        self.published: list[int] = []
        self.skipped: list[int] = []
        self.next_frame = 0
        self.finished = False

    def occupied(self) -> int:
        return sum(map(len, self.held.values())) + len(self.captured) + len(self.inspected)

    @rule()
    def acquire(self) -> None:
        slot = self.ring.acquire(0)
        if self.finished:
            assert slot is None
            return
        if self.occupied() == len(self.slots):
            if not (self.newest_wins and self.captured):
                assert slot is None
                return
            self.skipped.append(self.captured.popleft())
        assert slot is not None
        assert slot.inspection is None
        assert all(slot is not other for slots in self.held.values() for other in slots)
        self.held["camera"].append(slot)

    @precondition(lambda self: self.held["camera"])
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        slot = self.held["camera"].pop(data.draw(st.integers(0, len(self.held["camera"]) - 1)))
        slot.meta.frame_id = self.next_frame
        self.captured.append(self.next_frame)
        self.next_frame += 1
        self.ring.commit(slot)

    @precondition(lambda self: self.held["camera"])
    @rule()
    def discard(self) -> None:
        self.ring.discard(self.held["camera"].pop())

    @rule()
    def take(self) -> None:
        slot = self.ring.take(0)
        if not self.captured:
            assert slot is None
            return
        if self.newest_wins:
            expected = self.captured.pop()
            self.skipped.extend(self.captured)
            self.captured.clear()
        else:
            expected = self.captured.popleft()
        assert slot is not None
        assert slot.meta.frame_id == expected
        self.held["inspector"].append(slot)

    @precondition(lambda self: self.held["inspector"])
    @rule()
    def hand_over(self) -> None:
        slot = self.held["inspector"].pop(0)
        self.inspected.append(slot.meta.frame_id)
        self.ring.hand_over(slot)

    @rule()
    def take_inspected(self) -> None:
        slot = self.ring.take_inspected(0)
        if not self.inspected:
            assert slot is None
            return
        assert slot is not None
        assert slot.meta.frame_id == self.inspected.popleft()
        self.held["publisher"].append(slot)

    @precondition(lambda self: self.held["publisher"])
    @rule()
    def release(self) -> None:
        slot = self.held["publisher"].pop(0)
        self.published.append(slot.meta.frame_id)
        self.ring.release(slot)

    @rule()
    def finish(self) -> None:
        self.finished = True
        self.ring.finish()

    @rule(data=st.data())
    def a_wrong_hand_over_is_refused_and_changes_nothing(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(self.slots))
        allowed = {
            "commit": self.held["camera"],
            "discard": self.held["camera"],
            "hand_over": self.held["inspector"],
            "release": self.held["publisher"],
        }
        move = data.draw(st.sampled_from(sorted(allowed)))
        if all(slot is not owned for owned in allowed[move]):
            with pytest.raises(RuntimeError, match=f"slot {slot.index}"):
                getattr(self.ring, move)(slot)

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "ring"):
            return
        assert self.ring.skipped == len(self.skipped)
        assert self.newest_wins or not self.skipped
        assert self.published == sorted(self.published)
        drained = self.finished and not self.captured and not self.held["camera"]
        assert self.ring.drained == drained
        assert self.ring.done == (drained and not self.inspected and not self.held["inspector"])

    def teardown(self) -> None:
        """Every frame is somewhere, once."""
        if not hasattr(self, "ring"):
            return
        under_way = [slot.meta.frame_id for owner in ("inspector", "publisher") for slot in self.held[owner]]
        everywhere = [*self.published, *self.skipped, *self.captured, *self.inspected, *under_way]
        assert sorted(everywhere) == list(range(self.next_frame))


TestRing = RingMachine.TestCase
TestRing.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("newest_wins", [False, True])
def test_three_threads(newest_wins: bool) -> None:
    """Frames carry their number in the slot's memory, so that any sharing of a slot shows."""
    ring = FrameRing(make_slots(4), newest_wins=newest_wins)
    count = 3000
    published: list[int] = []
    errors: list[BaseException] = []

    def camera() -> None:
        for number in range(count):
            slot = ring.acquire(LONG)
            assert slot is not None
            slot.memory.view("<u8")[0] = number
            slot.meta.frame_id = number
            ring.commit(slot)
        ring.finish()

    def inspector() -> None:
        pause = random.Random(0)
        while not ring.drained:
            slot = ring.take(LONG)
            if slot is not None:
                if pause.random() < 0.01:
                    threading.Event().wait(0.0005)
                assert slot.memory.view("<u8")[0] == slot.meta.frame_id
                ring.hand_over(slot)

    def publisher() -> None:
        while not ring.done:
            slot = ring.take_inspected(LONG)
            if slot is not None:
                assert slot.memory.view("<u8")[0] == slot.meta.frame_id
                published.append(slot.meta.frame_id)
                ring.release(slot)

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  a failed assertion in a thread
            errors.append(error)
            ring.close()

    threads = [threading.Thread(target=guarded, args=(work,)) for work in (camera, inspector, publisher)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * LONG)
        assert not thread.is_alive()
    assert not errors
    assert published == sorted(set(published))
    assert published[-1] == count - 1
    assert len(published) + ring.skipped == count
    if not newest_wins:
        assert published == list(range(count))


@pytest.mark.parametrize("wait", ["acquire", "take", "take_inspected"])
@pytest.mark.parametrize("end", ["finish", "close"])
def test_ending_wakes_those_who_wait(wait: str, end: str, new_slot: NewSlot) -> None:
    ring = FrameRing([new_slot()], newest_wins=False)
    held = ring.acquire(0)
    assert held is not None
    woken: list[Slot | None] = []
    thread = threading.Thread(target=lambda: woken.append(getattr(ring, wait)(LONG)))
    thread.start()
    getattr(ring, end)()
    if wait != "acquire" and end == "finish":
        # The camera still had a slot: the others wait for what becomes of it.
        assert not ring.drained
        ring.discard(held)
    thread.join(LONG / 2)
    assert not thread.is_alive()
    assert woken == [None]


def test_a_closed_ring_gives_nothing_out(new_slot: NewSlot) -> None:
    ring = FrameRing([new_slot(), new_slot()], newest_wins=True)
    slot = ring.acquire(0)
    assert slot is not None
    ring.commit(slot)
    ring.close()
    assert ring.acquire(0) is None
    assert ring.take(0) is None
    assert ring.take_inspected(0) is None
    assert ring.drained
    assert ring.done


def test_a_foreign_slot_is_refused(new_slot: NewSlot) -> None:
    mine, foreign = new_slot(), new_slot()
    ring = FrameRing([mine], newest_wins=False)
    assert ring.acquire(0) is mine
    with pytest.raises(RuntimeError, match="not one of this ring"):
        ring.commit(foreign)


def test_slots_need_indices_of_their_own(new_slot: NewSlot) -> None:
    slot = new_slot()
    with pytest.raises(ValueError, match="index"):
        FrameRing([slot, slot], newest_wins=False)
    with pytest.raises(ValueError, match="at least one"):
        FrameRing([], newest_wins=False)
