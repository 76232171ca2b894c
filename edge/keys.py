"""Keys: pairs of our own, and the public keys of those whom we trust, as small text files in one folder.

Curve25519 pairs say who may connect, Ed25519 pairs who has signed a bundle.  `docs/security.md` shows their use.

    FOLDER/NAME.secret            mode 0600
    FOLDER/NAME.public            for the other side
    FOLDER/allowed/NAME.public    who may connect here, and whose bundles are accepted here

A file is one line: `redi-edge-public KIND KEY NAME`, or `redi-edge-secret` with the secret half, the key as 64
hexadecimal digits.  As text, a public key is `KIND:KEY`.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from edge.errors import KeysError

KEY_BYTES = 32
_MAX_FILE_BYTES = 4096
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_HEX = re.compile(r"[0-9a-f]{64}", re.ASCII)
_PUBLIC, _SECRET = "redi-edge-public", "redi-edge-secret"
_PUBLIC_SUFFIX, _SECRET_SUFFIX = ".public", ".secret"
_ALLOWED = "allowed"


class Kind(str, Enum):
    """What a key is for, by the name of its algorithm."""

    CONNECT = "curve25519"
    SIGN = "ed25519"


_PURPOSE = {Kind.CONNECT: "connecting", Kind.SIGN: "signing"}
_MAKE = {Kind.CONNECT: "edge-keys make NAME", Kind.SIGN: "edge-keys make NAME --sign"}


@dataclass(frozen=True)
class PublicKey:
    """A public key: 32 bytes.  The name is what this machine calls it; two keys are the same whatever their names."""

    kind: Kind
    raw: bytes
    name: str = field(compare=False)

    @property
    def text(self) -> str:
        """`KIND:KEY`."""
        return f"{self.kind.value}:{self.raw.hex()}"


@dataclass(frozen=True)
class KeyPair:
    """A public key and its secret half, 32 bytes, which no representation shows."""

    public: PublicKey
    secret: bytes = field(repr=False)


def default_folder() -> Path:
    """Return `$XDG_CONFIG_HOME/redi-edge/keys`, or the same below `~/.config`."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    # The specification: a relative path is to be ignored.
    return (Path(base) if base.startswith("/") else Path.home() / ".config") / "redi-edge" / "keys"


def generate(kind: Kind, name: str) -> KeyPair:
    """Return a new pair from the system's random numbers."""
    if kind is Kind.CONNECT:
        import zmq
        from zmq.utils import z85

        secret = z85.decode(zmq.curve_keypair()[1])
    else:
        secret = os.urandom(KEY_BYTES)
    return _pair(kind, secret, name)


def read_public(path: Path) -> PublicKey:
    """Read a public key's file.

    Raises:
        KeysError: missing, unreadable, or no public key.
    """
    kind, raw, name = _parse(path, _PUBLIC, _read(path, forbidden=0))
    return PublicKey(kind, raw, name)


def parse_public(text: str, name: str = "") -> PublicKey:
    """Return the public key that `KIND:KEY` is; unnamed, it is called after its first digits.

    Raises:
        KeysError: it is none.
    """
    kind, colon, digits = text.strip().partition(":")
    if colon and kind in {each.value for each in Kind} and _HEX.fullmatch(digits):
        return PublicKey(Kind(kind), bytes.fromhex(digits), check_name(name or f"key-{digits[:12]}"))
    # Not quoted: it may be a secret in the wrong place.
    raise KeysError(
        "this is neither a file nor a public key",
        f"name a .public file, or a key as edge-keys show prints it: {_FORMS}",
    )


def public_key(text: str) -> PublicKey:
    """Return the public key that an argument gives: a file's path, or `KIND:KEY`.

    Raises:
        KeysError: it gives none.
    """
    kinds = {kind.value for kind in Kind}
    # Bare digits are no path either, and may be a secret that must not show up in an error.
    return parse_public(text) if text.partition(":")[0] in kinds or _HEX.fullmatch(text) else read_public(Path(text))


_FORMS = ", ".join(f"{kind.value}:64-DIGITS" for kind in Kind)


