"""The journal's database: one SQLite file in WAL mode.

An event's key is its journal's number in the file, shifted, plus its sequence number: the order of keys is the order
of appending, and one integer primary key serves appending, replay and pruning.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, NamedTuple

Synchronous = Literal["full", "normal"]

_APPLICATION_ID = 0x5244_4A4C
_VERSION = 1
_SEQ_BITS = 48
_SEQ_MASK = (1 << _SEQ_BITS) - 1

_SCHEMA = """
CREATE TABLE journals (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE);
CREATE TABLE events (key INTEGER PRIMARY KEY, saved_ns INTEGER NOT NULL, header BLOB NOT NULL, mask BLOB NOT NULL);
CREATE TABLE lost (first INTEGER PRIMARY KEY, last INTEGER NOT NULL);
CREATE TABLE parts (
    id TEXT PRIMARY KEY, encoder INTEGER, triggered_at_ns INTEGER NOT NULL, deadline_ns INTEGER, event INTEGER
);
CREATE INDEX parts_by_event ON parts (event);
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class ForeignStoreError(sqlite3.DatabaseError):
    """A whole database, but none of ours."""


class NewerStoreError(Exception):
    """A journal written by a newer release."""


class Part(NamedTuple):
    """A triggered part: `seq` is that of its verdict in the journal `journal_id`, None as long as there is none."""

    part_id: str
    encoder: int | None
    triggered_at_ns: int
    deadline_ns: int | None
    seq: int | None = None
    journal_id: str = ""


class Row(NamedTuple):
    """One event as it is stored."""

    seq: int
    header: bytes
    mask: bytes
    part_id: str | None = None


class StoredPage(NamedTuple):
    """What the file holds of one journal after some sequence number.

    `rows` are in order and may have holes; `lost` are the recorded ones.  `full` says that more rows may follow.
    `first_seq` and `last_seq` are the oldest stored and the last accounted for, 0 where there is none.
    """

    journal_id: str
    rows: list[Row]
    lost: list[tuple[int, int]]
    full: bool
    first_seq: int
    last_seq: int
    next_journal_id: str


