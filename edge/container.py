"""The file format under a bundle: a plain ZIP, nothing compressed, members' data at multiples of 64 bytes.

`unzip`, `python -m zipfile` and file managers open it; arrays are used where they lie in the mapped file.
The same members always give the same bytes: one date, no optional fields.  Reading therefore compares every
byte that is not a member's data with what writing would have put there, and any stray change is found.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from edge.errors import BundleError

ALIGNMENT = 64

#: Always the first member: what tells a bundle from any other ZIP.
MANIFEST = "manifest.json"
_MAX_ENTRIES = 10_000
_MAX_BYTES = 2**32 - 1

# ZIP application note 6.3.10, sections 4.3.7, 4.3.12, 4.3.16.
_LOCAL, _CENTRAL, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_LOCAL_SIZE = 30
_UTF8_NAMES = 0x800
_NO_DATE = 0x21  # 1980-01-01, the earliest that ZIP knows
_UNIX_2_0 = 3 << 8 | 20
_FILE_0644 = 0o100644 << 16
_ALIGNMENT_FIELD = 0xD935  # the extra field by which Android's zipalign pads

_HINT_FOREIGN = "is this the file that train-export wrote?"
_HINT_DAMAGED = "copy it again from where it was made, and compare with `edge-bundle verify`"

Entry = tuple[str, int, int]
"""Name, size in bytes, CRC-32."""


def check_name(name: str) -> None:
    """Raise `ValueError` unless `name` is a relative path that is safe to unpack anywhere."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"member name {name!r} is not a plain relative path")
    if not name.isprintable() or set(name) & set('\\:*?"<>|') or len(name.encode()) > 200:
        raise ValueError(f"member name {name!r} is too long or has characters that some file system cannot hold")


def _layout(entries: Sequence[Entry]) -> tuple[list[tuple[int, bytes]], bytes]:
    """Return each entry's local header with its position, and the directory that ends the file."""
    headers: list[tuple[int, bytes]] = []
    directory = b""
    position = 0
    for name, size, crc in entries:
        if position + size > _MAX_BYTES:
            raise ValueError(f"a bundle holds less than 4 GiB, and {name} passes that")
        raw = name.encode()
        flags = 0 if name.isascii() else _UTF8_NAMES
        padding = -(position + _LOCAL_SIZE + len(raw) + 6) % ALIGNMENT
        extra = struct.pack("<HHH", _ALIGNMENT_FIELD, 2 + padding, ALIGNMENT) + bytes(padding)
        common = struct.pack("<HHHHHIII", 20, flags, zipfile.ZIP_STORED, 0, _NO_DATE, crc, size, size)
        header = _LOCAL + common + struct.pack("<HH", len(raw), len(extra)) + raw + extra
        headers.append((position, header))
        sizes = struct.pack("<HHHHHII", len(raw), 0, 0, 0, 0, _FILE_0644, position)
        directory += _CENTRAL + struct.pack("<H", _UNIX_2_0) + common + sizes + raw
        position += len(header) + size
    count = len(entries)
    end = _END + struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), position, 0)
    return headers, directory + end


def write_container(file: BinaryIO, members: Mapping[str, bytes | memoryview]) -> None:
    """Write `members` in their order, the manifest first.  Raises `ValueError` for an unfit name or size."""
    for name in members:
        check_name(name)
    views = [memoryview(data).cast("B") for data in members.values()]
    headers, tail = _layout([(n, v.nbytes, zlib.crc32(v)) for n, v in zip(members, views, strict=True)])
    for (_, header), view in zip(headers, views, strict=True):
        file.write(header)
        file.write(view)
    file.write(tail)


