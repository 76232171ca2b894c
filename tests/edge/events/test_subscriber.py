from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator

import msgspec
import pytest
import zmq

from edge.errors import PublishError
from edge.events.codec import MAX_MASK_BYTES, EventMessage, encode_event
from edge.events.publisher import Publisher
from edge.events.schema import Event
from edge.events.subscriber import Subscriber

MakeEvent = Callable[..., Event]


@pytest.fixture
def sender(free_port: int) -> Iterator[zmq.Socket[bytes]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    publisher = context.socket(zmq.XPUB)
    publisher.bind(f"tcp://127.0.0.1:{free_port}")
    yield publisher
    context.destroy(0)


def endpoint_of(sender: zmq.Socket[bytes]) -> str:
    return sender.getsockopt_string(zmq.LAST_ENDPOINT)


def await_subscriptions(sender: zmq.Socket[bytes], count: int) -> None:
    for _ in range(count):
        assert sender.poll(10_000)
        sender.recv()


def test_hostile_messages_are_counted_and_skipped(sender: zmq.Socket[bytes], make_event: MakeEvent) -> None:
    good = encode_event(make_event(), b"")
    newer = msgspec.msgpack.encode({"schema": 2})
    bad = [
        [b"redi/event/"],
        [b"redi/event/cam0", b"\xc1\xff", b""],
        [b"redi/event/\xff\xfe", good[1], b""],
        [b"redi/event/cam0", *[b""] * 5000],
        [b"redi/status/cam0", os.urandom(1000)],
        [b"redi/event/cam0", newer, b""],
    ]
    with Subscriber(endpoint_of(sender)) as subscriber:
        await_subscriptions(sender, 2)
        for parts in bad:
            sender.send_multipart(parts)
        sender.send_multipart(good)
        message = subscriber.receive(10.0)
        assert isinstance(message, EventMessage)
        assert message.event == make_event()
        assert subscriber.rejected == len(bad)
        assert "schema 2 is newer" in subscriber.last_rejection


def test_a_flood_of_garbage_does_not_outlast_the_time_out(sender: zmq.Socket[bytes]) -> None:
    with Subscriber(endpoint_of(sender)) as subscriber:
        await_subscriptions(sender, 2)
        ended = threading.Event()

        def flood() -> None:
            while not ended.is_set():
                sender.send_multipart([b"redi/event/cam0", b"garbage", b""])

        thread = threading.Thread(target=flood)
        thread.start()
        try:
            assert subscriber.receive(0.2) is None
        finally:
            ended.set()
            thread.join()
        assert subscriber.rejected > 0


def test_a_message_beyond_the_limit_costs_the_connection_but_not_the_subscriber(
    sender: zmq.Socket[bytes], make_event: MakeEvent
) -> None:
    good = encode_event(make_event(), b"")
    with Subscriber(endpoint_of(sender)) as subscriber:
        await_subscriptions(sender, 2)
        sender.send_multipart([*good[:2], bytes(MAX_MASK_BYTES + 1)])
        received: list[object] = []
        thread = threading.Thread(target=lambda: received.append(subscriber.receive(20.0)))
        thread.start()
        # Subscribed to twice, unsubscribed from twice, subscribed to again.
        await_subscriptions(sender, 4)
        sender.send_multipart(good)
        thread.join()
        assert received == [EventMessage(make_event(), b"")]
        assert subscriber.rejected == 1
        assert "limit" in subscriber.last_rejection


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH_9.2\r\n" * 10, b"", b"\xff" + bytes(8) + b"\x7f\x03\x00NULL"])
def test_another_protocol_at_the_endpoint_is_outlived(greeting: bytes, free_port: int, make_event: MakeEvent) -> None:
    listener = socket.create_server(("127.0.0.1", free_port))
    endpoint = f"tcp://127.0.0.1:{free_port}"
    with Subscriber(endpoint) as subscriber:
        peer, _ = listener.accept()
        peer.sendall(greeting)
        assert subscriber.receive(0.1) is None
        assert not subscriber.connected
        peer.close()
        listener.close()
        assert subscriber.receive(0.1) is None
        with Publisher(endpoint, camera="cam0") as publisher:
            # The connections of another program that are still closing must not delay this one.
            assert subscriber.receive(0.5) is None
            publisher.settle()
            publisher.publish(make_event(), b"")
            assert isinstance(subscriber.receive(10.0), EventMessage)
            assert subscriber.connected


def test_only_the_asked_for_camera(sender: zmq.Socket[bytes], make_event: MakeEvent) -> None:
    with Subscriber(endpoint_of(sender), camera="cam1") as subscriber:
        await_subscriptions(sender, 2)
        for camera in ("cam0", "cam10", "cam1"):
            sender.send_multipart(encode_event(make_event(camera=camera), b""))
        message = subscriber.receive(10.0)
        assert isinstance(message, EventMessage)
        assert message.event.camera == "cam1"
        assert subscriber.rejected == 0


def test_a_subscriber_outlives_its_station(free_port: int, make_event: MakeEvent) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port}"
    boots = []
    with Subscriber(endpoint) as subscriber:
        for _ in range(2):
            received: list[object] = []
            thread = threading.Thread(target=lambda: received.append(subscriber.receive(20.0)))  # noqa: B023
            thread.start()
            with Publisher(endpoint, camera="cam0") as publisher:
                publisher.settle()
                publisher.publish(make_event(boot_id=publisher.boot_id, seq=publisher.next_seq()), b"")
                thread.join()
            message = received[0]
            assert isinstance(message, EventMessage)
            assert message.event.seq == 1
            boots.append(message.event.boot_id)
        assert subscriber.receive(0.3) is None
        assert not subscriber.connected
        assert subscriber.rejected == 0
    assert len(set(boots)) == 2


def test_iterating_yields_messages(sender: zmq.Socket[bytes], make_event: MakeEvent) -> None:
    with Subscriber(endpoint_of(sender)) as subscriber:
        await_subscriptions(sender, 2)
        for seq in (1, 2, 3):
            sender.send_multipart(encode_event(make_event(seq=seq), b""))
        seqs = []
        for message in subscriber:
            assert isinstance(message, EventMessage)
            seqs.append(message.event.seq)
            if len(seqs) == 3:
                break
    assert seqs == [1, 2, 3]


@pytest.mark.parametrize("endpoint", ["", "cam0", "tcp://127.0.0.1", "tcp://a b:5560", "ipc://"])
def test_bad_endpoints_are_publish_errors(endpoint: str) -> None:
    with pytest.raises(PublishError) as caught:
        Subscriber(endpoint)
    assert caught.value.exit_code == 5
    assert caught.value.hint
