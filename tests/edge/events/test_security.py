"""CURVE between real sockets on loopback: who may listen, who may not, and what both sides are told."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
import zmq

from edge.errors import KeysError, PublishError
from edge.events.codec import MAX_MASK_BYTES, EventMessage
from edge.events.control import Control
from edge.events.publisher import Publisher
from edge.events.schema import Event
from edge.events.security import (
    ClientKeys,
    HandshakeJudge,
    ServerKeys,
    check_exposure,
    is_loopback,
    secure_client,
    secure_server,
)
from edge.events.subscriber import Subscriber
from edge.keys import KeyFolder, Kind, generate

MakeEvent = Callable[..., Event]
LOOPBACK = "tcp://127.0.0.1:*"


@pytest.fixture
def folder(tmp_path: Path) -> KeyFolder:
    folder = KeyFolder(tmp_path / "keys")
    folder.make("station", Kind.CONNECT)
    return folder


@pytest.fixture
def station(folder: KeyFolder) -> ServerKeys:
    return ServerKeys(folder.pair(Kind.CONNECT), folder)


def client(station: ServerKeys, name: str = "client", *, allowed: bool = True) -> ClientKeys:
    pair = generate(Kind.CONNECT, name)
    if allowed:
        station.folder.allow(pair.public)
    return ClientKeys(pair, station.pair.public)


def publish(publisher: Publisher, make_event: MakeEvent, mask: bytes = b"") -> Event:
    event = make_event(boot_id=publisher.boot_id, seq=publisher.next_seq())
    publisher.publish(event, mask)
    return event


def until(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def await_refusal(subscriber: Subscriber) -> str:
    def refused() -> bool:
        assert subscriber.receive(0.05) is None
        return bool(subscriber.refusal)

    until(refused)
    return subscriber.refusal


def assert_serves(publisher: Publisher, keys: ClientKeys | None, make_event: MakeEvent) -> None:
    """The station still admits and serves a client that may listen."""
    with Subscriber(publisher.endpoint, keys=keys) as subscriber:
        # Everything before it is gone: publish until it has arrived.
        for _ in range(200):
            event = publish(publisher, make_event)
            if (message := subscriber.receive(0.1)) is not None:
                break
        assert isinstance(message, EventMessage)
        assert message.event.boot_id == event.boot_id
        assert subscriber.refusal == ""
        assert subscriber.rejected == 0


def test_allowed_clients_receive_everything_the_largest_mask_included(
    station: ServerKeys, make_event: MakeEvent, free_port: int
) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port}"
    largest = b"0" * MAX_MASK_BYTES
    with Subscriber(endpoint, keys=client(station, "hmi")) as subscriber:
        received: list[object] = []
        waiting = threading.Thread(target=lambda: received.append(subscriber.receive(60.0)))
        waiting.start()
        with Publisher(endpoint, camera="cam0", keys=station) as publisher:
            publisher.settle()
            event = publish(publisher, make_event, largest)
            waiting.join()
            assert received == [EventMessage(event, largest)]
            assert_serves(publisher, client(station, "bridge"), make_event)
            assert subscriber.connected
            assert publisher.gatekeeper is not None
            assert publisher.gatekeeper.refused == 0


def test_what_is_sent_cannot_be_read_on_the_wire(station: ServerKeys, make_event: MakeEvent) -> None:
    seen = bytearray()
    with Publisher(LOOPBACK, camera="cam0", keys=station) as publisher, socket.create_server(("127.0.0.1", 0)) as wire:
        port = int(publisher.endpoint.rpartition(":")[2])

        def pump(source: socket.socket, sink: socket.socket) -> None:
            while data := source.recv(65536):
                seen.extend(data)
                sink.sendall(data)

        def tap() -> None:
            near, _ = wire.accept()
            far = socket.create_connection(("127.0.0.1", port))
            with near, far:
                back = threading.Thread(target=pump, args=(far, near), daemon=True)
                back.start()
                pump(near, far)
                far.shutdown(socket.SHUT_RDWR)
                back.join()

        tapping = threading.Thread(target=tap)
        tapping.start()
        with Subscriber(f"tcp://127.0.0.1:{wire.getsockname()[1]}", keys=client(station)) as subscriber:
            until(lambda: subscriber.receive(0.05) is None and subscriber.connected)
            for _ in range(200):
                publish(publisher, make_event, b"a-mask-to-look-for")
                if subscriber.receive(0.1) is not None:
                    break
            else:
                pytest.fail("nothing arrived")
        tapping.join()
    assert len(seen) > 500
    for secret in (b"a-mask-to-look-for", b"cam0", b"broken_large", b"redi/event"):
        assert secret not in seen


@pytest.mark.parametrize("intruder", ["without keys", "unknown key", "wrong server key"])
def test_who_may_not_listen_hears_why_and_nothing_else(
    intruder: str, station: ServerKeys, make_event: MakeEvent
) -> None:
    keys = {
        "without keys": None,
        "unknown key": client(station, "stranger", allowed=False),
        "wrong server key": ClientKeys(client(station, "lost").pair, generate(Kind.CONNECT, "other").public),
    }[intruder]
    friend = client(station, "friend")
    with Publisher(LOOPBACK, camera="cam0", keys=station) as publisher:
        assert publisher.gatekeeper is not None
        told: list[str] = []
        publisher.gatekeeper.report = told.append
        with Subscriber(publisher.endpoint, keys=keys) as subscriber:
            refusal = await_refusal(subscriber)
            for _ in range(50):
                publish(publisher, make_event)
            assert subscriber.receive(0.3) is None
            assert not subscriber.connected
        expected = {
            "without keys": "--server-key",
            "unknown key": f"edge-keys allow {keys.pair.public.text}" if keys else "",
            "wrong server key": f"{keys.server.text} is not this station's key" if keys else "",
        }[intruder]
        assert expected in refusal
        assert publisher.gatekeeper.refused > 0
        assert publisher.gatekeeper.last_refusal in told
        if intruder == "unknown key" and keys:
            assert keys.pair.public.text in publisher.gatekeeper.last_refusal
        for secret in (station.pair.secret.hex(), (keys or friend).pair.secret.hex()):
            assert secret not in refusal + "".join(told)
        assert_serves(publisher, friend, make_event)


def test_a_client_with_keys_at_a_station_without_is_told(station: ServerKeys) -> None:
    with Publisher(LOOPBACK, camera="cam0") as publisher, Subscriber(publisher.endpoint, keys=client(station)) as each:
        assert "uses no keys" in await_refusal(each)


def test_who_is_allowed_later_comes_in_and_who_is_revoked_does_not_come_back(
    station: ServerKeys, make_event: MakeEvent
) -> None:
    keys = client(station, "late", allowed=False)
    with Publisher(LOOPBACK, camera="cam0", keys=station) as publisher:
        with Subscriber(publisher.endpoint, keys=keys) as subscriber:
            await_refusal(subscriber)
            station.folder.allow(keys.pair.public)
            until(lambda: subscriber.receive(0.05) is None and subscriber.connected)
            assert subscriber.refusal == ""
        station.folder.revoke("late")
        with Subscriber(publisher.endpoint, keys=keys) as subscriber:
            assert "does not allow" in await_refusal(subscriber)


def test_a_bad_file_among_the_allowed_keys_keeps_nobody_else_out(station: ServerKeys, make_event: MakeEvent) -> None:
    good = client(station, "good")
    with Publisher(LOOPBACK, camera="cam0", keys=station) as publisher:
        (station.folder.path / "allowed" / "bad.public").write_bytes(os.urandom(200))
        assert_serves(publisher, good, make_event)
    # But at the start it is said.
    with pytest.raises(KeysError, match=r"bad\.public"):
        Publisher(LOOPBACK, camera="cam0", keys=station)


def test_a_folder_that_others_may_write_admits_nobody(station: ServerKeys) -> None:
    keys = client(station)
    with Publisher(LOOPBACK, camera="cam0", keys=station) as publisher:
        station.folder.path.chmod(0o777)
        with Subscriber(publisher.endpoint, keys=keys) as subscriber:
            assert "does not allow" in await_refusal(subscriber)
        assert publisher.gatekeeper is not None
        assert "others may write it" in publisher.gatekeeper.last_refusal


def garbage(raw: socket.socket, data: bytes) -> bytes:
    """Send it and return whatever comes back until the other side hangs up."""
    answer = bytearray()
    raw.settimeout(10.0)
    with suppress(OSError):
        raw.sendall(data)
        raw.shutdown(socket.SHUT_WR)
        while part := raw.recv(4096):
            answer += part
    return bytes(answer)


def ask(endpoint: str, keys: ClientKeys | None) -> bytes:
    """Send a request of which the station knows nothing; return its reply."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    if keys is not None:
        secure_client(dealer, keys)
    dealer.connect(endpoint)
    dealer.send(msgspec.msgpack.encode({"op": "nothing", "id": 7}))
    reply = dealer.recv() if dealer.poll(20_000) else b""
    dealer.close(0)
    context.term()
    return reply


