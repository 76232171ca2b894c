"""The archive's files: their names, their sizes, and which of them goes first."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from edge.events.schema import Event, numbering
from edge.files import atomic_write

_BILLION = 1_000_000_000
# Files take whole blocks of the disk.
_BLOCK = 4096
_DAY = re.compile(r"[0-9]{4,}-[0-9]{2}-[0-9]{2}")
_NAME = re.compile(r"[0-9]{8,}T[0-9]{6}\.[0-9]{9}Z-[0-9a-z]{8}-[0-9]+-[a-z]+")
# What a kill left of a file that was being written, see `atomic_write`.
_REST = re.compile(r"\..*\.(png|json)\.[0-9a-f]{8}\.part")
_SUFFIXES = (".json", ".png")


class _Picture(NamedTuple):
    """A picture with its event, ordered by time."""

    name: str
    folder: str
    bytes: int


class ArchiveFiles:
    """Writes pictures, and deletes the oldest to make room; touches no file that is not named like its own.

    Not for use by several threads.

    Args:
        folder: the archive's; looked into at the first write.
        budget_bytes: what the files may take, in whole blocks.
    """

    def __init__(self, folder: Path, budget_bytes: int) -> None:
        self.folder = folder
        self.budget_bytes = budget_bytes
        self.bytes = 0
        self._scanned = False
        # The oldest pictures that there are, in order; not all of them, lest a large archive takes much memory.
        self._oldest: deque[_Picture] = deque()

    def write(self, camera: str, name: str, picture: bytes | memoryview, event: bytes) -> bool:
        """Write a picture and its event, the event last: where it is there, both are whole.

        Returns:
            False where both are larger than the whole budget.

        Raises:
            OSError: they cannot be written, or old ones not be deleted.
        """
        if not self._scanned:
            self.bytes = self._scan()
            self._scanned = True
        size = _blocks(len(picture)) + _blocks(len(event))
        if size > self.budget_bytes:
            return False
        while self.bytes + size > self.budget_bytes and self._delete_oldest():
            pass
        folder = self.folder / camera_folder(camera) / _day(name)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        png = folder / f"{name}.png"
        with atomic_write(png, sync=False) as file:
            file.write(picture)
        try:
            with atomic_write(folder / f"{name}.json", sync=False) as file:
                file.write(event)
        except BaseException:
            with contextlib.suppress(OSError):
                png.unlink()
            raise
        self.bytes += size
        return True

    def _scan(self) -> int:
        """Return what the archive's files take; remove what a kill left half written."""
        total = 0
        for folder in self._days():
            for entry in _entries(folder):
                if _REST.fullmatch(entry.name):
                    os.unlink(entry.path)
                elif _is_ours(entry):
                    total += _blocks(entry.stat(follow_symlinks=False).st_size)
        return total

    def _delete_oldest(self) -> bool:
        """Delete the oldest picture; return whether there was one."""
        if not self._oldest:
            self._oldest.extend(self._list_oldest_day())
            if not self._oldest:
                # Nothing is left: whatever was counted, others have deleted it.
                self.bytes = 0
                return False
        picture = self._oldest[0]
        for suffix in _SUFFIXES:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(picture.folder, picture.name + suffix))
        self._oldest.popleft()
        self.bytes = max(0, self.bytes - picture.bytes)
        with contextlib.suppress(OSError):
            # Only where it is empty.
            os.rmdir(picture.folder)
        return True

    def _list_oldest_day(self) -> list[_Picture]:
        """Return the pictures of the oldest day that has any, over all cameras, the oldest first."""
        days: dict[str, list[str]] = {}
        for folder in self._days():
            days.setdefault(os.path.basename(folder), []).append(folder)
        for day in sorted(days):
            sizes: dict[tuple[str, str], int] = {}
            for folder in days[day]:
                for entry in _entries(folder):
                    if _is_ours(entry):
                        key = (os.path.splitext(entry.name)[0], folder)
                        size = _blocks(entry.stat(follow_symlinks=False).st_size)
                        sizes[key] = sizes.get(key, 0) + size
            if sizes:
                return sorted(_Picture(name, folder, size) for (name, folder), size in sizes.items())
        return []

    def _days(self) -> Iterator[str]:
        """Yield the folders of all cameras' days."""
        for camera in _entries(self.folder):
            if camera.is_dir(follow_symlinks=False):
                for day in _entries(camera.path):
                    if _DAY.fullmatch(day.name) and day.is_dir(follow_symlinks=False):
                        yield day.path


def picture_name(event: Event) -> str:
    """Return the name, without suffix, of an event's files: it sorts by the time of capture, and is unique."""
    seconds, rest = divmod(event.captured_at_ns, _BILLION)
    moment = time.strftime("%Y%m%dT%H%M%S", time.gmtime(seconds))
    # A clock that was set back, or starts at the same time after each boot, may give a time twice.
    of = hashlib.blake2b(numbering(event).encode(), digest_size=4).hexdigest()
    return f"{moment}.{rest:09d}Z-{of}-{event.seq}-{event.verdict.value}"


def camera_folder(camera: str) -> str:
    """Return the name of a camera's folder: its own where that is safe, else one that no other camera has."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", camera)
    if safe == camera and not camera.startswith("."):
        return camera
    return f"{safe.lstrip('.')}~{hashlib.blake2b(camera.encode(), digest_size=4).hexdigest()}"


def _day(name: str) -> str:
    date = name.partition("T")[0]
    return f"{date[:-4]}-{date[-4:-2]}-{date[-2:]}"


def _blocks(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _is_ours(entry: os.DirEntry[str]) -> bool:
    name, suffix = os.path.splitext(entry.name)
    return suffix in _SUFFIXES and bool(_NAME.fullmatch(name)) and entry.is_file(follow_symlinks=False)


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """Return what is in a folder; nothing where it does not exist.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
