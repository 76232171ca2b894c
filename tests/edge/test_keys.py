"""Key files: what is written, who may read it, and what a hostile file can do (nothing)."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey
from zmq.utils import z85

from edge.errors import KeysError
from edge.keys import KeyFolder, Kind, PublicKey, default_folder, generate, parse_public, public_key, read_public

HOSTILE = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,30}", fullmatch=True)


@pytest.fixture
def folder(tmp_path: Path) -> KeyFolder:
    return KeyFolder(tmp_path / "config" / "keys")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_made_is_private_and_belongs_together(folder: KeyFolder) -> None:
    umask = os.umask(0)
    try:
        for name, kind in (("station", Kind.CONNECT), ("release", Kind.SIGN)):
            public = folder.make(name, kind)
            pair = folder.pair(kind)
            assert pair.public == public == read_public(folder.path / f"{name}.public") == public_key(public.text)
            assert len(pair.secret) == len(public.raw) == 32
            assert mode(folder.path / f"{name}.secret") == 0o600
    finally:
        os.umask(umask)
    assert mode(folder.path) == 0o700
    # The libraries agree on what belongs to a secret.
    connect, sign = folder.pair(Kind.CONNECT), folder.pair(Kind.SIGN)
    assert z85.decode(zmq.curve_public(z85.encode(connect.secret))) == connect.public.raw
    assert bytes(SigningKey(sign.secret).verify_key) == sign.public.raw
    assert sorted(path.name for path in folder.path.iterdir()) == [
        "release.public", "release.secret", "station.public", "station.secret",
    ]  # fmt: skip


def test_no_representation_shows_a_secret(folder: KeyFolder) -> None:
    folder.make("station", Kind.CONNECT)
    pair = folder.pair(Kind.CONNECT)
    for text in (repr(pair), str(pair), f"{pair}", repr(pair.public)):
        assert pair.secret.hex() not in text
        assert repr(pair.secret) not in text


def test_a_pair_is_never_overwritten(folder: KeyFolder) -> None:
    public = folder.make("station", Kind.CONNECT)
    for kind in Kind:
        with pytest.raises(KeysError, match="already there"):
            folder.make("station", kind)
    (folder.path / "station.public").unlink()
    with pytest.raises(KeysError, match="already there"):
        folder.make("station", Kind.CONNECT)
    assert folder.pair(Kind.CONNECT).public == public


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o660, 0o622, 0o777])
def test_a_secret_that_others_may_read_is_refused(folder: KeyFolder, bits: int) -> None:
    folder.make("station", Kind.CONNECT)
    path = folder.path / "station.secret"
    path.chmod(bits)
    for read in (lambda: folder.pair(Kind.CONNECT), lambda: folder.pair(Kind.CONNECT, "station"), folder.pairs):
        with pytest.raises(KeysError, match="others may read or write") as caught:
            read()
        assert caught.value.hint == f"chmod 0{bits & 0o700:03o} {path}"
        assert caught.value.exit_code == 11
    path.chmod(0o400)
    assert folder.pair(Kind.CONNECT).public.name == "station"


@pytest.mark.parametrize("below", ["", "allowed"])
def test_a_folder_into_which_others_could_put_keys_is_refused(folder: KeyFolder, below: str) -> None:
    folder.allow(generate(Kind.CONNECT, "hmi").public)
    (folder.path / below).chmod(0o770)
    for read in (
        folder.allowed,
        lambda: folder.allow(generate(Kind.CONNECT, "b").public),
        lambda: folder.revoke("hmi"),
    ):
        with pytest.raises(KeysError, match="others may write"):
            read()


def test_an_allowed_key_that_others_may_write_is_refused(folder: KeyFolder) -> None:
    folder.allow(generate(Kind.CONNECT, "hmi").public)
    good = folder.allow(generate(Kind.CONNECT, "good").public)
    (folder.path / "allowed" / "hmi.public").chmod(0o664)
    with pytest.raises(KeysError, match=r"hmi\.public: others may write"):
        folder.allowed()
    keys, problems = folder.scan_allowed()
    assert (keys, len(problems)) == ([good], 1)


def test_allow_and_revoke(folder: KeyFolder) -> None:
    hmi, sign = generate(Kind.CONNECT, "hmi").public, generate(Kind.SIGN, "release").public
    assert folder.allowed() == []
    folder.allow(hmi)
    folder.allow(sign)
    assert folder.allowed() == [hmi, sign]
    assert folder.allowed(Kind.CONNECT) == [hmi]
    # The same key by another name is the one that is known.
    assert folder.allow(PublicKey(hmi.kind, hmi.raw, "panel")).name == "hmi"
    with pytest.raises(KeysError, match="another key is allowed as hmi"):
        folder.allow(generate(Kind.CONNECT, "hmi").public)
    assert folder.revoke("hmi") == hmi
    with pytest.raises(KeysError, match="no key 'hmi' is allowed"):
        folder.revoke("hmi")
    assert folder.allowed() == [sign]


def test_which_pair_is_meant_must_be_clear(folder: KeyFolder) -> None:
    with pytest.raises(KeysError, match="no key pair for connecting") as caught:
        folder.pair(Kind.CONNECT)
    assert caught.value.hint == f"edge-keys make NAME --keys {folder.path}"
    folder.make("a", Kind.CONNECT)
    folder.make("s", Kind.SIGN)
    assert folder.pair(Kind.CONNECT).public.name == "a"
    folder.make("b", Kind.CONNECT)
    with pytest.raises(KeysError, match="several key pairs for connecting: a, b"):
        folder.pair(Kind.CONNECT)
    assert folder.pair(Kind.CONNECT, "b").public.name == "b"
    with pytest.raises(KeysError, match="is a key for signing, not for connecting"):
        folder.pair(Kind.CONNECT, "s")
    with pytest.raises(KeysError, match="no such key"):
        folder.pair(Kind.CONNECT, "c")


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "-x", ".hidden", "a b", "a\n", "ä", "x" * 65, "a\0b"])
def test_a_name_is_never_a_path(folder: KeyFolder, name: str) -> None:
    for use in (
        lambda: folder.make(name, Kind.CONNECT),
        lambda: folder.pair(Kind.CONNECT, name),
        lambda: folder.allow(PublicKey(Kind.CONNECT, bytes(32), name)),
    ):
        with pytest.raises(KeysError, match="cannot be the name of a key"):
            use()
    assert not folder.path.exists() or not any(folder.path.iterdir())


def test_a_secret_in_the_wrong_place_is_not_quoted(folder: KeyFolder) -> None:
    folder.make("station", Kind.CONNECT)
    secret = folder.pair(Kind.CONNECT).secret.hex()
    path = folder.path / "station.secret"
    for use in (lambda: public_key(str(path)), lambda: public_key(secret), lambda: parse_public(f"curve:{secret}")):
        with pytest.raises(KeysError) as caught:
            use()
        assert secret not in str(caught.value)
    # Damaged at any place, the file is refused without showing what is left of it.
    whole = path.read_bytes()
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut] + whole[cut + 1 :])
        shown = ""
        try:
            folder.pair(Kind.CONNECT, "station")
        except KeysError as error:
            shown = str(error)
        assert not any(secret[at : at + 8] in shown for at in range(len(secret) - 8))


def test_what_is_no_regular_file_holds_nothing_up(folder: KeyFolder, tmp_path: Path) -> None:
    folder.make("station", Kind.CONNECT)
    pipe, big = folder.path / "pipe.secret", tmp_path / "big.public"
    os.mkfifo(pipe, 0o600)
    with pytest.raises(KeysError, match="not a regular file"):
        folder.pair(Kind.CONNECT, "pipe")
    big.write_bytes(b"redi-edge-public " * 10_000)
    with pytest.raises(KeysError, match="too large"):
        read_public(big)
    for path in (tmp_path, Path("/dev/zero"), tmp_path / ("x" * 300), tmp_path / "a\0b"):
        with pytest.raises(KeysError):
            read_public(path)


@HOSTILE
@given(st.binary(max_size=300) | st.text(max_size=200).map(str.encode))
def test_hostile_files_are_refused_with_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "hostile.public"
    path.write_bytes(data)
    with pytest.raises(KeysError) as caught:
        read_public(path)
    assert "\n" not in caught.value.problem
    assert caught.value.problem.startswith(str(path))


@HOSTILE
@given(st.data())
def test_a_mutilated_key_is_refused_or_another_key_but_never_another_thing(tmp_path: Path, data: st.DataObject) -> None:
    key = generate(Kind.CONNECT, "hmi").public
    line = f"redi-edge-public {key.kind.value} {key.raw.hex()} hmi\n".encode()
    start = data.draw(st.integers(0, len(line)))
    end = data.draw(st.integers(start, len(line)))
    path = tmp_path / "mutilated.public"
    path.write_bytes(line[:start] + data.draw(st.binary(max_size=20)) + line[end:])
    try:
        found = read_public(path)
    except KeysError:
        return
    assert found.kind in Kind
    assert len(found.raw) == 32


@HOSTILE
@given(st.sampled_from(list(Kind)), st.binary(min_size=32, max_size=32), NAMES)
def test_a_public_key_comes_back_from_file_and_text(tmp_path: Path, kind: Kind, raw: bytes, name: str) -> None:
    folder = KeyFolder(tmp_path / "round")
    key = PublicKey(kind, raw, name)
    folder.allow(key)
    (found,) = folder.allowed()
    assert (found, found.name) == (key, name)
    assert read_public(folder.path / "allowed" / f"{name}.public").name == name
    assert parse_public(key.text) == key
    folder.revoke(name)


@HOSTILE
@given(st.text(max_size=100))
def test_no_text_but_a_key_is_one(text: str) -> None:
    with pytest.raises(KeysError):
        parse_public(text)


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/etc/plant")
    assert default_folder() == Path("/etc/plant/redi-edge/keys")
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_CONFIG_HOME", unset)
        assert default_folder() == Path.home() / ".config/redi-edge/keys"
