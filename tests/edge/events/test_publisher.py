from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from edge.errors import EdgeError, PublishError, UsageError
from edge.events.backlog import JournalState
from edge.events.codec import EventMessage, StatusMessage
from edge.events.journal import Journal
from edge.events.outlet import Outlet
from edge.events.publisher import Publisher
from edge.events.schema import Event
from edge.events.store import Row
from edge.events.subscriber import Subscriber

MakeEvent = Callable[..., Event]


def publish(publisher: Publisher, make_event: MakeEvent, mask: bytes = b"") -> Event:
    event = make_event(boot_id=publisher.boot_id, camera=publisher.camera, seq=publisher.next_seq())
    publisher.publish(event, mask)
    return event


def wait_for(endpoint: str, waiting: threading.Barrier, firsts: list[int], camera: str | None) -> None:
    with Subscriber(endpoint, camera=camera) as subscriber:
        waiting.wait()
        while True:
            message = subscriber.receive(20.0)
            if message is None or isinstance(message, EventMessage):
                firsts.append(0 if message is None else message.event.seq)
                return


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
@pytest.mark.parametrize("repeat", range(3))
def test_who_waits_receives_the_first_event(
    transport: str, repeat: int, make_event: MakeEvent, free_port: int, tmp_path: Path
) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port}" if transport == "tcp" else f"ipc://{tmp_path}/events"
    firsts: list[int] = []
    waiting = threading.Barrier(5)
    cameras = [None, "cam0", None, "cam0"]
    threads = [threading.Thread(target=wait_for, args=(endpoint, waiting, firsts, camera)) for camera in cameras]
    for thread in threads:
        thread.start()
    waiting.wait()
    # Let them fail to connect a few times, at another phase of their attempts in each repetition.
    threading.Event().wait(0.1 + 0.034 * repeat)
    with Publisher(endpoint, camera="cam0") as publisher:
        publisher.settle()
        publish(publisher, make_event)
        publish(publisher, make_event)
        for thread in threads:
            thread.join()
    assert firsts == [1, 1, 1, 1]


def first_events_of_plain_subscribers(port: int, make_event: MakeEvent, context: zmq.Context[Any]) -> set[int]:
    sockets = [context.socket(zmq.SUB) for _ in range(20)]
    firsts = set()
    for each in sockets:
        each.subscribe("redi/event/")
        each.connect(f"tcp://127.0.0.1:{port}")
    threading.Event().wait(0.15)
    with Publisher(f"tcp://127.0.0.1:{port}", camera="cam0") as publisher:
        publisher.settle()
        publish(publisher, make_event)
        for each in sockets:
            while not each.poll(100):
                # It came too late.
                publish(publisher, make_event)
            firsts.add(msgspec.msgpack.decode(each.recv_multipart()[1])["seq"])
            each.close(0)
    return firsts


