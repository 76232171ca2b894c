"""Triggered parts on their way to their verdict: each gets exactly one, in time or with a reason."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from edge.events.backlog import Acceptance
from edge.events.store import Part
from edge.inspection.result import Verdict

#: Parts that may wait for their verdict at a time; further triggers are refused.
MAX_OPEN = 1000

# Without a journal, so many parts are remembered, lest one is inspected twice.
_REMEMBERED = 10_000


@dataclass(eq=False)
class Ticket:
    """One triggered part.  Times of the wall clock are for events, those of the monotonic clock decide.

    `due_ns` and `deadline_at_ns` are None where no deadline holds.  `captured`: its frame is in a slot.
    """

    part_id: str
    encoder: int | None
    triggered_at_ns: int
    triggered_ns: int
    deadline_at_ns: int | None = None
    due_ns: int | None = None
    captured: bool = False


class Unseen(NamedTuple):
    """A part whose verdict comes from no frame."""

    ticket: Ticket
    verdict: Verdict
    reason: str


class TriggerRefusedError(Exception):
    """A trigger that starts nothing: too many parts wait already, or the station ends."""


class Ledger(Protocol):
    """What remembers which parts were asked for: the journal, or memory."""

    def accept(
        self, part_id: str, *, encoder: int | None = None, triggered_at_ns: int, deadline_ns: int | None = None
    ) -> Acceptance:
        """Note a part, unless it is known."""
        ...

    def pending(self) -> list[Part]:
        """Return the parts without a verdict."""
        ...


class MemoryLedger:
    """Remembers the latest parts as long as the process lives."""

    def __init__(self) -> None:
        self._parts: OrderedDict[str, Part] = OrderedDict()

    def accept(
        self, part_id: str, *, encoder: int | None = None, triggered_at_ns: int, deadline_ns: int | None = None
    ) -> Acceptance:
        """Note a part, unless it is known."""
        known = self._parts.get(part_id)
        if known is not None:
            return Acceptance(False, known, False)
        part = self._parts[part_id] = Part(part_id, encoder, triggered_at_ns, deadline_ns)
        while len(self._parts) > _REMEMBERED:
            self._parts.popitem(last=False)
        return Acceptance(True, part, False)

    def pending(self) -> list[Part]:
        """Return nothing: what an earlier process left is not known."""
        return []


class Parts:
    """The open parts of one camera.  All methods may be called from any thread.

    A part is open from `trigger` until `settle`, or until `take_unseen` has returned it: whichever comes first gives
    it its verdict, the other finds it closed.

    Args:
        ledger: remembers parts, so that one which is asked for again is not inspected again.
        deadline_ms: when a verdict is due after its trigger, where the trigger does not say; None for never.
        wake: called when `take_unseen` may have something new to return.
    """

    def __init__(
        self, ledger: Ledger | None = None, *, deadline_ms: float | None = None, wake: Callable[[], None] = lambda: None
    ) -> None:
        self._ledger: Ledger = ledger or MemoryLedger()
        self._deadline_ms = deadline_ms
        self._wake = wake
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._accepting = threading.Lock()
        self._open: dict[str, Ticket] = {}
        self._waiting: deque[Ticket] = deque()
        self._unseen: list[Unseen] = []
        self._blind = ""
        self._closed = ""
        for part in self._ledger.pending():
            now_ns = time.monotonic_ns()
            ticket = Ticket(part.part_id, part.encoder, part.triggered_at_ns, now_ns, part.deadline_ns)
            self._open[part.part_id] = ticket
            self._fail(ticket, "the station ended before it had a verdict")

    def __len__(self) -> int:
        with self._lock:
            return len(self._open)

    # The trigger's side

    def trigger(
        self,
        part_id: str,
        *,
        encoder: int | None = None,
        deadline_ms: float | None = None,
        triggered_ns: int | None = None,
    ) -> Acceptance:
        """Open a part, unless it is known.

        Args:
            part_id: asked for again, it is the same part.
            encoder: the conveyor's count.
            deadline_ms: from the trigger on; None for the station's own.
            triggered_ns: on the monotonic clock; None for now.

        Raises:
            TriggerRefusedError: too many parts are open, or the station ends.
        """
        now_ns = time.monotonic_ns()
        triggered_ns = now_ns if triggered_ns is None else triggered_ns
        triggered_at_ns = time.time_ns() - (now_ns - triggered_ns)
        deadline_ms = self._deadline_ms if deadline_ms is None else deadline_ms
        wait_ns = None if deadline_ms is None else int(deadline_ms * 1e6)
        deadline_at_ns = None if wait_ns is None else triggered_at_ns + wait_ns
        # One at a time, but not under the lock that the station's threads need: the ledger waits for the disk.
        with self._accepting:
            with self._lock:
                if self._closed:
                    raise TriggerRefusedError(self._closed)
                if len(self._open) >= MAX_OPEN and part_id not in self._open:
                    raise TriggerRefusedError(f"{MAX_OPEN} parts wait for their verdict already")
            accepted = self._ledger.accept(
                part_id, encoder=encoder, triggered_at_ns=triggered_at_ns, deadline_ns=deadline_at_ns
            )
            if not accepted.new:
                return accepted
            due_ns = None if wait_ns is None else triggered_ns + wait_ns
            ticket = Ticket(part_id, encoder, triggered_at_ns, triggered_ns, deadline_at_ns, due_ns)
            with self._lock:
                self._open[part_id] = ticket
                if self._blind or self._closed:
                    self._fail(ticket, self._blind or self._closed)
                else:
                    self._waiting.append(ticket)
                    self._arrived.notify()
        # The one who waits for the next verdict's time may have to wait less long.
        self._wake()
        return accepted

    def trigger_timed(self, camera: str, at_ns: int, triggered_ns: int) -> Acceptance:
        """Open a part that nobody has named, under the camera's name and the wall-clock microsecond.

        The time makes it unique, also after a restart; where the clock was set back, the next free number does.

        Raises:
            TriggerRefusedError: as `trigger`.
        """
        number = at_ns // 1000
        while not (accepted := self.trigger(f"{camera}-{number}", triggered_ns=triggered_ns)).new:
            number += 1
        return accepted

    # The capture thread's side

    def next(self, timeout_s: float) -> Ticket | None:
        """Return the oldest part that waits for its frame, None when there is none in time; it stays waiting."""
        with self._lock:
            self._arrived.wait_for(lambda: self._drop_settled() or self._closed, timeout_s)
            return self._waiting[0] if self._waiting else None

    def claim(self, captured_ns: int, window_ns: int) -> Ticket | None:
        """Return the part that a frame of this time shows, None where it shows none.

        That is the latest part triggered before, if not longer ago than the window: no earlier one can still be in
        sight, and those that wait have missed their frame.
        """
        with self._lock:
            self._drop_settled()
            found: Ticket | None = None
            while self._waiting and self._waiting[0].triggered_ns <= captured_ns:
                if found is not None:
                    self._fail(found, "no frame came between its trigger and the next part's")
                found = self._waiting.popleft()
            if found is not None and captured_ns - found.triggered_ns > window_ns:
                self._fail(found, f"no frame came within {window_ns / 1e6:g} ms of its trigger")
                found = None
            if found is not None:
                found.captured = True
            woken = bool(self._unseen)
        if woken:
            self._wake()
        return found

    def expire(self, now_ns: int, window_ns: int) -> None:
        """Give the parts `fault` that have waited longer than the window for their frame."""
        with self._lock:
            self._drop_settled()
            while self._waiting and now_ns - self._waiting[0].triggered_ns > window_ns:
                self._fail(self._waiting.popleft(), f"no frame came within {window_ns / 1e6:g} ms of its trigger")
                self._drop_settled()
            woken = bool(self._unseen)
        if woken:
            self._wake()

    def take(self, ticket: Ticket) -> bool:
        """Note that a frame shows this part, which waited; return False where it has got its verdict meanwhile."""
        with self._lock:
            self._drop_settled()
            if ticket not in self._waiting:
                return False
            self._waiting.remove(ticket)
            ticket.captured = True
            return True

    def fail(self, ticket: Ticket, reason: str) -> None:
        """Give a part without a usable frame its verdict, `fault`."""
        with self._lock:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
            self._fail(ticket, reason)
        self._wake()

    def blind(self, reason: str) -> None:
        """Until `see`, there are no frames: all parts that wait, and those to come, get `fault` at once."""
        with self._lock:
            self._blind = reason
            self._fail_waiting(reason)
        self._wake()

    def see(self) -> None:
        """There are frames again."""
        with self._lock:
            self._blind = ""

    # The publish thread's side

    def settle(self, ticket: Ticket) -> bool:
        """Close a part, whose event the caller then publishes; False where it has been closed before."""
        with self._lock:
            if self._open.get(ticket.part_id) is not ticket:
                return False
            del self._open[ticket.part_id]
            return True

    def take_unseen(self, now_ns: int) -> list[Unseen]:
        """Close all parts whose verdict comes from no frame, which the caller then publishes.

        A part that is past its deadline is `late` where a frame of it is being inspected, and `fault` where none came.
        """
        with self._lock:
            for ticket in self._open.values():
                if ticket.due_ns is not None and now_ns > ticket.due_ns:
                    if ticket.captured:
                        self._unseen.append(Unseen(ticket, Verdict.LATE, "no verdict by its deadline"))
                    else:
                        self._unseen.append(Unseen(ticket, Verdict.FAULT, "no frame by its deadline"))
            found, self._unseen = self._unseen, []
            kept = []
            for unseen in found:
                # One that failed may also be past its deadline: the first reason stays.
                if self._open.get(unseen.ticket.part_id) is unseen.ticket:
                    del self._open[unseen.ticket.part_id]
                    kept.append(unseen)
            return kept

    def until_due(self, now_ns: int, limit_s: float) -> float:
        """Return the seconds to the next deadline, at most `limit_s`; 0 where `take_unseen` has something already."""
        with self._lock:
            if self._unseen:
                return 0.0
            due = min((each.due_ns for each in self._open.values() if each.due_ns is not None), default=None)
            return limit_s if due is None else min(limit_s, max(0.0, (due - now_ns) / 1e9))

    def close(self, reason: str) -> None:
        """Refuse further triggers; the parts that wait for a frame get `fault`."""
        # A trigger that is being noted ends first: whoever was promised a verdict gets it before the station ends.
        with self._accepting, self._lock:
            self._closed = reason
            self._fail_waiting(reason)
            self._arrived.notify_all()
        self._wake()

    # With the lock held

    def _fail(self, ticket: Ticket, reason: str) -> None:
        self._unseen.append(Unseen(ticket, Verdict.FAULT, reason))

    def _fail_waiting(self, reason: str) -> None:
        while self._waiting:
            self._fail(self._waiting.popleft(), reason)

    def _drop_settled(self) -> bool:
        """Forget parts at the front of the queue that got their verdict while they waited; return whether any waits."""
        while self._waiting and self._open.get(self._waiting[0].part_id) is not self._waiting[0]:
            self._waiting.popleft()
        return bool(self._waiting)
