"""What `edge-watch --durable` has printed, in a file, and how far it has come, in another: never a line twice."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from edge.errors import JournalError
from edge.events.cursor import Cursor, FileCursor

# Lines that a power cut may print again after a restart are those of so many seconds.
_COMMIT_S = 0.2


class _Line(msgspec.Struct):
    """What names an event in a printed line."""

    camera: str
    boot_id: str
    seq: int
    journal_id: str = ""


class LogCursor:
    """A cursor file that goes with the JSON lines on stdout.

    Where stdout is a regular file, it is the truth: lines that are in it and that the cursor does not know of are
    taken note of at the start, and a line that was cut short is removed.

    Args:
        path: the cursor's file.
        json: whether stdout gets JSON lines.

    Raises:
        JournalError: the cursor's file cannot be used.
    """

    def __init__(self, path: Path, *, json: bool) -> None:
        self._log = _log_descriptor() if json else None
        self._file = FileCursor(path, sync=self._log is not None)
        self._cursors: dict[str, Cursor] = {}
        self._dirty = False
        self._due = 0.0

    def load(self) -> dict[str, Cursor]:
        """Return how far the last run came."""
        self._cursors = self._file.load()
        if self._log is not None:
            try:
                self._cursors.update(_read_log(self._log, self._file.note))
            except OSError as error:
                raise JournalError(
                    f"what was printed before cannot be read back: {error.strerror or error}",
                    "let the log be a file that can be read and written, or pipe it",
                ) from error
        return dict(self._cursors)

    def save(self, cursors: Mapping[str, Cursor]) -> None:
        """Take note; `commit` writes it."""
        if not self._dirty:
            self._due = time.monotonic() + _COMMIT_S
        self._cursors, self._dirty = dict(cursors), True

    def commit(self, *, now: bool = False) -> None:
        """Write how far we have come, behind what was printed: at once, or where it has waited for long enough.

        Raises:
            JournalError: the cursor's file cannot be written.
        """
        if not self._dirty or not (now or self._log is None or time.monotonic() >= self._due):
            return
        sys.stdout.flush()
        if self._log is not None:
            os.fdatasync(self._log)
            self._file.note = os.fstat(self._log).st_size
        self._file.save(self._cursors)
        self._dirty = False

    def close(self) -> None:
        """Write how far we have come, and close the file."""
        try:
            self.commit(now=True)
        finally:
            self._file.close()

    def __enter__(self) -> LogCursor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _log_descriptor() -> int | None:
    """Return stdout's descriptor where it is a regular file."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError, AttributeError):
        return None
    return descriptor if stat.S_ISREG(os.fstat(descriptor).st_mode) else None


def _read_log(descriptor: int, start: int) -> dict[str, Cursor]:
    """Return the last event of each camera in the log from `start` on; remove a line that was cut short."""
    cursors: dict[str, Cursor] = {}
    with open(f"/proc/self/fd/{descriptor}", "r+b") as log:
        end = log.seek(0, os.SEEK_END)
        # A log that is shorter than it was is another one.
        whole = log.seek(start if start <= end else 0)
        for line in log:
            if not line.endswith(b"\n"):
                log.truncate(whole)
                break
            whole += len(line)
            try:
                event = msgspec.json.decode(line, type=_Line)
            except msgspec.DecodeError:
                continue
            cursors[event.camera] = Cursor(event.journal_id or event.boot_id, event.seq)
    return cursors