class Container:
    """A mapped container: `members` are read-only views into the file, in the file's order.

    Opening checks names and kinds; `check_layout` compares every byte outside the members' data,
    `check_contents` the members' CRC-32.  The map lives as long as any view of it; replacing the file by
    rename does not touch it.

    Raises:
        BundleError: the file cannot be read or is no such container.
    """

    def __init__(self, file: BinaryIO, path: Path, *, resident: bool = False) -> None:
        self._path = path
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise BundleError(f"{path}: the file is empty", _HINT_FOREIGN)
        if resident:
            self._map = mmap.mmap(-1, size)
            if self._map.write(file.read(size)) != size:
                raise self._damaged("it changed while it was read")
        self._entries = [(info.filename, info.file_size, info.CRC) for info in self._directory(file)]
        try:
            self._headers, self._tail = _layout(self._entries)
        except ValueError as error:
            raise self._damaged(str(error)) from error
        if not resident:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._bytes = memoryview(self._map).toreadonly()
        self.members: dict[str, memoryview] = {}
        for (name, length, _), (position, header) in zip(self._entries, self._headers, strict=True):
            start = position + len(header)
            if start + length > size:
                raise self._damaged(f"member {name} reaches past the end of the file")
            self.members[name] = self._bytes[start : start + length]

    def _directory(self, file: BinaryIO) -> list[zipfile.ZipInfo]:
        try:
            with zipfile.ZipFile(file) as archive:
                infos = archive.infolist()
        except (
            zipfile.BadZipFile,
            NotImplementedError,
            ValueError,
            EOFError,
            OSError,
            struct.error,
        ) as error:
            file.seek(0)
            if file.read(4) == _LOCAL:
                raise self._damaged("truncated, or its table of contents is damaged") from error
            raise BundleError(f"{self._path}: not a bundle", _HINT_FOREIGN) from error
        if not infos or infos[0].filename != MANIFEST:
            raise BundleError(f"{self._path}: not a bundle: a ZIP whose first member is not {MANIFEST}", _HINT_FOREIGN)
        if len(infos) > _MAX_ENTRIES:
            raise self._damaged(f"it lists {len(infos)} members")
        seen: set[str] = set()
        for info in infos:
            name = info.filename
            try:
                check_name(name)
            except ValueError as error:
                raise self._damaged(str(error)) from error
            if name in seen:
                raise self._damaged(f"member {name} is there twice")
            seen.add(name)
            if info.flag_bits & 1:
                raise self._damaged(f"member {name} is encrypted")
            if info.compress_type != zipfile.ZIP_STORED:
                raise self._damaged(f"member {name} is compressed; a bundle's members are stored as they are")
        return infos

    def _damaged(self, what: str) -> BundleError:
        return BundleError(f"{self._path}: damaged bundle: {what}", _HINT_DAMAGED)

    def check_layout(self) -> None:
        """Raise `BundleError` unless every byte outside the members' data is as writing would have put it."""
        end = 0
        for (name, length, _), (position, header) in zip(self._entries, self._headers, strict=True):
            if self._bytes[position : position + len(header)] != header:
                raise self._damaged(f"the header of member {name} is not as written (packed again by another tool?)")
            end = position + len(header) + length
        if self._bytes[end:] != self._tail:
            raise self._damaged("its table of contents is not as written")

    def check_contents(self, *names: str) -> None:
        """Raise `BundleError` unless these members, or all, have their recorded CRC-32."""
        for name, _, crc in self._entries:
            if (not names or name in names) and zlib.crc32(self.members[name]) != crc:
                raise self._damaged(f"the contents of member {name} have changed")

    def close(self) -> None:
        """Let go of the map; views still in use keep it alive until they are dropped."""
        self.members.clear()
        with contextlib.suppress(BufferError):
            self._bytes.release()
            self._map.close()


def open_container(path: Path, *, resident: bool = False) -> Container:
    """Map the container at `path`; `resident` reads it into memory, so that nothing done to the file matters any more.

    Raises:
        BundleError: it is missing, unreadable or foreign.
    """
    try:
        # Asked before opening: opening a named pipe would wait for its writer.
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
            raise BundleError(f"{path}: {kind}, not a bundle", "name the .plan file itself")
        with path.open("rb") as file:
            return Container(file, path, resident=resident)
    except FileNotFoundError as error:
        raise BundleError(f"{path}: no such file", "train-export writes a bundle") from error
    except PermissionError as error:
        raise BundleError(f"{path}: no permission to read it", f"chmod +r {path}") from error
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: cannot be read: {error}") from error
