from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge.events.backlog import Acceptance
from edge.events.journal import Journal
from edge.events.store import Row
from edge.inspection.result import Verdict
from edge.parts import MAX_OPEN, MemoryLedger, Parts, Ticket, TriggerRefusedError, Unseen

SECOND = 10**9


class EachPartHasOneVerdict(RuleBasedStateMachine):
    """Any order of triggers, frames, results, deadlines and losses gives every part exactly one verdict."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = Parts(deadline_ms=1000.0)
        self.asked: dict[str, int] = {}
        self.verdicts: dict[str, list[str]] = {}
        self.frames: list[Ticket] = []
        self.closed = False
        self.now = time.monotonic_ns()

    def note(self, unseen: list[Unseen]) -> None:
        for each in unseen:
            assert each.verdict in (Verdict.LATE, Verdict.FAULT)
            assert each.reason
            self.verdicts.setdefault(each.ticket.part_id, []).append(each.verdict.value)

    @rule(number=st.integers(0, 30), ahead=st.integers(-3000, 3000))
    def trigger(self, number: int, ahead: int) -> None:
        part_id = f"P{number}"
        try:
            accepted = self.parts.trigger(part_id, triggered_ns=self.now + ahead * 1_000_000)
        except TriggerRefusedError:
            assert self.closed
            return
        assert not self.closed
        assert accepted.new == (part_id not in self.asked)
        self.asked[part_id] = ahead

    @rule(ahead=st.integers(-3000, 3000), window=st.integers(0, 3000))
    def frame_of_a_live_camera(self, ahead: int, window: int) -> None:
        captured_ns = self.now + ahead * 1_000_000
        ticket = self.parts.claim(captured_ns, window * 1_000_000)
        if ticket is not None:
            assert 0 <= captured_ns - ticket.triggered_ns <= window * 1_000_000
            self.frames.append(ticket)

    @rule()
    def frame_of_an_asked_camera(self) -> None:
        ticket = self.parts.next(0)
        if ticket is not None and self.parts.take(ticket):
            self.frames.append(ticket)

    @precondition(lambda self: self.frames)
    @rule(data=st.data())
    def result(self, data: st.DataObject) -> None:
        ticket = self.frames.pop(data.draw(st.integers(0, len(self.frames) - 1)))
        if self.parts.settle(ticket):
            self.verdicts.setdefault(ticket.part_id, []).append("decided")

    @precondition(lambda self: self.frames)
    @rule()
    def frame_is_unusable(self) -> None:
        self.parts.fail(self.frames.pop(), "torn")

    @rule(seconds=st.floats(0, 2))
    def time_passes(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)

    @rule(window=st.integers(0, 3000))
    def no_frame_comes(self, window: int) -> None:
        self.parts.expire(self.now, window * 1_000_000)

    @rule()
    def look(self) -> None:
        self.note(self.parts.take_unseen(self.now))

    @rule()
    def camera_is_lost(self) -> None:
        self.parts.blind("the cable is out")

    @rule()
    def camera_is_back(self) -> None:
        self.parts.see()

    @rule()
    def close(self) -> None:
        self.closed = True
        self.parts.close("the end")

    @invariant()
    def nobody_has_two(self) -> None:
        assert all(len(given) == 1 for given in self.verdicts.values()), self.verdicts
        assert len(self.parts) == len(self.asked) - len(self.verdicts)

    def teardown(self) -> None:
        self.parts.close("the end")
        for ticket in self.frames:
            if self.parts.settle(ticket):
                self.verdicts.setdefault(ticket.part_id, []).append("decided")
        self.note(self.parts.take_unseen(self.now + 10_000 * SECOND))
        assert self.verdicts.keys() == self.asked.keys()
        assert len(self.parts) == 0


TestEachPartHasOneVerdict = EachPartHasOneVerdict.TestCase
TestEachPartHasOneVerdict.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_part_asked_for_again_is_the_same_part() -> None:
    parts = Parts()
    assert parts.trigger("A", encoder=5).new
    assert not parts.trigger("A", encoder=6).new
    ticket = parts.next(0)
    assert ticket is not None
    assert ticket.encoder == 5
    assert parts.take(ticket)
    assert parts.next(0) is None
    assert parts.settle(ticket)
    assert not parts.trigger("A").new
    assert parts.next(0) is None


def test_deadlines_are_told_apart_by_whether_a_frame_came() -> None:
    parts = Parts(deadline_ms=50.0)
    parts.trigger("seen", triggered_ns=1000)
    parts.trigger("unseen", triggered_ns=2000, deadline_ms=100.0)
    ticket = parts.next(0)
    assert ticket is not None
    assert parts.take(ticket)
    assert parts.until_due(1000, 9.0) == pytest.approx(0.05)
    assert parts.take_unseen(50_001_000) == []
    assert parts.take_unseen(50_001_001) == [Unseen(ticket, Verdict.LATE, "no verdict by its deadline")]
    assert not parts.settle(ticket)
    (unseen,) = parts.take_unseen(SECOND)
    assert (unseen.ticket.part_id, unseen.verdict) == ("unseen", Verdict.FAULT)
    assert parts.until_due(0, 9.0) == 9.0


def test_a_frame_belongs_to_the_latest_part_before_it() -> None:
    parts = Parts()
    for number in range(3):
        parts.trigger(f"P{number}", triggered_ns=number * 100)
    ticket = parts.claim(150, 1000)
    assert ticket is not None
    assert ticket.part_id == "P1"
    (missed,) = parts.take_unseen(0)
    assert missed.ticket.part_id == "P0"
    assert "next part" in missed.reason
    assert parts.claim(1300, 1000) is None
    (missed,) = parts.take_unseen(0)
    assert missed.ticket.part_id == "P2"
    assert "within 0.001 ms" in missed.reason


def test_a_trigger_ends_the_wait_for_it_and_wakes_who_publishes() -> None:
    woken = threading.Event()
    parts = Parts(wake=woken.set)
    threading.Timer(0.05, parts.trigger, ["A"]).start()
    ticket = parts.next(20.0)
    assert ticket is not None
    assert ticket.part_id == "A"
    assert woken.wait(20.0)


def test_there_is_room_for_so_many() -> None:
    parts = Parts()
    for number in range(MAX_OPEN):
        parts.trigger(f"P{number}")
    with pytest.raises(TriggerRefusedError, match="1000 parts wait"):
        parts.trigger("one more")
    assert not parts.trigger("P0").new


def test_parts_that_an_earlier_process_left_get_a_fault(tmp_path: Path) -> None:
    with Journal(tmp_path / "cam0") as journal:
        parts = Parts(journal)
        parts.trigger("done")
        parts.trigger("left", encoder=9)
        journal.append([Row(1, b"", b"", "done")])
    with Journal(tmp_path / "cam0") as journal:
        parts = Parts(journal)
        (left,) = parts.take_unseen(0)
        assert (left.ticket.part_id, left.ticket.encoder, left.verdict) == ("left", 9, Verdict.FAULT)
        assert "ended before" in left.reason
        journal.append([Row(2, b"", b"", "left")])
        known = parts.trigger("done")
        assert (known.new, known.part.seq) == (False, 1)
        assert parts.trigger("left").part.seq == 2


def test_a_part_that_is_being_noted_when_the_station_ends_has_its_verdict_first() -> None:
    noting, go_on = threading.Event(), threading.Event()

    class SlowLedger(MemoryLedger):
        def accept(self, part_id: str, **more: Any) -> Acceptance:
            noting.set()
            assert go_on.wait(10)
            return super().accept(part_id, **more)

    parts = Parts(SlowLedger())
    triggering = threading.Thread(target=parts.trigger, args=("P0",))
    closing = threading.Thread(target=parts.close, args=("the end",))
    triggering.start()
    assert noting.wait(10)
    closing.start()
    closing.join(0.1)
    go_on.set()
    closing.join(10)
    # Whatever is published last comes after this.
    assert [unseen.ticket.part_id for unseen in parts.take_unseen(time.monotonic_ns())] == ["P0"]
    triggering.join(10)
