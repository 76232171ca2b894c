"""Files that are either wholly old or wholly new, and their names as text that can be sent."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def utf8_text(text: str) -> str:
    """Return the text with what UTF-8 cannot carry escaped, as `\\udcff` for a stray byte of a file's name."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


@contextlib.contextmanager
def atomic_write(path: Path | str, *, sync: bool = True) -> Iterator[BinaryIO]:
    """Yield a new file that takes the place of `path` when the block ends, all or nothing.

    The bytes are written and synced beside `path` and then renamed over it, so that a full disk, an exception
    or Ctrl-C leaves the old file as it was and no other file behind.  Whoever has the old file open or mapped
    keeps it.  The old file's mode and, where permitted, its owner carry over; through a symbolic link it is
    the file that is replaced, not the link.  Without `sync`, for pictures that come one after the other, only a
    power cut may still leave an incomplete file.

    Raises:
        OSError: the file cannot be written, or `path` exists and is no regular file.
    """
    target = Path(os.path.realpath(path))
    old = target.stat() if target.exists() else None
    if old is not None and not stat.S_ISREG(old.st_mode):
        raise OSError(errno.EINVAL, "exists and is not a regular file", str(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            if old is not None:
                with contextlib.suppress(PermissionError):
                    os.fchown(descriptor, old.st_uid, old.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(old.st_mode))
            yield file
            file.flush()
            if sync:
                os.fsync(descriptor)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    if sync:
        sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Let the names in a folder outlive a loss of power, where its file system can promise that.

    Raises:
        OSError: the folder cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Some network file systems cannot sync a folder; what was done there has happened all the same.
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