def test_a_plain_zeromq_subscriber_with_default_options_receives_the_first_event(
    make_event: MakeEvent, free_port: int, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    # A machine may be too busy for it now and then, but not always.
    assert any(first_events_of_plain_subscribers(free_port, make_event, context) == {1} for _ in range(5))


def test_settling_takes_no_time_when_the_model_took_long() -> None:
    with Publisher("tcp://127.0.0.1:*", camera="cam0") as publisher:
        publisher.outlet._bound_at -= 60
        waited = threading.Event()
        timer = threading.Timer(0.2, waited.set)
        timer.start()
        publisher.settle()
        assert not waited.is_set()
        timer.cancel()


def test_events_and_statuses_arrive_in_order(make_event: MakeEvent) -> None:
    with (
        Publisher("tcp://127.0.0.1:*", camera="cam0") as publisher,
        Subscriber(publisher.endpoint) as subscriber,
    ):
        publisher.settle()
        publisher.outlet.remove_heartbeat(publisher._beat)
        publisher.status("running", {"ok": 0}, bundle_id="b", calibration_id="c")
        sent = [publish(publisher, make_event, b"%d" % number) for number in range(300)]
        publisher.status("stopped", {"ok": 300})
        messages = [subscriber.receive(10.0) for _ in range(302)]
        assert subscriber.receive(0.05) is None
        assert subscriber.rejected == 0
    first, last = messages[0], messages[-1]
    assert isinstance(first, StatusMessage)
    assert isinstance(last, StatusMessage)
    assert (first.status.state, first.status.last_seq, first.status.bundle_id) == ("running", 0, "b")
    assert (last.status.state, last.status.last_seq, last.status.counters) == ("stopped", 300, {"ok": 300})
    assert messages[1:-1] == [EventMessage(event, b"%d" % number) for number, event in enumerate(sent)]
    assert [event.seq for event in sent] == list(range(1, 301))


def test_who_joins_gets_the_last_status_at_once(make_event: MakeEvent) -> None:
    outlet = Outlet("tcp://127.0.0.1:*", heartbeat_s=3600.0)
    counters = {"ok": 0}
    with outlet, Publisher(outlet, camera="cam0") as publisher:
        publisher.status("running", lambda: counters, bundle_id="b", calibration_id="c")
        for number in (1, 2, 3):
            publish(publisher, make_event)
            counters["ok"] = number
            with Subscriber(outlet.endpoint) as subscriber:
                message = subscriber.receive(10.0)
                while isinstance(message, EventMessage) or (message and message.status.last_seq < number):
                    # Sent before, and still on its way.
                    message = subscriber.receive(10.0)
                assert isinstance(message, StatusMessage)
                assert (message.status.state, message.status.last_seq) == ("running", number)
                assert (message.status.counters, message.status.bundle_id) == ({"ok": number}, "b")
                assert (message.status.journal_id, message.status.journal) == (publisher.boot_id, "none")


def test_who_subscribes_again_and_again_is_not_answered_each_time(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    with Outlet("tcp://127.0.0.1:*", heartbeat_s=3600.0) as outlet, Publisher(outlet, camera="cam0") as publisher:
        publisher.status("running", {})
        rude = context.socket(zmq.XSUB)
        rude.setsockopt(zmq.SNDHWM, 0)
        rude.connect(outlet.endpoint)
        for _ in range(1000):
            rude.send(b"\x01redi/status/")
            rude.send(b"\x00redi/status/")
        rude.send(b"\x01redi/status/")
        answers = 0
        while rude.poll(500):
            rude.recv_multipart()
            answers += 1
        assert 1 <= answers < 100


def test_heartbeats_go_on_while_nothing_happens(make_event: MakeEvent) -> None:
    outlet = Outlet("tcp://127.0.0.1:*", heartbeat_s=0.05)
    with outlet, Publisher(outlet, camera="cam0") as publisher, Subscriber(outlet.endpoint) as subscriber:
        publisher.status("running", {})
        publish(publisher, make_event)
        seen: list[int] = []
        while len(seen) < 5:
            message = subscriber.receive(10.0)
            assert message is not None
            if isinstance(message, StatusMessage):
                seen.append(message.status.at_ns)
        assert seen == sorted(set(seen))


def test_a_status_never_tells_of_events_that_come_after_it(make_event: MakeEvent) -> None:
    outlet = Outlet("tcp://127.0.0.1:*", heartbeat_s=0.001)
    with outlet, Publisher(outlet, camera="cam0") as publisher, Subscriber(outlet.endpoint) as subscriber:
        assert outlet.wait_for_subscriber(10.0)
        publisher.settle()
        publisher.status("running", {})

        def line() -> None:
            for _ in range(1000):
                publish(publisher, make_event)

        thread = threading.Thread(target=line)
        thread.start()
        last = 0
        while last < 1000:
            message = subscriber.receive(10.0)
            assert message is not None
            if isinstance(message, EventMessage):
                last = message.event.seq
            else:
                assert message.status.last_seq <= last
        thread.join()


def test_an_event_is_kept_before_it_is_sent(
    make_event: MakeEvent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    append, send = Journal.append, Outlet.send

    def noted_append(journal: Journal, rows: Sequence[Row]) -> JournalState:
        state = append(journal, rows)
        done.append(f"journal {len(rows)}")
        return state

    def noted_send(outlet: Outlet, parts: Sequence[bytes]) -> None:
        done.append("socket")
        send(outlet, parts)

    monkeypatch.setattr(Journal, "append", noted_append)
    monkeypatch.setattr(Outlet, "send", noted_send)
    with Journal(tmp_path / "cam0") as journal:
        with Publisher("tcp://127.0.0.1:*", camera="cam0", journal=journal) as publisher:
            ids = {"boot_id": publisher.boot_id, "journal_id": publisher.journal_id}
            publisher.publish_all([(make_event(**ids, seq=publisher.next_seq()), b"") for _ in range(3)])
            assert publisher.last_seq == 3
        assert done == ["journal 3", "socket", "socket", "socket"]
        with Publisher("tcp://127.0.0.1:*", camera="cam0", journal=journal) as publisher:
            assert (publisher.last_seq, publisher.next_seq()) == (3, 4)


def test_closing_lets_the_last_events_leave(make_event: MakeEvent) -> None:
    publisher = Publisher("tcp://127.0.0.1:*", camera="cam0")
    with Subscriber(publisher.endpoint) as subscriber:
        publisher.settle()
        for _ in range(2000):
            publish(publisher, make_event, b"0" * 2000)
        publisher.close()
        for seq in range(1, 2001):
            message = subscriber.receive(10.0)
            assert isinstance(message, EventMessage)
            assert message.event.seq == seq


def test_every_run_has_its_own_boot_id() -> None:
    boots = set()
    for _ in range(3):
        with Publisher("tcp://127.0.0.1:*", camera="cam0") as publisher:
            boots.add(publisher.boot_id)
    assert len(boots) == 3
    assert all(len(boot) == 16 and int(boot, 16) >= 0 for boot in boots)


def test_a_stalled_subscriber_delays_nobody(make_event: MakeEvent, context: zmq.Context[zmq.Socket[bytes]]) -> None:
    with Publisher("tcp://127.0.0.1:*", camera="cam0", hwm=10) as publisher:
        stalled = context.socket(zmq.SUB)
        stalled.setsockopt(zmq.RCVHWM, 10)
        stalled.setsockopt(zmq.RCVBUF, 4096)
        stalled.subscribe("")
        stalled.connect(publisher.endpoint)
        with Subscriber(publisher.endpoint) as subscriber:
            publisher.settle()
            for seq in range(1, 301):
                publish(publisher, make_event, b"0" * 100_000)
                message = subscriber.receive(10.0)
                assert isinstance(message, EventMessage)
                assert message.event.seq == seq


def test_subscriptions_and_garbage_from_clients_do_no_harm(
    make_event: MakeEvent, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    with Publisher("tcp://127.0.0.1:*", camera="cam0") as publisher:
        rude = context.socket(zmq.XSUB)
        rude.connect(publisher.endpoint)
        for number in range(3000):
            rude.send(b"\x01topic%d" % number)
        rude.send(b"\x01" + b"x" * 100_000)
        rude.send(b"hello")
        host, port = publisher.endpoint.removeprefix("tcp://").split(":")
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(os.urandom(5000))
        with Subscriber(publisher.endpoint) as subscriber:
            publisher.settle()
            for seq in range(1, 20):
                publish(publisher, make_event)
                message = subscriber.receive(10.0)
                assert isinstance(message, EventMessage)
                assert message.event.seq == seq


def test_an_occupied_port_is_an_error_with_a_next_step() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        endpoint = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(PublishError) as caught:
            Publisher(endpoint, camera="cam0")
    assert caught.value.exit_code == 5
    assert endpoint in caught.value.problem
    assert "in use" in caught.value.problem
    assert caught.value.hint


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "5560",
        "tcp://",
        "tcp://:5560",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:port",
        "tcp://127.0.0.1:65536",
        "tcp://127.0.0.1:-1",
        "tcp://192.0.2.1:5560",
        "tcp://no.such.host.invalid:5560",
        "udp://127.0.0.1:5560",
        "ipc://",
        "ipc://*",
        "ipc://@abstract",
        "ipc:///no/such/folder/events",
        "ipc:///" + "x" * 200,
    ],
)
def test_bad_endpoints_are_publish_errors(endpoint: str) -> None:
    with pytest.raises(PublishError) as caught:
        Publisher(endpoint, camera="cam0", insecure=True)
    assert repr(endpoint) in caught.value.problem or f"{endpoint}:" in caught.value.problem
    assert caught.value.hint
    assert "\n" not in caught.value.problem


def test_bad_camera_names_are_usage_errors() -> None:
    for name in ("", "a/b", "a\nb", "x" * 65):
        with pytest.raises(UsageError):
            Publisher("tcp://127.0.0.1:*", camera=name)


def test_localhost_and_free_ports() -> None:
    with Publisher("tcp://localhost:*", camera="cam0") as publisher:
        assert publisher.endpoint.startswith("tcp://127.0.0.1:")
        assert int(publisher.endpoint.rpartition(":")[2]) > 0


def test_an_ipc_socket_is_its_owners_alone_and_goes_with_the_station(tmp_path: Path) -> None:
    path = tmp_path / "events"
    umask = os.umask(0)
    try:
        with Publisher(f"ipc://{path}", camera="cam0"):
            mode = path.stat().st_mode
            assert stat.S_ISSOCK(mode)
            assert stat.S_IMODE(mode) == 0o600
            assert os.umask(0) == 0
    finally:
        os.umask(umask)
    assert not path.exists()


def test_a_live_station_keeps_its_ipc_socket(tmp_path: Path, make_event: MakeEvent) -> None:
    endpoint = f"ipc://{tmp_path}/events"
    with Publisher(endpoint, camera="cam0") as publisher, Subscriber(endpoint) as subscriber:
        with pytest.raises(PublishError, match="in use"):
            Publisher(endpoint, camera="cam0")
        publisher.settle()
        publish(publisher, make_event)
        assert isinstance(subscriber.receive(10.0), EventMessage)


def test_the_ipc_socket_of_a_dead_station_is_replaced(tmp_path: Path, make_event: MakeEvent) -> None:
    endpoint = f"ipc://{tmp_path}/events"
    code = f"import os, edge.events.publisher as p; p.Publisher({endpoint!r}, camera='cam0'); os._exit(9)"
    subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[3])
    assert (tmp_path / "events").exists()
    with Publisher(endpoint, camera="cam0") as publisher, Subscriber(endpoint) as subscriber:
        publisher.settle()
        publish(publisher, make_event)
        assert isinstance(subscriber.receive(10.0), EventMessage)


def test_a_file_in_the_sockets_place_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(EdgeError, match="no socket"):
        Publisher(f"ipc://{path}", camera="cam0")
    assert path.read_text() == "data"


@pytest.mark.parametrize("endpoint", ["tcp://caf\udce9:5560", "ipc:///tmp/caf\udce9", "tcp://a\n:1"])
def test_an_endpoint_that_is_no_text_is_refused(endpoint: str) -> None:
    with pytest.raises(PublishError, match="characters that no endpoint has"):
        Publisher(endpoint, camera="cam0")