def check_name(name: str) -> str:
    """Return the name if it can be a key's.

    Raises:
        KeysError: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise KeysError(
            f"{name!r} cannot be the name of a key", "use 1 to 64 letters, digits, dots, dashes and underscores"
        )
    return name


class KeyFolder:
    """The key files in a folder, read anew at every call: a change counts at once.

    Args:
        path: the folder; `default_folder()` when None.  Made by the first `make` or `allow`.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = default_folder() if path is None else path

    def make(self, name: str, kind: Kind) -> PublicKey:
        """Make a pair and write it.

        Raises:
            KeysError: the name is taken or unfit, or the folder cannot be used.
        """
        pair = generate(kind, check_name(name))
        self._prepare(self.path)
        secret, public = (self.path / (name + suffix) for suffix in (_SECRET_SUFFIX, _PUBLIC_SUFFIX))
        for path in (secret, public):
            if path.exists() or path.is_symlink():
                raise KeysError(f"{path} is already there", "use another name, or remove the old pair first")
        _write_new(secret, _line(_SECRET, kind, pair.secret, name), 0o600)
        _write_new(public, _line(_PUBLIC, kind, pair.public.raw, name), 0o644)
        return pair.public

    def pairs(self, kind: Kind | None = None) -> list[KeyPair]:
        """Return our own pairs, by name.

        Raises:
            KeysError: the folder or a secret file is malformed, or open to others.
        """
        found = [_read_secret(path) for path in self._files(self.path, _SECRET_SUFFIX)]
        return [pair for pair in found if kind in (None, pair.public.kind)]

    def pair(self, kind: Kind, name: str | None = None) -> KeyPair:
        """Return the pair of that name, or the only one of its kind.

        Raises:
            KeysError: there is none, or the choice is not clear.
        """
        if name is not None:
            path = self.path / (check_name(name) + _SECRET_SUFFIX)
            self._check_folder(self.path)
            pair = _read_secret(path)
            if pair.public.kind is not kind:
                raise KeysError(
                    f"{path} is a key for {_PURPOSE[pair.public.kind]}, not for {_PURPOSE[kind]}", _MAKE[kind]
                )
            return pair
        found = self.pairs(kind)
        if not found:
            raise KeysError(f"{self.path}: no key pair for {_PURPOSE[kind]}", f"{_MAKE[kind]} --keys {self.path}")
        if len(found) > 1:
            names = ", ".join(pair.public.name for pair in found)
            raise KeysError(f"{self.path}: several key pairs for {_PURPOSE[kind]}: {names}", "say which, by its name")
        return found[0]

    def allowed(self, kind: Kind | None = None) -> list[PublicKey]:
        """Return the public keys that are allowed here, by name.

        Raises:
            KeysError: one of the files is malformed, or others may write it.
        """
        keys, problems = self.scan_allowed(kind)
        if problems:
            raise problems[0]
        return keys

    def scan_allowed(self, kind: Kind | None = None) -> tuple[list[PublicKey], list[KeysError]]:
        """Return what `allowed` does with the bad files left out, and what is wrong with those."""
        keys: list[PublicKey] = []
        problems: list[KeysError] = []
        try:
            files = self._files(self.path / _ALLOWED, _PUBLIC_SUFFIX)
        except KeysError as error:
            return [], [error]
        for path in files:
            try:
                # The file's name is what `revoke` goes by, whatever its maker called the key.
                key = _parse(path, _PUBLIC, _read(path, forbidden=0o022))
                keys.append(PublicKey(key[0], key[1], check_name(path.name.removesuffix(_PUBLIC_SUFFIX))))
            except KeysError as error:
                problems.append(error)
        return [key for key in keys if kind in (None, key.kind)], problems

    def allow(self, key: PublicKey) -> PublicKey:
        """Allow a key under its name; return it as it is known here, which may be by an older name.

        Raises:
            KeysError: another key has this name, or the folder cannot be used.
        """
        check_name(key.name)
        folder = self.path / _ALLOWED
        self._prepare(self.path)
        self._prepare(folder)
        for known in self.allowed():
            if known == key:
                return known
            if known.name == key.name:
                raise KeysError(f"{folder}: another key is allowed as {key.name}", "give this one another --name")
        _write_new(folder / (key.name + _PUBLIC_SUFFIX), _line(_PUBLIC, key.kind, key.raw, key.name), 0o644)
        return key

    def revoke(self, name: str) -> PublicKey:
        """Allow the key of that name no more; return it.

        Raises:
            KeysError: no such key is allowed here.
        """
        for key in self.allowed():
            if key.name == name:
                (self.path / _ALLOWED / (name + _PUBLIC_SUFFIX)).unlink(missing_ok=True)
                return key
        raise KeysError(f"{self.path}: no key {name!r} is allowed", "edge-keys list shows the names")

    def _files(self, folder: Path, suffix: str) -> list[Path]:
        if not folder.exists():
            return []
        self._check_folder(self.path)
        self._check_folder(folder)
        try:
            return sorted(path for path in folder.iterdir() if path.suffix == suffix and not path.name.startswith("."))
        except OSError as error:
            raise KeysError(f"{folder}: cannot be read: {error.strerror or error}") from error

    def _check_folder(self, folder: Path) -> None:
        """Refuse a folder into which others could put a key of theirs."""
        try:
            status = folder.stat()
        except FileNotFoundError as error:
            raise KeysError(f"{folder}: no such folder", "edge-keys make NAME makes the first key pair") from error
        except OSError as error:
            raise KeysError(f"{folder}: {error.strerror or error}") from error
        if not stat.S_ISDIR(status.st_mode):
            raise KeysError(f"{folder}: not a folder")
        _check_status(folder, status, 0o022)

    def _prepare(self, folder: Path) -> None:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise KeysError(f"{folder}: cannot be made: {error.strerror or error}") from error
        self._check_folder(folder)


