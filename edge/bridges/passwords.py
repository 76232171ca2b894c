"""Passwords in files: in the clear for a broker that asks for one, as salted hashes for users of a server of ours.

A users file has one line for each user, `NAME:scrypt:SALT:HASH` in hex; `edge-bridge user` writes it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
from pathlib import Path

from edge.errors import BridgeError
from edge.files import atomic_write

_MAX_FILE_BYTES = 64 << 10
# 16 MiB and some 50 ms a try: costly to guess, bearable at log-in.
_N, _R, _P = 1 << 14, 8, 1
_LINE = re.compile(r"([^:\s]{1,64}):scrypt:([0-9a-f]{32}):([0-9a-f]{64})")

#: What a user may be called.
USER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", re.ASCII)


def read_password(path: Path) -> str:
    """Return the first line of a file that nobody else may read.

    Raises:
        BridgeError: the file cannot be read, is empty, or is open to others.
    """
    lines = _read_private(path).splitlines()
    if not lines or not lines[0]:
        raise BridgeError(f"{path}: there is no password in it", "write the password as its only line")
    return lines[0]


class Users:
    """The users of a server.

    Args:
        hashes: salt and hash by name.
    """

    def __init__(self, hashes: dict[str, tuple[bytes, bytes]]) -> None:
        self._hashes = hashes

    @property
    def names(self) -> list[str]:
        """Their names."""
        return sorted(self._hashes)

    def admit(self, name: str, password: str) -> bool:
        """Return whether this is a user with this password; takes as long for a name that is not known."""
        known = name in self._hashes
        salt, expected = self._hashes.get(name, (bytes(16), bytes(32)))
        return hmac.compare_digest(_hash(password, salt), expected) and known

    def put(self, name: str, password: str) -> None:
        """Add a user, or give one another password.

        Raises:
            BridgeError: the name has characters that it cannot have, or the password is empty.
        """
        if not USER_NAME.fullmatch(name):
            raise BridgeError(f"no user can be called {name!r}", "use letters, digits and . _ @ -, 64 at most")
        if not password:
            raise BridgeError(f"the password of {name} is empty", "give one")
        salt = secrets.token_bytes(16)
        self._hashes[name] = salt, _hash(password, salt)

    def save(self, path: Path) -> None:
        """Write them to a file that nobody else may read.

        Raises:
            BridgeError: it cannot be written.
        """
        lines = [f"{name}:scrypt:{salt.hex()}:{found.hex()}\n" for name, (salt, found) in sorted(self._hashes.items())]
        try:
            with atomic_write(path) as file:
                os.fchmod(file.fileno(), 0o600)
                file.write("".join(lines).encode())
        except OSError as error:
            raise BridgeError(f"{path}: cannot be written: {error.strerror or error}") from error


def read_users(path: Path) -> Users:
    """Return the users of a file that nobody else may read.

    Raises:
        BridgeError: the file cannot be read, is open to others, or has a line that is none; names the line.
    """
    hashes = {}
    for number, line in enumerate(_read_private(path).splitlines(), 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise BridgeError(f"{path}: line {number} is no user", "edge-bridge user writes such lines")
        hashes[match[1]] = bytes.fromhex(match[2]), bytes.fromhex(match[3])
    return Users(hashes)


def _hash(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=_N, r=_R, p=_P, dklen=32)


def _read_private(path: Path) -> str:
    try:
        # Not to be held up by a named pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BridgeError(f"{path}: not a regular file")
            if status.st_mode & 0o077:
                mode = stat.S_IMODE(status.st_mode)
                raise BridgeError(f"{path}: open to others (mode {mode:04o})", f"chmod 600 {path}")
            data = file.read(_MAX_FILE_BYTES + 1)
        if len(data) > _MAX_FILE_BYTES:
            raise BridgeError(f"{path}: too large")
        return data.decode()
    except OSError as error:
        raise BridgeError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise BridgeError(f"{path}: not text in UTF-8") from error
