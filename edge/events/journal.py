"""The journal: every event of one camera on the disk before it is published, and each part's one verdict.

Sequence numbers belong to a `journal_id` and count on across restarts and crashes.

A disk that is full or fails never stops the line: the journal is then degraded.  Events wait in a bounded memory
backlog and are written in order when the disk is back; the numbers that were issued are noted in a side file, which
needs no free space, so that none is used again after a crash.  What is lost for good is recorded as lost.
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from edge.errors import JournalError
from edge.events.backlog import (
    Acceptance,
    Backlog,
    JournalState,
    JournalUnavailableError,
    size_of,
)
from edge.events.issued import Issued, settle
from edge.events.journal_files import JournalFiles, is_damage
from edge.events.known import KnownParts
from edge.events.page import Page, make_page, make_whole_page
from edge.events.store import Part, Row, SavedClock, Store, StoredPage, Synchronous
from edge.events.upkeep import Upkeep
from edge.supervision.pulse import Pulse

#: Bounds where none are given.
DEFAULT_SIZE_BYTES = 2 << 30
DEFAULT_DAYS = 30.0
DEFAULT_BACKLOG_BYTES = 64 << 20

_DAY_NS = 86_400 * 10**9


class Journal:
    """The events and parts of one camera.  All methods may be called from any thread.

    Args:
        folder: the camera's own; made where it does not exist.
        synchronous: `full`: on the disk when `append` returns; `normal`: a power cut may lose the last events.
        size_limit: bytes; beyond, the oldest events are deleted.
        days: age beyond which events are deleted.
        backlog_limit: bytes of events that may wait in memory while the disk does not take them.
        report: called with messages for people, from the journal's own thread.
        pulse: that thread's sign of life.

    Raises:
        JournalError: the folder cannot be used, is in use by another process, or was written by a newer release.
    """

    def __init__(
        self,
        folder: Path,
        *,
        synchronous: Synchronous = "full",
        size_limit: int = DEFAULT_SIZE_BYTES,
        days: float = DEFAULT_DAYS,
        backlog_limit: int = DEFAULT_BACKLOG_BYTES,
        report: Callable[[str], None] | None = None,
        pulse: Pulse | None = None,
    ) -> None:
        self.folder = folder
        self.journal_id = ""
        self._size_limit = size_limit
        self._max_age_ns = int(days * _DAY_NS)
        self._upkeep = Upkeep(self._work, report, pulse)
        # Whoever takes both takes `_lock` first.
        self._lock = threading.RLock()
        self._read_lock = threading.Lock()
        self._files = JournalFiles(folder, synchronous, self._upkeep.say)
        self._noted = Issued()
        self._clock = SavedClock(0)
        self._state = JournalState.OK
        self._problem = ""
        self._reopen = self._damaged = False
        self._stored = False
        self._backlog = Backlog(backlog_limit)
        self._first_seq = self._last_seq = self._durable_seq = 0
        self._parts = KnownParts()
        try:
            self._begin()
        except BaseException:
            self._files.close()
            raise
        self._upkeep.start()

    @property
    def state(self) -> JournalState:
        """Whether events are on the disk, or some only in memory."""
        return self._state

    @property
    def first_seq(self) -> int:
        """The oldest event of this journal that can be replayed; 0 where there is none."""
        return self._first_seq

    @property
    def last_seq(self) -> int:
        """The last number issued; 0 before the first."""
        return self._last_seq

    @property
    def size_bytes(self) -> int:
        """What the journal takes on the disk, in bytes, with what a checkpoint will free; asks no lock."""
        return self._files.size_bytes

    @property
    def waiting(self) -> int:
        """Events that are in memory alone."""
        return len(self._backlog)

    def append(self, rows: Sequence[Row]) -> JournalState:
        """Take the next events, numbered on from `last_seq`; each completes its part.

        Returns:
            `OK`: all are on the disk.  `DEGRADED`: they are in memory, and will be written if that becomes possible.

        Raises:
            PartDoneError: a part has had its verdict, or has two of them here; nothing is taken.
            ValueError: the numbers do not go on from `last_seq`, or the journal is closed; nothing is taken.
        """
        with self._lock:
            if self._upkeep.ended:
                raise ValueError("the journal is closed")
            for number, row in enumerate(rows, self._last_seq + 1):
                if row.seq != number:
                    raise ValueError(f"event {row.seq} does not follow event {number - 1}")
            if not rows:
                return self._state
            self._parts.check(rows, self._find)
            self._last_seq = rows[-1].seq
            self._first_seq = self._first_seq or rows[0].seq
            store = self._files.store
            if self._state is JournalState.OK and store is not None:
                try:
                    store.append(self.journal_id, rows, self._clock.now_ns())
                except sqlite3.Error as error:
                    self._degrade(error)
                else:
                    self._durable_seq = self._last_seq
                    self._parts.complete(rows)
                    self._upkeep.count_commit(sum(map(size_of, rows)))
                    return self._state
            self._backlog.add(rows)
            self._parts.complete(rows)
            self._note_issued()
            return self._state

    def read(self, journal_id: str, after_seq: int, *, limit: int, max_bytes: int) -> Page | None:
        """Return events after a number, oldest first; of the oldest journal kept where `journal_id` is empty.

        None where that journal is not known (any more).  Never makes `append` wait for the disk.

        Raises:
            JournalUnavailableError: the disk must be asked and does not answer.
        """
        stored = self._read_stored(journal_id, after_seq, limit, max_bytes)
        with self._lock:
            first = self._backlog.first_seq or self._last_seq + 1
            if stored is None:
                if journal_id not in ("", self.journal_id):
                    return None
                stored = StoredPage(self.journal_id, [], [], False, 0, 0, "")
            if stored.journal_id != self.journal_id:
                if not stored.next_journal_id:
                    # Ours, which the disk has not taken yet.
                    stored = stored._replace(next_journal_id=self.journal_id)
                return make_page(stored, after_seq, stored.last_seq, stored.last_seq)
            # What was written since is on the disk, but not in what we have read.
            current = stored.last_seq >= self._durable_seq or not self._stored
            waiting = self._backlog.after(max(after_seq, stored.last_seq)) if current else []
            last_seq = self._last_seq
        return make_whole_page(stored, waiting, after_seq, last_seq, first, limit=limit, max_bytes=max_bytes)

    def accept(
        self, part_id: str, *, encoder: int | None = None, triggered_at_ns: int, deadline_ns: int | None = None
    ) -> Acceptance:
        """Announce a part; the event that is appended with its id completes it.

        How many parts may wait for their verdict is for the caller to bound.

        Raises:
            ValueError: the journal is closed.
        """
        with self._lock:
            if self._upkeep.ended:
                raise ValueError("the journal is closed")
            known = self._find(part_id)
            if known is not None:
                return Acceptance(False, known, self._state is JournalState.OK)
            part = Part(part_id, encoder, triggered_at_ns, deadline_ns)
            store = self._files.store
            if self._state is JournalState.OK and store is not None:
                try:
                    store.add_parts([part])
                except sqlite3.Error as error:
                    self._degrade(error)
                else:
                    self._parts.pending[part_id] = part
                    self._upkeep.count_commit(0)
                    return Acceptance(True, part, True)
            self._parts.pending[part_id] = part
            return Acceptance(True, part, self._note_issued())

    def pending(self) -> list[Part]:
        """Return the parts that were accepted and have no verdict: after a crash, those that need a `fault`."""
        with self._lock:
            return sorted(self._parts.pending.values(), key=lambda part: part.triggered_at_ns)

    def close(self) -> None:
        """Write what still waits, if that is possible, and close the files."""
        with self._lock:
            self._upkeep.end()
        self._upkeep.join()
        self._recover()
        self._upkeep.tell()
        with self._lock, self._read_lock:
            self._files.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The beginning

    def _begin(self) -> None:
        try:
            store = self._open()
            ids = store.journal_ids()
            if not ids or store.may_have_lost_commits:
                # Numbers that a power cut took from the disk were published: never use them again.
                ids = [self._new_journal(store)]
            store.note_mode()
            self.journal_id = ids[-1]
            self._last_seq = self._durable_seq = store.last_seq(self.journal_id)
            self._first_seq = store.first_seq(self.journal_id)
            self._stored = True
            self._parts.earlier.clear()
        except (sqlite3.Error, OSError) as error:
            # The line must start all the same: with a journal that nobody has seen yet.
            self.journal_id = secrets.token_hex(8)
            self._first_seq = self._last_seq = self._durable_seq = 0
            self._degrade(error)
        self._note_issued()

    def _new_journal(self, store: Store) -> str:
        journal_id = secrets.token_hex(8)
        if self._files.issued is not None:
            # Before the database knows it, lest another journal's numbers are taken for this one's.
            with contextlib.suppress(OSError):
                self._files.issued.write(Issued([(journal_id, 0)]))
        store.add_journal(journal_id)
        return journal_id

    def _open(self) -> Store:
        """Open the files, and settle in the database what only the side file knows."""
        known = self._files.open_side_file()
        if known is not None:
            self._noted = Issued(known.journals + self._noted.journals, known.pending, known.done)
            self._parts.take_noted(self._noted)
        store = self._files.open_store()
        for journal_id, first, last in settle(self._noted, store, ours=self.journal_id):
            self._upkeep.say(f"events {first} to {last} of {journal_id} were published but never saved: they are lost")
        self._clock = SavedClock(store.newest_saved_ns)
        self._parts.take_stored(store, self._noted)
        return store

    # While the disk does not take events

    def _degrade(self, error: Exception) -> None:
        """Go on without the disk; a full one later goes on with the files that are open, others are opened anew."""
        problem = str(error)
        self._damaged = is_damage(error)
        self._reopen = self._reopen or "full" not in problem
        if self._state is JournalState.OK or problem != self._problem:
            self._upkeep.say(f"the journal in {self.folder} cannot be used ({problem}): events are kept in memory")
        self._state, self._problem = JournalState.DEGRADED, problem

    def _note_issued(self) -> bool:
        """Write the side file; return whether everything is in it."""
        if self._files.issued is None:
            return False
        noted = Issued([(self.journal_id, 0)])
        if self._state is JournalState.DEGRADED:
            others = [each for each in self._noted.journals if each[0] != self.journal_id]
            noted.journals = [*others, (self.journal_id, self._last_seq)]
            noted.pending = list(self._parts.pending.values())
            noted.done = [*self._parts.earlier, *self._parts.done_after(self._durable_seq)]
        try:
            return self._files.issued.write(noted)
        except OSError:
            # Then not even this can be kept.  An old note does no harm: the database knows more.
            return False

    def _recover(self) -> None:
        """Write what waits in memory, in order; a step at a time, so that `append` need not wait for all of it."""
        while self._state is JournalState.DEGRADED:
            with self._lock:
                try:
                    if self._reopen or not self._stored or self._files.store is None:
                        self._open_again()
                    if not self._flush_step():
                        self._state, self._problem = JournalState.OK, ""
                        self._noted = Issued()
                        self._parts.earlier.clear()
                        self._note_issued()
                        self._upkeep.say(f"the journal in {self.folder} is written again, up to event {self._last_seq}")
                except (sqlite3.Error, OSError, JournalError) as error:
                    self._degrade(error)
                    return
            self._upkeep.breathe()

    def _open_again(self) -> None:
        with self._read_lock:
            if self._damaged:
                self._files.set_aside(self._problem)
            store = self._open()
        if self.journal_id not in store.journal_ids():
            store.add_journal(self.journal_id)
        store.note_mode()
        self._stored = True
        self._reopen = self._damaged = False

    def _flush_step(self) -> bool:
        """Write the oldest events of the backlog; return whether more remain."""
        store = self._files.store
        assert store is not None
        pending = self._parts.pending.values()
        self._durable_seq = self._backlog.write_step(
            store, self.journal_id, pending, self._last_seq, self._clock.now_ns()
        )
        self._first_seq = store.first_seq(self.journal_id)
        return bool(self._backlog)

    # Upkeep, in a thread of its own

    def _work(self) -> None:
        self._recover()
        if self._upkeep.log_is_long:
            self._checkpoint()
        while self._prune_step():
            self._upkeep.breathe()

    def _checkpoint(self) -> None:
        """Empty the write-ahead log: most of it while the line goes on, the rest, which is little, while it waits."""
        self._upkeep.log_is_emptied()
        try:
            with self._read_lock:
                if self._files.reader is not None:
                    self._files.reader.checkpoint()
            with self._lock:
                if self._files.store is not None:
                    self._files.store.checkpoint()
        except sqlite3.Error as error:
            with self._lock:
                self._degrade(error)

    def _prune_step(self) -> bool:
        with self._lock:
            store = self._files.store
            if self._upkeep.ended or self._state is not JournalState.OK or store is None:
                return False
            try:
                pruned = store.prune(self._size_limit, self._clock.now_ns() - self._max_age_ns)
                if pruned:
                    self._first_seq = store.first_seq(self.journal_id)
                    self._parts.forget_before(self._first_seq)
                return pruned
            except sqlite3.Error as error:
                self._degrade(error)
                return False

    # Reading

    def _find(self, part_id: str) -> Part | None:
        known = self._parts.find(part_id, self.journal_id)
        if known is not None:
            return known
        store = self._files.store
        try:
            return None if store is None else store.part(part_id)
        except sqlite3.Error as error:
            self._degrade(error)
            return None

    def _read_stored(self, journal_id: str, after_seq: int, limit: int, max_bytes: int) -> StoredPage | None:
        with self._read_lock:
            reader, failure = self._files.reader, None
            if reader is not None:
                try:
                    return reader.read(journal_id, after_seq, limit, max_bytes)
                except sqlite3.Error as error:
                    failure = error
        with self._lock:
            if failure is not None:
                self._degrade(failure)
            first = self._backlog.first_seq or self._last_seq + 1
            ours = journal_id == self.journal_id or (not journal_id and not self._stored)
            if not ours or (self._stored and after_seq + 1 < first):
                raise JournalUnavailableError(self._problem)
        return None