def test_random_bytes_do_nothing(station: ServerKeys, make_event: MakeEvent, tmp_path: Path) -> None:
    friend = client(station)
    path = tmp_path / "events"
    curve, null = (b"\xff" + bytes(8) + b"\x7f\x03\x01" + name + bytes(48 - len(name)) for name in (b"CURVE", b"NULL"))
    shapes = [b"", os.urandom(1), os.urandom(64), os.urandom(10_000)]
    shapes += [greeting + tail for greeting in (curve, null) for tail in (os.urandom(500), b"\x06\xff" * 300)]
    # A command of 2^62 bytes.
    shapes.append(null + b"\x06" + (1 << 62).to_bytes(8, "big") + bytes(100))
    with (
        Publisher(LOOPBACK, camera="cam0", keys=station) as secured,
        Publisher(LOOPBACK, camera="cam0") as plain,
        Publisher(f"ipc://{path}", camera="cam0", keys=station) as local,
        Control(LOOPBACK, keys=station) as control,
        Control(LOOPBACK) as plain_control,
    ):
        control.start()
        plain_control.start()
        for data in shapes:
            for each in (secured, plain, control, plain_control):
                with socket.create_connection(("127.0.0.1", int(each.endpoint.rpartition(":")[2]))) as raw:
                    # At most its own greeting, and nothing that was published.
                    assert b"redi" not in garbage(raw, data)
            with socket.socket(socket.AF_UNIX) as raw:
                raw.connect(str(path))
                assert b"redi" not in garbage(raw, data)
            for publisher in (secured, plain, local):
                publish(publisher, make_event)
        assert_serves(secured, friend, make_event)
        # Keys are for TCP: the path's mode keeps the door of an ipc socket.
        assert_serves(local, friend, make_event)
        assert_serves(plain, None, make_event)
        assert b"unknown-operation" in ask(control.endpoint, friend)
        assert b"unknown-operation" in ask(plain_control.endpoint, None)