def _pair(kind: Kind, secret: bytes, name: str) -> KeyPair:
    if kind is Kind.CONNECT:
        import zmq
        from zmq.utils import z85

        raw = z85.decode(zmq.curve_public(z85.encode(secret)))
    else:
        from nacl.signing import SigningKey

        raw = bytes(SigningKey(secret).verify_key)
    return KeyPair(PublicKey(kind, raw, name), secret)


def _line(word: str, kind: Kind, raw: bytes, name: str) -> bytes:
    return f"{word} {kind.value} {raw.hex()} {name}\n".encode()


def _read_secret(path: Path) -> KeyPair:
    kind, secret, _ = _parse(path, _SECRET, _read(path, forbidden=0o077))
    return _pair(kind, secret, check_name(path.name.removesuffix(_SECRET_SUFFIX)))


def _parse(path: Path, word: str, data: bytes) -> tuple[Kind, bytes, str]:
    """Return kind, key and name.  Says what is wrong without quoting a byte of the file."""
    fields = data.decode("ascii", "replace").split()
    wanted = "public" if word == _PUBLIC else "secret"
    if fields[:1] == [_SECRET] and word == _PUBLIC:
        raise KeysError(f"{path}: this is a secret key, which nobody else should have", "name the .public file")
    if len(fields) != 4 or fields[0] != word:
        raise KeysError(f"{path}: not a {wanted} key", "edge-keys make writes one; copy it whole")
    _, kind, digits, name = fields
    if kind not in {each.value for each in Kind}:
        raise KeysError(f"{path}: a key of a kind that this release does not know")
    if not _HEX.fullmatch(digits) or not _NAME.fullmatch(name):
        raise KeysError(f"{path}: a damaged {wanted} key", "copy it again from where it was made")
    return Kind(kind), bytes.fromhex(digits), name


def _read(path: Path, *, forbidden: int) -> bytes:
    """Read a small regular file whose mode has none of the `forbidden` bits; asked of the very file that is read."""
    try:
        # Not to be held up by a named pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError as error:
        raise KeysError(f"{path}: no such key", "edge-keys list shows those that are there") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise KeysError(f"{path}: cannot be read: {reason}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise KeysError(f"{path}: not a regular file")
        if forbidden:
            _check_status(path, status, forbidden)
        data = os.read(descriptor, _MAX_FILE_BYTES + 1)
    except OSError as error:
        raise KeysError(f"{path}: cannot be read: {error.strerror or error}") from error
    finally:
        os.close(descriptor)
    if len(data) > _MAX_FILE_BYTES:
        raise KeysError(f"{path}: too large for a key")
    return data


def _check_status(path: Path, status: os.stat_result, forbidden: int) -> None:
    if status.st_uid not in (0, os.geteuid()):
        raise KeysError(f"{path}: belongs to another user", f"chown it to user {os.geteuid()}")
    if status.st_mode & forbidden:
        mode = stat.S_IMODE(status.st_mode)
        verb = "read or write" if forbidden & 0o044 else "write"
        raise KeysError(f"{path}: others may {verb} it (mode {mode:04o})", f"chmod {mode & ~0o077:04o} {path}")


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file that is not there yet, whole or not at all; nobody else can read a secret at any moment."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode & 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fchmod(descriptor, mode)
                os.fsync(descriptor)
            # Unlike a rename, a link never takes the place of a file that has come in between.
            os.link(temporary, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
    except OSError as error:
        raise KeysError(f"{path}: cannot be written: {error.strerror or error}") from error
