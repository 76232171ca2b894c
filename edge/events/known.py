"""The parts that a journal knows without asking its disk, which may not answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from edge.events.backlog import PartDoneError
from edge.events.issued import Issued
from edge.events.store import Part, Row, Store

# With a verdict; the oldest are the least likely to come up again, and the disk knows more.
_MAX_DONE = 50_000
# As many as the side file may hold.
_MAX_DONE_NOTED = 4096


class KnownParts:
    """All parts that wait for their verdict, and the latest that have it.

    Attributes:
        pending: parts without verdict, by id.
        done: the numbers of verdicts by part id, in their order, all of the journal that is being written.
        earlier: parts that had their verdict in an earlier run, of which the disk cannot be told yet.
    """

    def __init__(self) -> None:
        self.pending: dict[str, Part] = {}
        self.done: dict[str, int] = {}
        self.earlier: dict[str, Part] = {}

    def find(self, part_id: str, journal_id: str) -> Part | None:
        """Return a part; None where it is not known here."""
        if part_id in self.done:
            return Part(part_id, None, 0, None, self.done[part_id], journal_id)
        return self.pending.get(part_id) or self.earlier.get(part_id)

    def add_pending(self, parts: Iterable[Part]) -> None:
        """Take parts of which the disk knows no verdict."""
        for part in parts:
            if part.part_id not in self.done and part.part_id not in self.earlier:
                self.pending.setdefault(part.part_id, part)

    def take_noted(self, noted: Issued) -> None:
        """Take what the side file knows of an earlier run, before the disk can be asked."""
        journal_id, last = next((each for each in reversed(noted.journals) if each[1]), ("", 0))
        self.earlier = {part_id: Part(part_id, None, 0, None, last, journal_id) for part_id in noted.done}
        self.add_pending(noted.pending)

    def take_stored(self, store: Store, noted: Issued) -> None:
        """Take what the disk knows, after what was noted has been settled there.

        Raises:
            sqlite3.Error: it cannot be asked.
        """
        self.add_pending(store.pending())
        for part in noted.pending:
            found = store.part(part.part_id)
            if found is not None and found.seq is not None:
                # Saved just before the crash.
                self.pending.pop(part.part_id, None)

    def check(self, rows: Sequence[Row], find: Callable[[str], Part | None]) -> None:
        """Refuse events for parts that have had their verdict, or get two here.

        Args:
            rows: the events.
            find: asks all that is known of a part.

        Raises:
            PartDoneError: names the part and the event.
        """
        seen: set[str] = set()
        for row in rows:
            if row.part_id is None:
                continue
            known = None if row.part_id in self.pending else find(row.part_id)
            if row.part_id in seen or (known is not None and known.seq is not None):
                raise PartDoneError(f"event {row.seq} is a second verdict for part {row.part_id!r}")
            seen.add(row.part_id)

    def complete(self, rows: Iterable[Row]) -> None:
        """Note the verdicts of parts."""
        for row in rows:
            if row.part_id is not None:
                self.pending.pop(row.part_id, None)
                self.done[row.part_id] = row.seq
        while len(self.done) > _MAX_DONE:
            del self.done[next(iter(self.done))]

    def forget_before(self, seq: int) -> None:
        """Forget parts whose events have lower numbers."""
        while self.done:
            part_id, number = next(iter(self.done.items()))
            if number >= seq:
                return
            del self.done[part_id]

    def done_after(self, seq: int) -> list[str]:
        """Return the latest parts whose events have higher numbers, as many as the side file may hold."""
        latest = islice(reversed(self.done.items()), _MAX_DONE_NOTED)
        return [part_id for part_id, number in latest if number > seq][::-1]
