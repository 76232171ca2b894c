"""How one camera's events are put in order: what is live, what must be asked for, and what is lost.  No sockets."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from edge.events.codec import EventMessage, MessageError, StatusMessage, decode_message
from edge.events.cursor import Cursor
from edge.events.requests import UNKNOWN_JOURNAL, Replay, Replayed, RequestError
from edge.events.schema import EVENT_TOPIC, Event, Status, numbering


@dataclass(frozen=True)
class Gap:
    """Events that were published and cannot be had any more.

    Attributes:
        camera: whose.
        journal_id: what the numbers belong to.
        first: the first missing.
        last: the last missing; None where that cannot be known.
        reason: `lost`, `pruned` (too old when we asked), or in words.
        cursor: where to go on.
    """

    camera: str
    journal_id: str
    first: int
    last: int | None
    reason: str
    cursor: Cursor


def cursor_of(message: EventMessage | Gap) -> Cursor:
    """Return the cursor that says that a message was dealt with."""
    return message.cursor if isinstance(message, Gap) else Cursor(numbering(message.event), message.event.seq)


class Follower:
    """Delivers one camera's events in order and each once, from what is live and what is replayed.

    While behind, live events are not kept, as they are in the journal: memory is bounded by one replay.

    Args:
        camera: its name.
        position: the last event dealt with; None where there is none yet.
        from_oldest: without a position, begin with the oldest event that is kept, otherwise with the next one.

    Attributes:
        ready: what can be delivered now.
        position: the last event in `ready`, or delivered.
        began: where it began without a position, when not with the oldest event.
        damaged: replayed messages that could not be read.
    """

    def __init__(self, camera: str, position: Cursor | None, *, from_oldest: bool) -> None:
        self.camera = camera
        self.ready: deque[EventMessage | Gap] = deque()
        self.position = position
        self.began: Cursor | None = None
        self.damaged = 0
        self._from_oldest = from_oldest
        # Where the station is, as far as we have heard.
        self._target: Cursor | None = None
        self._kept = False

    @property
    def behind(self) -> bool:
        """Whether events are missing that the station may have."""
        position, target = self.position, self._target
        if position is None or target is None or not self._kept:
            return False
        return position.journal_id != target.journal_id or position.seq < target.seq

    def see_event(self, message: EventMessage) -> None:
        """Take a live event."""
        event = message.event
        journal_id = numbering(event)
        if self.position is not None and journal_id == self.position.journal_id and event.seq <= self.position.seq:
            return
        self._see(event, Cursor(journal_id, event.seq - 1))
        if self.position == Cursor(journal_id, event.seq - 1):
            self._deliver(message)
        else:
            self._target = Cursor(journal_id, event.seq)

    def see_status(self, message: StatusMessage) -> None:
        """Take a live status."""
        status = message.status
        self._see(status, Cursor(numbering(status), status.last_seq))

    def request(self) -> Replay:
        """Return what to ask for while behind."""
        assert self.position is not None
        return Replay(self.camera, self.position.journal_id, self.position.seq)

    def take(self, replayed: Replayed) -> bool:
        """Take the answer to `request`; return whether it led on."""
        before = self.position
        if self.position is None or self.position.journal_id == "":
            # The beginning of all that is kept.
            self.position = Cursor(replayed.journal_id, max(0, replayed.first_seq - 1))
        elif self.position.journal_id != replayed.journal_id:
            return False
        lost = deque(sorted((each.first, each.last, each.reason) for each in replayed.lost))
        for header, mask in replayed.events:
            message = self._decode(header, mask)
            seq = None if message is None else message.event.seq
            while lost and (seq is None or lost[0][0] < seq):
                self._miss(*lost.popleft())
            if message is not None and message.event.seq > self.position.seq:
                self._miss(self.position.seq + 1, message.event.seq - 1, "damaged")
                self._deliver(message)
        for each in lost:
            self._miss(*each)
        if replayed.through_seq > self.position.seq:
            # What could not be read.
            self._miss(self.position.seq + 1, replayed.through_seq, "damaged")
        if replayed.next_journal_id and self.position.seq >= replayed.last_seq:
            self.position = Cursor(replayed.next_journal_id, 0)
        return self.position != before

    def refuse(self, error: RequestError) -> bool:
        """Take a refusal; return whether that leads on."""
        position, target = self.position, self._target
        if error.code != UNKNOWN_JOURNAL or position is None or target is None:
            return False
        if position.journal_id == target.journal_id:
            # The station publishes by a journal that whoever answers does not have.
            return False
        self._begin_anew(position, target.journal_id, "the journal is gone")
        return True

    def _see(self, header: Event | Status, due: Cursor) -> None:
        """Note that the station is at `due`; catch up to it at once where nothing can be replayed."""
        # Without a journal, numbers belong to the boot.
        self._kept = due.journal_id != header.boot_id
        if self.position is None and self._from_oldest and self._kept:
            self.position = Cursor("", 0)
        elif self.position is None:
            self.position = self.began = due
        self._target = due
        if self._kept:
            return
        if self.position.journal_id != due.journal_id:
            self._begin_anew(self.position, due.journal_id, "the station keeps no journal")
        self._miss(self.position.seq + 1, due.seq, "the station keeps no journal")

    def _begin_anew(self, position: Cursor, journal_id: str, reason: str) -> None:
        self.position = Cursor(journal_id, 0)
        if position.journal_id:
            gap = Gap(self.camera, position.journal_id, position.seq + 1, None, reason, self.position)
            self.ready.append(gap)

    def _deliver(self, message: EventMessage) -> None:
        self.ready.append(message)
        self.position = cursor_of(message)

    def _miss(self, first: int, last: int, reason: str) -> None:
        assert self.position is not None
        first = max(first, self.position.seq + 1)
        if first > last:
            return
        self.position = Cursor(self.position.journal_id, last)
        self.ready.append(Gap(self.camera, self.position.journal_id, first, last, reason, self.position))

    def _decode(self, header: bytes, mask: bytes) -> EventMessage | None:
        assert self.position is not None
        try:
            message = decode_message([(EVENT_TOPIC + self.camera).encode(), header, mask])
        except MessageError:
            message = None
        if isinstance(message, EventMessage) and numbering(message.event) == self.position.journal_id:
            return message
        self.damaged += 1
        return None
