"""The journal's files: the folder's lock, the database with its reader, the side file, and what was damaged."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from edge.errors import JournalError
from edge.events.issued import Issued, IssuedFile
from edge.events.store import NewerStoreError, Store, StoreReader, Synchronous
from edge.files import sync_folder

_DATABASE = "events.db"
_DAMAGED_KEPT = 2
# Troubles of the disk, with which the line goes on; all others are of whoever chose the folder.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENOMEM)


def journal_folder(camera: str, base: Path | None = None) -> Path:
    """Return a camera's own folder in `base`, by default `$XDG_STATE_HOME/redi-edge`."""
    if base is None:
        state = os.environ.get("XDG_STATE_HOME", "")
        base = (Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state") / "redi-edge"
    # A name may be all dots.
    return base / (f"%2E{camera[1:]}" if camera.startswith(".") else camera)


def is_damage(error: Exception) -> bool:
    """Whether SQLite says that the file's content is wrong, rather than that it cannot be read or written."""
    return isinstance(error, sqlite3.DatabaseError) and not isinstance(
        error, (sqlite3.OperationalError, sqlite3.ProgrammingError)
    )


class JournalFiles:
    """What one journal has open in its folder.

    Args:
        folder: made where it does not exist.
        synchronous: see `Store`.
        say: takes messages for people.
    """

    def __init__(self, folder: Path, synchronous: Synchronous, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.path = folder / _DATABASE
        self.store: Store | None = None
        self.reader: StoreReader | None = None
        self.issued: IssuedFile | None = None
        self._synchronous: Synchronous = synchronous
        self._say = say
        self._lock: int | None = None

    @property
    def size_bytes(self) -> int:
        """What the database takes on the disk with its log, in bytes."""
        size = 0
        for suffix in ("", "-wal"):
            with contextlib.suppress(OSError):
                size += os.stat(f"{self.path}{suffix}").st_size
        return size

    def open_side_file(self) -> Issued | None:
        """Lock the folder and open its side file; return what that knows, None where it was open already.

        Raises:
            OSError: the disk is full or fails.
            JournalError: the folder cannot be used, or is in use by another process.
        """
        if self.issued is not None:
            return None
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._take_lock()
            issued = IssuedFile(self.folder / "issued")
        except OSError as error:
            if error.errno in _DISK_ERRORS:
                raise
            raise JournalError(
                f"the journal cannot be kept in {self.folder}: {error.strerror or error}",
                "name a folder that can be written with --journal DIR, or --journal none",
            ) from error
        known = issued.read()
        self.issued = issued
        return known

    def open_store(self) -> Store:
        """Open the database, a new one where it is damaged.

        Raises:
            sqlite3.Error: the disk is full or fails.
            JournalError: a newer release wrote it.
        """
        self.close_store()
        try:
            store = Store(self.path, self._synchronous)
        except NewerStoreError as error:
            raise JournalError(
                f"{self.path} was written by a newer release", "install that release, or name another --journal DIR"
            ) from error
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            self.set_aside(str(error))
            store = Store(self.path, self._synchronous)
        try:
            self.reader = StoreReader(self.path)
        except BaseException:
            store.close()
            raise
        self.store = store
        sync_folder(self.folder)
        return store

    def set_aside(self, problem: str) -> None:
        """Keep a damaged database under another name, and forget all but the last few.

        Raises:
            sqlite3.OperationalError: it cannot be moved.
        """
        self.close_store()
        kept = self.folder / f"damaged-{time.time_ns() // 10**6:014d}.db"
        try:
            for suffix in ("", "-wal"):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(f"{self.path}{suffix}", f"{kept}{suffix}")
            Path(f"{self.path}-shm").unlink(missing_ok=True)
            for old in sorted(self.folder.glob("damaged-*.db"))[:-_DAMAGED_KEPT]:
                for suffix in ("", "-wal"):
                    Path(f"{old}{suffix}").unlink(missing_ok=True)
        except OSError as failure:
            raise sqlite3.OperationalError(f"{self.path} is damaged and cannot be moved: {failure}") from failure
        self._say(f"{self.path} is damaged ({problem}): set aside as {kept.name}, a new database begins")

    def close_store(self) -> None:
        """Close the database; whoever uses its reader must know."""
        if self.reader is not None:
            self.reader.close()
            self.reader = None
        if self.store is not None:
            self.store.close()
            self.store = None

    def close(self) -> None:
        """Close everything, and let another process have the folder."""
        self.close_store()
        if self.issued is not None:
            self.issued.close()
            self.issued = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise JournalError(
                f"the journal in {self.folder} is in use by another station",
                "give each station its own --name, or its own --journal DIR",
            ) from error
        self._lock = descriptor