def test_two_sockets_of_a_context_have_one_gatekeeper_and_the_next_context_another(station: ServerKeys) -> None:
    keys = client(station)
    before = threading.active_count()
    for _ in range(3):
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        server, control = context.socket(zmq.XPUB), context.socket(zmq.ROUTER)
        assert secure_server(server, station) is secure_server(control, station)
        with pytest.raises(ValueError, match="one set of keys"):
            secure_server(server, ServerKeys(generate(Kind.CONNECT, "other"), station.folder))
        port = control.bind_to_random_port("tcp://127.0.0.1")
        asking = zmq.Context()
        dealer = asking.socket(zmq.DEALER)
        secure_client(dealer, keys)
        dealer.connect(f"tcp://127.0.0.1:{port}")
        dealer.send(b"hello")
        assert control.poll(10_000)
        assert control.recv_multipart()[1] == b"hello"
        for each in (dealer, server, control):
            each.close(0)
        asking.term()
        context.term()
    until(lambda: threading.active_count() == before)


def test_signing_keys_are_not_for_connecting(station: ServerKeys) -> None:
    signing = generate(Kind.SIGN, "release")
    with pytest.raises(KeysError, match="for signing"):
        Subscriber("tcp://127.0.0.1:5560", keys=ClientKeys(generate(Kind.CONNECT, "a"), signing.public))


@pytest.mark.parametrize(
    ("endpoint", "local"),
    [
        ("tcp://127.0.0.1:5560", True),
        ("tcp://127.8.0.1:*", True),
        ("tcp://localhost:5560", True),
        ("tcp://lo:5560", True),
        ("tcp://[::1]:5560", True),
        ("ipc:///run/redi", True),
        ("tcp://*:5560", False),
        ("tcp://0.0.0.0:5560", False),
        ("tcp://[::]:5560", False),
        ("tcp://eth0:5560", False),
        ("tcp://192.168.1.4:5560", False),
        ("tcp://127.0.0.1.example.org:5560", False),
        ("tcp://127.0.0.1;0.0.0.0:5560", False),
        ("tcp://:5560", False),
    ],
)
def test_what_counts_as_loopback(endpoint: str, local: bool) -> None:
    assert is_loopback(endpoint) is local
    check_exposure(endpoint, secured=True, insecure=False)
    check_exposure(endpoint, secured=False, insecure=True)
    if not local:
        with pytest.raises(PublishError, match="without keys") as caught:
            check_exposure(endpoint, secured=False, insecure=False)
        assert "--insecure" in caught.value.hint


def test_beyond_loopback_only_with_keys_or_when_told_so(station: ServerKeys) -> None:
    with pytest.raises(PublishError, match="without keys"):
        Publisher("tcp://0.0.0.0:*", camera="cam0")
    Publisher("tcp://0.0.0.0:*", camera="cam0", insecure=True).close()
    Publisher("tcp://0.0.0.0:*", camera="cam0", keys=station).close()


def test_one_connection_that_breaks_is_no_refusal() -> None:
    judge = HandshakeJudge(None)
    judge.see(zmq.Event.HANDSHAKE_FAILED_NO_DETAIL, 32)
    assert judge.refusal == ""
    judge.see(zmq.Event.HANDSHAKE_SUCCEEDED, 0)
    judge.see(zmq.Event.HANDSHAKE_FAILED_NO_DETAIL, 32)
    assert judge.refusal == ""
    judge.see(zmq.Event.HANDSHAKE_FAILED_NO_DETAIL, 32)
    assert "--server-key" in judge.refusal
    judge.see(zmq.Event.HANDSHAKE_SUCCEEDED, 0)
    assert judge.refusal == ""
