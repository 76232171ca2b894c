"""What the journal says of itself, and the events that wait in memory while the disk does not take them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from enum import Enum
from itertools import islice
from typing import NamedTuple

from edge.events.store import Part, Row, Store

_FLUSH_ROWS = 256
_FLUSH_BYTES = 4 << 20
# Of parts whose event found no room; the oldest are the least likely to come up again.
_MAX_DROPPED_PARTS = 50_000


class JournalUnavailableError(Exception):
    """What is asked for is on a disk that does not answer now."""


class PartDoneError(ValueError):
    """An event for a part that has had its verdict already."""


class JournalState(str, Enum):
    """Whether what is appended is on the disk."""

    OK = "ok"
    DEGRADED = "degraded"


class Acceptance(NamedTuple):
    """The answer to a trigger.

    `new`: the part is to be inspected; otherwise it is known and `part.seq` is its verdict, None while there is none.
    `durable`: a crash will not make the journal forget it.
    """

    new: bool
    part: Part
    durable: bool


class Backlog:
    """Events in memory, the newest that there is room for.

    Args:
        limit: bytes; one event is always kept.

    Attributes:
        dropped_parts: parts, each with its event's number, whose event found no room: they have had their verdict.
    """

    def __init__(self, limit: int) -> None:
        self.bytes = 0
        self.dropped_parts: deque[tuple[str, int]] = deque(maxlen=_MAX_DROPPED_PARTS)
        self._limit = limit
        self._rows: deque[Row] = deque()

    def __len__(self) -> int:
        return len(self._rows)

    def __bool__(self) -> bool:
        return bool(self._rows or self.dropped_parts)

    @property
    def first_seq(self) -> int | None:
        """The oldest event's number; None where there is none."""
        return self._rows[0].seq if self._rows else None

    def add(self, rows: Iterable[Row]) -> None:
        """Keep events, dropping the oldest for which there is no room."""
        for row in rows:
            self._rows.append(row)
            self.bytes += size_of(row)
        while self.bytes > self._limit and len(self._rows) > 1:
            oldest = self._rows[0]
            if oldest.part_id is not None:
                self.dropped_parts.append((oldest.part_id, oldest.seq))
            self.drop(1)

    def after(self, seq: int) -> list[Row]:
        """Return the events with higher numbers."""
        return [row for row in self._rows if row.seq > seq]

    def write_step(self, store: Store, journal_id: str, pending: Iterable[Part], last_seq: int, now_ns: int) -> int:
        """Write the oldest to the disk and drop them here; return up to which number all is there.

        Args:
            store: the disk's.
            journal_id: the journal that is being written.
            pending: parts without verdict, which the disk may not know.
            last_seq: the last number issued.
            now_ns: when they were saved.

        Raises:
            sqlite3.Error: the disk does not take them; nothing is dropped.
        """
        done = list(islice(self.dropped_parts, _FLUSH_ROWS))
        due = store.last_seq(journal_id) + 1
        if len(done) < len(self.dropped_parts):
            # Before any later event: the side file notes the parts of later ones alone.
            store.append(journal_id, (), now_ns, done=done)
            self.drop(0, len(done))
            return due - 1
        rows = take_rows(self._rows, _FLUSH_ROWS, _FLUSH_BYTES)
        first = rows[0].seq if rows else last_seq + 1
        store.add_parts(pending)
        store.append(journal_id, rows, now_ns, [(due, first - 1)] if due < first else [], done)
        self.drop(len(rows), len(done))
        return rows[-1].seq if rows else last_seq

    def drop(self, count: int, parts: int = 0) -> None:
        """Forget the oldest events, and the first of `dropped_parts`."""
        for _ in range(count):
            self.bytes -= size_of(self._rows.popleft())
        for _ in range(parts):
            self.dropped_parts.popleft()


def size_of(row: Row) -> int:
    """Return an event's bytes."""
    return len(row.header) + len(row.mask)


def take_rows(rows: Iterable[Row], limit: int, max_bytes: int) -> list[Row]:
    """Return the first events, at most so many and so large, but one at least."""
    taken: list[Row] = []
    size = 0
    for row in rows:
        size += size_of(row)
        if len(taken) == limit or (taken and size > max_bytes):
            break
        taken.append(row)
    return taken