def kernel_boot_id() -> str:
    """Return what identifies this boot of the machine; empty where the kernel does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


class Store:
    """The writing side, for one thread at a time.

    Args:
        path: made where it does not exist.
        synchronous: `full`, every commit is on the disk; `normal`, a power cut may lose the last ones.

    Raises:
        sqlite3.OperationalError: the disk is full or fails.
        sqlite3.DatabaseError: the file is damaged or none of ours.
        NewerStoreError: it was written by a newer release.
    """

    def __init__(self, path: Path, synchronous: Synchronous = "full") -> None:
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise sqlite3.OperationalError(f"unable to open {path}: {error.strerror}") from error
        self._connection = _connect(path)
        try:
            self._prepare(synchronous)
            self._page_bytes = int(self._value("PRAGMA page_size"))
            self._mode = {"synchronous": synchronous, "kernel_boot": kernel_boot_id()}
            before = dict(self._connection.execute("SELECT name, value FROM meta"))
            self._mode_noted = before == self._mode
            #: Whether the machine has gone down since the file was last open and `normal` may have lost commits.
            self.may_have_lost_commits = (
                before.get("synchronous") == "normal" and before.get("kernel_boot") != self._mode["kernel_boot"]
            )
            self.newest_saved_ns = int(self._value("SELECT saved_ns FROM events ORDER BY key DESC LIMIT 1") or 0)
        except BaseException:
            self._connection.close()
            raise

    # Journals

    def journal_ids(self) -> list[str]:
        """Return all journals of the file, the oldest first."""
        return [str(row[0]) for row in self._connection.execute("SELECT id FROM journals ORDER BY number")]

    def add_journal(self, journal_id: str) -> None:
        """Begin a journal, the newest from now on."""
        with self._connection:
            self._connection.execute("INSERT INTO journals (id) VALUES (?)", (journal_id,))

    def last_seq(self, journal_id: str) -> int:
        """Return the last number that is stored or recorded as lost; 0 where there is none."""
        return _last_seq(self._connection, self._base(journal_id))

    def first_seq(self, journal_id: str) -> int:
        """Return the oldest stored number; 0 where there is none."""
        return _first_seq(self._connection, self._base(journal_id))

    # Writing

    def note_mode(self) -> None:
        """Note how the file is used from now on: once what `may_have_lost_commits` asks for has been done."""
        if not self._mode_noted:
            with self._connection:
                self._connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", self._mode.items())
            self._mode_noted = True

    def append(
        self,
        journal_id: str,
        rows: Sequence[Row],
        saved_ns: int,
        lost: Iterable[tuple[int, int]] = (),
        done: Iterable[tuple[str, int]] = (),
    ) -> None:
        """Store events and complete their parts, and those that are `done` by lost events, in one transaction."""
        base = self._base(journal_id)
        with self._connection as connection:
            # After a failed commit the rows may be there all the same.
            connection.executemany(
                "INSERT OR REPLACE INTO events VALUES (?, ?, ?, ?)",
                ((base | row.seq, saved_ns, row.header, row.mask) for row in rows),
            )
            connection.executemany(
                "INSERT OR REPLACE INTO lost VALUES (?, ?)", ((base | first, base | last) for first, last in lost)
            )
            self._complete(connection, ((part_id, base | seq) for part_id, seq in done))
            self._complete(connection, ((row.part_id, base | row.seq) for row in rows if row.part_id is not None))
        self.newest_saved_ns = saved_ns

    def record_lost(self, journal_id: str, first: int, last: int) -> None:
        """Record that events were issued and cannot be replayed."""
        self.append(journal_id, (), self.newest_saved_ns, [(first, last)])

    def add_parts(self, parts: Iterable[Part]) -> None:
        """Store parts that have no verdict; those that are stored already stay as they are."""
        with self._connection:
            self._connection.executemany(
                "INSERT OR IGNORE INTO parts VALUES (?, ?, ?, ?, NULL)",
                ((part.part_id, part.encoder, part.triggered_at_ns, part.deadline_ns) for part in parts),
            )

    def complete_parts(self, part_ids: Iterable[str], journal_id: str, seq: int) -> None:
        """Note that parts have had their verdict, at or before `seq`."""
        key = self._base(journal_id) | seq
        with self._connection as connection:
            self._complete(connection, ((part_id, key) for part_id in part_ids))

    # Reading what the writer needs

    def part(self, part_id: str) -> Part | None:
        """Return a part; None where it is not known."""
        found = self._connection.execute("SELECT * FROM parts WHERE id = ?", (part_id,)).fetchone()
        return None if found is None else self._part(found)

    def pending(self) -> list[Part]:
        """Return the parts without verdict, in the order of their triggers."""
        rows = self._connection.execute("SELECT * FROM parts WHERE event IS NULL ORDER BY triggered_at_ns, rowid")
        return [self._part(row) for row in rows]

    # Upkeep

    def used_bytes(self) -> int:
        """Return the size of what is stored, in bytes."""
        pages = int(self._value("PRAGMA page_count")) - int(self._value("PRAGMA freelist_count"))
        return pages * self._page_bytes

    def prune(self, size_limit: int, oldest_ns: int, step: int = 32) -> bool:
        """Delete up to `step` of the oldest events if they are too many or too old; return whether any were deleted.

        The newest event always stays: its number is where the next run goes on.
        """
        connection = self._connection
        oldest = connection.execute("SELECT saved_ns FROM events ORDER BY key LIMIT 1").fetchone()
        too_large = self.used_bytes() > size_limit
        if oldest is None or not (too_large or oldest[0] < oldest_ns):
            return False
        newest = int(self._value("SELECT max(key) FROM events"))
        keys = [
            int(key)
            for key, saved_ns in connection.execute("SELECT key, saved_ns FROM events ORDER BY key LIMIT ?", (step,))
            if key < newest and (too_large or saved_ns < oldest_ns)
        ]
        if not keys:
            return False
        first = int(self._value("SELECT min(key) FROM events WHERE key > ?", keys[-1]))
        with connection:
            connection.execute("DELETE FROM events WHERE key <= ?", (keys[-1],))
            connection.execute("DELETE FROM lost WHERE last < ?", (first,))
            connection.execute("DELETE FROM parts WHERE event < ?", (first,))
            connection.execute("DELETE FROM journals WHERE number < ?", (first >> _SEQ_BITS,))
        return True

    def checkpoint(self) -> None:
        """Move what is left in the log to its place in the file, so that the log begins anew."""
        self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _prepare(self, synchronous: Synchronous) -> None:
        connection = self._connection
        version = int(self._value("PRAGMA user_version"))
        application = int(self._value("PRAGMA application_id"))
        tables = int(self._value("SELECT count(*) FROM sqlite_schema WHERE type = 'table'"))
        if application == _APPLICATION_ID and version > _VERSION:
            raise NewerStoreError
        if (application, version) != (_APPLICATION_ID, _VERSION) and (application or tables):
            raise ForeignStoreError("not a journal")
        if self._value("PRAGMA journal_mode = WAL") != "wal":
            raise sqlite3.OperationalError("the file system does not support SQLite's write-ahead log")
        connection.execute(f"PRAGMA synchronous = {synchronous.upper()}")
        # Checkpoints write and sync the file itself: not while the line waits for a commit.
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        if not tables:
            connection.executescript(
                f"BEGIN; PRAGMA application_id = {_APPLICATION_ID}; PRAGMA user_version = {_VERSION}; {_SCHEMA} COMMIT;"
            )

    def _base(self, journal_id: str) -> int:
        number = self._value("SELECT number FROM journals WHERE id = ?", journal_id)
        if number is None:
            raise sqlite3.DatabaseError(f"journal {journal_id} is missing")
        return int(number) << _SEQ_BITS

    def _complete(self, connection: sqlite3.Connection, parts: Iterable[tuple[str, int]]) -> None:
        for part_id, key in parts:
            # The first verdict stands.  A part that nobody announced is known from now on too.
            connection.execute(
                "INSERT INTO parts VALUES (?, NULL, 0, NULL, ?) "
                "ON CONFLICT (id) DO UPDATE SET event = coalesce(event, excluded.event)",
                (part_id, key),
            )

    def _part(self, row: tuple[str, int | None, int, int | None, int | None]) -> Part:
        part_id, encoder, triggered_at_ns, deadline_ns, key = row
        if key is None:
            return Part(part_id, encoder, triggered_at_ns, deadline_ns)
        journal_id = self._value("SELECT id FROM journals WHERE number = ?", key >> _SEQ_BITS)
        return Part(part_id, encoder, triggered_at_ns, deadline_ns, key & _SEQ_MASK, str(journal_id or ""))

    def _value(self, query: str, *arguments: object) -> Any:
        row = self._connection.execute(query, arguments).fetchone()
        return None if row is None else row[0]


class StoreReader:
    """The reading side: a connection of its own, for one thread at a time, that never makes the writer wait."""

    def __init__(self, path: Path) -> None:
        self._connection = _connect(path)
        try:
            self._connection.execute("PRAGMA query_only = 1")
        except sqlite3.Error:
            self._connection.close()
            raise

    def read(self, journal_id: str, after_seq: int, limit: int, max_bytes: int) -> StoredPage | None:
        """Return events after `after_seq` of a journal, of the oldest where `journal_id` is empty.

        None where the journal is not known.  There is at least one event where there are any, however large.
        """
        connection = self._connection
        connection.execute("BEGIN")
        try:
            return self._read(connection, journal_id, after_seq, limit, max_bytes)
        finally:
            connection.execute("ROLLBACK")

    def checkpoint(self) -> None:
        """Move what is in the log to its place in the file; nobody waits for it."""
        self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _read(
        self, connection: sqlite3.Connection, journal_id: str, after_seq: int, limit: int, max_bytes: int
    ) -> StoredPage | None:
        which = "WHERE id = ?" if journal_id else "ORDER BY number LIMIT 1"
        found = connection.execute(f"SELECT number, id FROM journals {which}", (journal_id,) if journal_id else ())
        journal = found.fetchone()
        if journal is None:
            return None
        number, journal_id = journal
        base, end = number << _SEQ_BITS, (number + 1) << _SEQ_BITS
        following = connection.execute(
            "SELECT id FROM journals WHERE number > ? ORDER BY number LIMIT 1", (number,)
        ).fetchone()
        rows: list[Row] = []
        full, size = False, 0
        after = base | min(after_seq, _SEQ_MASK)
        query = "SELECT key, header, mask FROM events WHERE key > ? AND key < ? ORDER BY key"
        with closing(connection.execute(query, (after, end))) as cursor:
            for key, header, mask in cursor:
                size += len(header) + len(mask)
                if len(rows) == limit or (rows and size > max_bytes):
                    full = True
                    break
                rows.append(Row(key & _SEQ_MASK, header, mask))
        lost = connection.execute(
            "SELECT first, last FROM lost WHERE last > ? AND first < ? ORDER BY first", (after, end)
        ).fetchall()
        return StoredPage(
            journal_id=journal_id,
            rows=rows,
            lost=[(first & _SEQ_MASK, last & _SEQ_MASK) for first, last in lost],
            full=full,
            first_seq=_first_seq(connection, base),
            last_seq=_last_seq(connection, base),
            next_journal_id="" if following is None else following[0],
        )


def _connect(path: Path) -> sqlite3.Connection:
    # No journal ever waits for another's lock: a file has one writer, and readers of a write-ahead log take none.
    return sqlite3.connect(path, timeout=1.0, isolation_level="IMMEDIATE", check_same_thread=False)


def _last_seq(connection: sqlite3.Connection, base: int) -> int:
    end = base | _SEQ_MASK
    key = connection.execute("SELECT max(key) FROM events WHERE key > ? AND key <= ?", (base, end)).fetchone()[0]
    lost = connection.execute("SELECT max(last) FROM lost WHERE last > ? AND last <= ?", (base, end)).fetchone()[0]
    return max(int(key or 0), int(lost or 0)) & _SEQ_MASK


def _first_seq(connection: sqlite3.Connection, base: int) -> int:
    end = base | _SEQ_MASK
    key = connection.execute("SELECT min(key) FROM events WHERE key > ? AND key <= ?", (base, end)).fetchone()[0]
    return int(key or 0) & _SEQ_MASK


class SavedClock:
    """The wall clock at its start, advanced by the monotonic clock, never before the newest saved event.

    A wall clock that jumps while the station runs must not make events look old.
    """

    def __init__(self, newest_ns: int) -> None:
        self._offset_ns = max(time.time_ns(), newest_ns) - time.monotonic_ns()

    def now_ns(self) -> int:
        """Return the time, nanoseconds since 1970 UTC."""
        return time.monotonic_ns() + self._offset_ns
