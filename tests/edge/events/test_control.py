from __future__ import annotations

import os
import random
import socket
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.errors import PublishError
from edge.events import requests
from edge.events.client import ControlClient
from edge.events.codec import decode_message
from edge.events.control import Control, control_endpoint
from edge.events.journal import Journal
from edge.events.publisher import Publisher
from edge.events.replay import serve_events
from edge.events.requests import Replay, Replayed, RequestError, Statuses, StatusRequest
from edge.events.schema import Event, Status

MakeEvent = Callable[..., Event]


class Add(msgspec.Struct):
    first: int
    second: int


class Sum(msgspec.Struct):
    sum: int


def add(request: Add) -> Sum:
    if request.first < 0:
        raise RequestError("negative", "no negative numbers")
    if request.second == 0:
        raise ZeroDivisionError("a bug")
    return Sum(request.first + request.second)


@pytest.fixture
def control() -> Iterator[Control]:
    with Control("tcp://127.0.0.1:*") as control:
        control.register("add", Add, add)
        control.start()
        yield control


class Station:
    def __init__(self, folder: Path, make_event: MakeEvent, journal: bool = True) -> None:
        self.journal = Journal(folder) if journal else None
        self.publisher = Publisher("tcp://127.0.0.1:*", camera="cam0", journal=self.journal)
        self.control = Control("tcp://127.0.0.1:*", context=self.publisher.outlet.context)
        serve_events(self.control, [self.publisher])
        self.control.start()
        self._make_event = make_event

    def publish(self, count: int, mask: bytes = b"") -> list[Event]:
        ids = {"boot_id": self.publisher.boot_id, "journal_id": self.publisher.journal_id}
        events = [self._make_event(**ids, seq=self.publisher.next_seq()) for _ in range(count)]
        self.publisher.publish_all([(event, mask) for event in events])
        return events

    def close(self) -> None:
        self.control.close()
        self.publisher.close()
        if self.journal is not None:
            self.journal.close()


@pytest.fixture
def station(tmp_path: Path, make_event: MakeEvent) -> Iterator[Station]:
    station = Station(tmp_path / "cam0", make_event)
    yield station
    station.close()


def test_requests_are_answered_and_refused(control: Control) -> None:
    with ControlClient(control.endpoint) as client:
        assert client.call("add", Add(2, 3), Sum, 20.0) == Sum(5)
        for request, code in ((Add(-1, 3), "negative"), (Add(1, 0), requests.INTERNAL), (Sum(3), requests.BAD_REQUEST)):
            with pytest.raises(RequestError) as caught:
                client.call("add", request, Sum, 20.0)
            assert caught.value.code == code
        with pytest.raises(RequestError, match="does not know 'dance'"):
            client.call("dance", Add(1, 2), Sum, 20.0)
        assert (control.served, control.rejected) == (1, 4)


def test_a_plain_req_socket_is_answered(control: Control, context: zmq.Context[zmq.Socket[bytes]]) -> None:
    client = context.socket(zmq.REQ)
    client.connect(control.endpoint)
    client.send(msgspec.msgpack.encode({"op": "add", "id": 9, "first": 1, "second": 2, "third": "ignored"}))
    assert client.poll(20_000)
    assert msgspec.msgpack.decode(client.recv()) == {"id": 9, "code": "", "error": "", "result": {"sum": 3}}


def test_nobody_there_is_a_clear_error(free_port: int) -> None:
    with (
        ControlClient(f"tcp://127.0.0.1:{free_port}") as client,
        pytest.raises(PublishError, match="no station answered"),
    ):
        client.call("add", Add(1, 2), Sum, 0.2)


def test_hostile_bytes_do_no_harm(control: Control, context: zmq.Context[zmq.Socket[bytes]]) -> None:
    chance = random.Random(3)
    rude = context.socket(zmq.DEALER)
    rude.connect(control.endpoint)
    for frames in (
        [b""], [b"", b""], [b"", b"\xc1"], [b"", b"\x91" * 60_000], [b"x"] * 500, [b"", bytes(100)],
        [b"", msgspec.msgpack.encode({"op": "add" * 100})], [b"", msgspec.msgpack.encode({"op": "add", "id": -1})],
        [b"", msgspec.msgpack.encode({"op": 1})], [b"", msgspec.msgpack.encode(["add"])],
    ):  # fmt: skip
        rude.send_multipart(frames)
    for _ in range(200):
        rude.send_multipart([b"", chance.randbytes(chance.randint(0, 300))])
    rude.send_multipart([b"", bytes(requests.MAX_REQUEST_BYTES + 1)])
    host, port = control.endpoint.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(os.urandom(5000))
    with ControlClient(control.endpoint) as client:
        assert client.call("add", Add(2, 3), Sum, 20.0) == Sum(5)
    assert control.rejected > 0


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=200) | st.dictionaries(st.text(max_size=5), st.integers() | st.text(), max_size=4).map(
    lambda fields: msgspec.msgpack.encode({"op": "add", **{k: v for k, v in fields.items() if v != 2**64}})
    if all(not isinstance(v, int) or -(2**63) <= v < 2**64 for v in fields.values()) else b""
))  # fmt: skip
def test_any_bytes_get_a_reply(control: Control, payload: bytes) -> None:
    with ControlClient(control.endpoint) as client:
        assert client.socket.poll(20_000, zmq.POLLOUT)
        client.socket.send_multipart([b"", payload])
        reply = client.receive(20.0)
    assert reply is not None
    assert reply.id >= 0


