"""A small record that is overwritten in place: it needs no free space, and a torn write leaves the one before it."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

# Magic, number of the write, length and CRC-32 of number, length and payload.
_HEAD = struct.Struct("<4sQII")
_MAGIC = b"RDSL"


class SlotFile:
    """Two slots, written in turn; the newest whole one counts.

    Args:
        path: made with both slots allocated where it does not exist.
        slot_bytes: size of one slot, in bytes.

    Raises:
        OSError: it cannot be made or opened.
    """

    def __init__(self, path: Path, slot_bytes: int) -> None:
        self._slot_bytes = slot_bytes
        self._number = 0
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(self._descriptor).st_size
            if size < 2 * slot_bytes:
                _write_all(self._descriptor, bytes(2 * slot_bytes - size), size)
                os.fsync(self._descriptor)
            # Where the newest is, lest it is written over.
            self.read()
        except OSError:
            os.close(self._descriptor)
            raise

    @staticmethod
    def is_one(path: Path, slot_bytes: int) -> bool:
        """Whether an existing file is such a file, or an empty one.

        Raises:
            OSError: it cannot be read.
        """
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return size == 0 or (size == 2 * slot_bytes and file.read(len(_MAGIC)) in (_MAGIC, bytes(len(_MAGIC))))

    def fileno(self) -> int:
        """Return the file's descriptor."""
        return self._descriptor

    @property
    def capacity(self) -> int:
        """The longest payload, in bytes."""
        return self._slot_bytes - _HEAD.size

    def read(self) -> bytes | None:
        """Return the newest whole payload; None where there is none.

        Raises:
            OSError: it cannot be read.
        """
        newest: bytes | None = None
        for slot in (0, 1):
            data = os.pread(self._descriptor, self._slot_bytes, slot * self._slot_bytes)
            if len(data) < _HEAD.size:
                continue
            magic, number, length, crc = _HEAD.unpack_from(data)
            payload = data[_HEAD.size : _HEAD.size + length]
            # The slot's place is part of it, so that no write ever goes over the newest one.
            whole = magic == _MAGIC and number % 2 == slot and len(payload) == length and crc == _crc(number, payload)
            if whole and number >= self._number:
                self._number, newest = number, payload
        return newest

    def write(self, payload: bytes, *, sync: bool = True) -> None:
        """Replace the payload; with `sync`, it is on the disk when this returns.

        Raises:
            OSError: it cannot be written.
            ValueError: it is longer than `capacity`.
        """
        if len(payload) > self.capacity:
            raise ValueError(f"{len(payload)} bytes do not fit a slot of {self._slot_bytes}")
        number = self._number + 1
        data = _HEAD.pack(_MAGIC, number, len(payload), _crc(number, payload)) + payload
        _write_all(self._descriptor, data, number % 2 * self._slot_bytes)
        self._number = number
        if sync:
            os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _crc(number: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(struct.pack("<QI", number, len(payload))))


def _write_all(descriptor: int, data: bytes, at: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, at)
        data, at = data[written:], at + written
