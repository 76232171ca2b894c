"""How far a durable subscriber has come, kept where it survives the subscriber."""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from edge.errors import JournalError
from edge.events.schema import Count
from edge.events.slotfile import SlotFile

_SLOT_BYTES = 16 << 10


class Cursor(msgspec.Struct, frozen=True):
    """The last event that was dealt with."""

    journal_id: str
    seq: Count


class CursorStore(Protocol):
    """Where cursors are kept, by camera."""

    def load(self) -> dict[str, Cursor]:
        """Return what was saved; empty at the first start."""

    def save(self, cursors: Mapping[str, Cursor]) -> None:
        """Keep all cursors."""


class _Record(msgspec.Struct):
    cursors: dict[str, Cursor]
    note: int = 0


class FileCursor:
    """Keeps cursors in a small file of their own, which only one process may use.

    Args:
        path: made where it does not exist.
        sync: each save is on the disk when it returns; otherwise a power cut may bring an older one back, and the
            events since then once more.

    Attributes:
        note: a number that is saved with the cursors, for their owner.

    Raises:
        JournalError: the file cannot be used, is in use, or is none of ours.
    """

    def __init__(self, path: Path, *, sync: bool = True) -> None:
        self.note = 0
        self._path = path
        self._sync = sync
        try:
            self._file = _open(path)
        except OSError as error:
            raise JournalError(
                f"the cursor cannot be kept in {path}: {error.strerror or error}", "name a file that can be written"
            ) from error

    def load(self) -> dict[str, Cursor]:
        """Return what was saved.

        Raises:
            JournalError: the file cannot be read.
        """
        try:
            payload = self._file.read()
        except OSError as error:
            raise JournalError(f"{self._path} cannot be read: {error.strerror or error}", "mend the disk") from error
        if payload is None:
            return {}
        try:
            record = msgspec.json.decode(payload, type=_Record)
        except msgspec.DecodeError as error:
            raise JournalError(f"{self._path} is no cursor: {error}", "name another file") from error
        self.note = record.note
        return record.cursors

    def save(self, cursors: Mapping[str, Cursor]) -> None:
        """Keep all cursors.

        Raises:
            JournalError: the file cannot be written, or there are too many cameras.
        """
        try:
            self._file.write(msgspec.json.encode(_Record(dict(cursors), self.note)), sync=self._sync)
        except (OSError, ValueError) as error:
            raise JournalError(f"{self._path} cannot be written: {error}", "free space or mend the disk") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class SqliteCursor:
    """Keeps cursors in the consumer's own SQLite database, for effects that happen exactly once.

    `save` does not commit: acknowledge an event in the transaction that stores its effect.

        with connection:
            connection.execute("INSERT INTO results ...")
            subscriber.ack(message)
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        with connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS redi_cursors (camera TEXT PRIMARY KEY, journal_id TEXT, seq INTEGER)"
            )

    def load(self) -> dict[str, Cursor]:
        """Return what was committed."""
        rows = self._connection.execute("SELECT camera, journal_id, seq FROM redi_cursors")
        return {camera: Cursor(journal_id, seq) for camera, journal_id, seq in rows}

    def save(self, cursors: Mapping[str, Cursor]) -> None:
        """Keep all cursors, as part of the transaction that is open."""
        self._connection.executemany(
            "INSERT OR REPLACE INTO redi_cursors VALUES (?, ?, ?)",
            ((camera, cursor.journal_id, cursor.seq) for camera, cursor in cursors.items()),
        )


def _open(path: Path) -> SlotFile:
    if path.exists() and not SlotFile.is_one(path, _SLOT_BYTES):
        raise JournalError(f"{path} is no cursor file, and is left as it is", "name a file that does not exist yet")
    file = SlotFile(path, _SLOT_BYTES)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise JournalError(f"{path} is in use by another subscriber", "give each its own cursor file") from error
    return file