def test_who_reads_no_answers_loses_them_and_delays_nobody(
    station: Station, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    station.publish(40, b"0" * 50_000)
    stalled = context.socket(zmq.DEALER)
    stalled.setsockopt(zmq.RCVHWM, 1)
    stalled.setsockopt(zmq.RCVBUF, 4096)
    stalled.connect(station.control.endpoint)
    for number in range(60):
        stalled.send_multipart([b"", requests.encode_request("replay", number, Replay("cam0"))])
    with ControlClient(station.control.endpoint) as client:
        replayed = client.call("replay", Replay("cam0"), Replayed, 30.0)
        assert replayed.events
        assert sum(len(mask) for _, mask in replayed.events) <= requests.MAX_REPLAY_BYTES
        assert 0 < replayed.through_seq < replayed.last_seq == 40
        station.publish(1)


def test_replay_gives_what_was_published(station: Station) -> None:
    events = station.publish(25, b"mask")
    with ControlClient(station.control.endpoint) as client:
        replayed = client.call("replay", Replay("cam0", station.publisher.journal_id, 10, 5), Replayed, 20.0)
        assert (replayed.first_seq, replayed.last_seq, replayed.through_seq) == (1, 25, 15)
        messages = [decode_message([b"redi/event/cam0", *each]) for each in replayed.events]
        assert [message.event for message in messages] == events[10:15]  # type: ignore[union-attr]
        assert {mask for _, mask in replayed.events} == {b"mask"}
        beyond = client.call("replay", Replay("cam0", station.publisher.journal_id, 2**63), Replayed, 20.0)
        assert (beyond.events, beyond.lost) == ([], [])
        for request, code in (
            (Replay("cam9"), requests.UNKNOWN_CAMERA),
            (Replay("cam0", "feedfeedfeedfeed"), requests.UNKNOWN_JOURNAL),
        ):
            with pytest.raises(RequestError) as caught:
                client.call("replay", request, Replayed, 20.0)
            assert caught.value.code == code


def test_without_a_journal_there_is_nothing_to_replay(tmp_path: Path, make_event: MakeEvent) -> None:
    station = Station(tmp_path, make_event, journal=False)
    (event,) = station.publish(1)
    assert event.journal_id == event.boot_id
    with ControlClient(station.control.endpoint) as client, pytest.raises(RequestError, match="no journal"):
        client.call("replay", Replay("cam0"), Replayed, 20.0)
    station.close()


def test_the_status_can_be_asked_for(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    with ControlClient(station.control.endpoint) as client:
        assert client.call("status", StatusRequest(), Statuses, 20.0).statuses == []
        station.publisher.status("running", {"ok": 3}, bundle_id="b", calibration_id="c")
        station.publish(4)
        (header,) = client.call("status", StatusRequest("cam0"), Statuses, 20.0).statuses
        status = msgspec.msgpack.decode(header, type=Status)
        assert (status.state, status.last_seq, status.first_seq, status.journal) == ("running", 4, 1, "ok")
        assert (status.journal_id, status.bundle_id) == (station.publisher.journal_id, "b")

        def fail(*_: Any) -> None:
            raise sqlite3.OperationalError("disk I/O error")

        monkeypatch.setattr("edge.events.store.Store.append", fail)
        monkeypatch.setattr("edge.events.store.Store.__init__", fail)
        station.publish(2)
        (header,) = client.call("status", StatusRequest("cam0"), Statuses, 20.0).statuses
        status = msgspec.msgpack.decode(header, type=Status)
        assert (status.last_seq, status.journal) == (6, "degraded")
        monkeypatch.undo()


def test_an_ipc_socket_is_its_owners_alone(tmp_path: Path) -> None:
    endpoint = control_endpoint(f"ipc://{tmp_path}/events")
    path = tmp_path / "events.control"
    with Control(endpoint) as control:
        control.register("add", Add, add)
        control.start()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with ControlClient(endpoint) as client:
            assert client.call("add", Add(2, 3), Sum, 20.0) == Sum(5)
        with pytest.raises(PublishError, match="in use"):
            Control(endpoint)
    assert not path.exists()


def test_the_control_endpoint_of_an_event_endpoint() -> None:
    assert control_endpoint("tcp://127.0.0.1:5560") == "tcp://127.0.0.1:5561"
    assert control_endpoint("tcp://[::1]:5560") == "tcp://[::1]:5561"
    assert control_endpoint("tcp://127.0.0.1:*") == "tcp://127.0.0.1:*"
    assert control_endpoint("ipc:///run/redi/events") == "ipc:///run/redi/events.control"
    for bad in ("tcp://127.0.0.1:65535", "nonsense", "ipc:///" + "x" * 105):
        with pytest.raises(PublishError):
            control_endpoint(bad)


def test_requests_come_while_the_line_publishes(station: Station) -> None:
    ended = threading.Event()

    def line() -> None:
        while not ended.is_set():
            station.publish(3)

    thread = threading.Thread(target=line)
    thread.start()
    try:
        with ControlClient(station.control.endpoint) as client:
            after = 0
            for _ in range(30):
                request = Replay("cam0", station.publisher.journal_id, after, 10)
                replayed = client.call("replay", request, Replayed, 20.0)
                assert not replayed.lost
                assert len(replayed.events) == replayed.through_seq - after
                after = replayed.through_seq
    finally:
        ended.set()
        thread.join()
