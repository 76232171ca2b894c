from __future__ import annotations

import argparse
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.commands.preview_arguments import add_preview_arguments, open_preview
from edge.errors import PublishError
from edge.events import preview as codec
from edge.events.codec import MAX_TOPIC_BYTES, MessageError
from edge.events.preview import (
    MAX_PICTURE_BYTES,
    MAX_PREVIEW_HEADER_BYTES,
    MAX_PREVIEW_SIDE,
    Preview,
    PreviewMessage,
    decode_preview,
    encode_preview,
    preview_endpoint,
)
from edge.events.preview_outlet import PreviewOutlet
from edge.events.schema import Event
from edge.events.security import ClientKeys, ServerKeys, secure_client
from edge.frames import Area, PixelFormat, Slot
from edge.inspection.result import Verdict
from edge.keys import KeyFolder, Kind, generate

MakeEvent = Callable[..., Event]
LOOPBACK = "tcp://127.0.0.1:*"
LIMIT_MS = 20_000


def header(**changes: Any) -> Preview:
    fields: dict[str, Any] = {
        "boot_id": "00112233aabbccdd",
        "journal_id": "8899aabbccddeeff",
        "seq": 7,
        "camera": "cam0",
        "source": "part.png",
        "verdict": Verdict.NG,
        "captured_at_ns": 1_767_225_600_123_456_789,
        "score": 1.25,
        "threshold": 0.75,
        "frame_size": (900, 600),
        "map_ceiling": 1.0,
    }
    return Preview(**{**fields, **changes})


def jpeg(height: int, width: int, channels: int = 3) -> bytes:
    shape = (height, width, 3)[: 2 if channels == 1 else 3]
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return bytes(cv2.imencode(".jpg", noise, (cv2.IMWRITE_JPEG_QUALITY, 100))[1].data)


def make_slot(height: int = 600, width: int = 900, pixel_format: PixelFormat = PixelFormat.BGR8) -> Slot:
    """A frame of one colour, dark on the left, whose map is 1 on the right and 0 on the left."""
    made = Slot(0, np.zeros(0, np.uint8), np.zeros((8, 16), np.float32), np.zeros((8, 2), np.uint8))
    pixels = made.shape_pixels(height, width, pixel_format)
    if pixel_format is PixelFormat.NV12:
        # The luma and chroma of some blue.
        pixels[:height], pixels[height:] = 120, np.tile([200, 90], width // 2)
        pixels[:height, : width // 2], pixels[height:, : width // 2] = 16, 128
    else:
        pixels[...] = 120 if pixel_format.channels == 1 else (200, 120, 40)
        pixels[:, : width // 2] = 0
    made.anomaly_map[:, 8:] = 1.0
    return made


class Watcher:
    def __init__(self, endpoint: str, topic: str = "redi/preview/", keys: ClientKeys | None = None) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.socket: zmq.Socket[bytes] = self.context.socket(zmq.SUB)
        self.socket.linger = 0
        # Nothing of what it asks for gets lost on this side.
        self.socket.setsockopt(zmq.SNDHWM, 0)
        if keys is not None:
            secure_client(self.socket, keys)
        self.socket.subscribe(topic)
        self.socket.connect(endpoint)

    def receive(self) -> PreviewMessage:
        assert self.socket.poll(LIMIT_MS)
        return decode_preview(self.socket.recv_multipart())

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.context.term()


def offer_until(outlet: PreviewOutlet, slot: Slot, event: Event, taken: bool = True) -> None:
    """Offer until it is taken, or is not any more: subscriptions arrive when they do."""
    pause = threading.Event()
    for _ in range(LIMIT_MS // 5):
        if outlet.offer(slot, event) is taken:
            return
        pause.wait(0.005)
    raise AssertionError


@pytest.fixture
def outlet() -> Iterator[PreviewOutlet]:
    with PreviewOutlet(LOOPBACK, ["cam0", "cam10"], rate=1e6) as made:
        yield made


@pytest.mark.parametrize("pixel_format", list(PixelFormat))
def test_who_subscribes_sees_frame_map_and_verdict(
    outlet: PreviewOutlet, make_event: MakeEvent, pixel_format: PixelFormat
) -> None:
    slot, event = make_slot(pixel_format=pixel_format), make_event(pixel_threshold=1.0)
    with Watcher(outlet.endpoint) as watcher:
        offer_until(outlet, slot, event)
        slot.pixels[...] = 255
        message = watcher.receive()
    assert message.preview == header(source="broken_large/000.png", map_ceiling=2.0)
    frame, shown = message.frame_picture(), message.map_picture()
    assert frame is not None
    assert shown is not None
    # Where colours share 2 x 2 pixels, these stay together.
    apart = pixel_format is PixelFormat.NV12 or pixel_format.bayer
    assert frame.shape == (213 if apart else 214, 320, 3)
    colour = {
        PixelFormat.BGR8: (200, 120, 40),
        PixelFormat.RGB8: (40, 120, 200),
        # 1.164 (Y - 16) and 2.017 (U - 128); -0.392 (U - 128) - 0.813 (V - 128); 1.596 (V - 128)
        PixelFormat.NV12: (255, 127, 60),
    }
    assert np.allclose(frame[100, 250], colour.get(pixel_format, (120,) * 3), atol=4)
    assert np.allclose(frame[100, 50], 0, atol=4)
    assert shown.shape == (8, 16)
    assert np.allclose(shown[4, 14], 127.5, atol=3)
    assert np.allclose(shown[4, 1], 0, atol=3)


def test_the_map_is_that_of_the_frame_alone(outlet: PreviewOutlet, make_event: MakeEvent) -> None:
    slot = make_slot()
    slot.area = Area(0, 8, 6, 8)
    slot.anomaly_map[0, 8] = np.nan
    with Watcher(outlet.endpoint) as watcher:
        offer_until(outlet, slot, make_event(pixel_threshold=None))
        message = watcher.receive()
    shown = message.map_picture()
    assert shown is not None
    assert shown.shape == (6, 8)
    assert message.preview.map_ceiling == 1.0
    assert np.all(shown[3:] > 235)


def test_a_fault_has_what_there_is(outlet: PreviewOutlet, make_event: MakeEvent) -> None:
    slot = make_slot()
    with Watcher(outlet.endpoint) as watcher:
        offer_until(outlet, slot, make_event(verdict=Verdict.FAULT, score=None, reason="covered"))
        message = watcher.receive()
        assert (message.preview.reason, message.map_picture()) == ("covered", None)
        assert message.frame_picture() is not None
        slot.shape_pixels(0, 0, PixelFormat.BGR8)
        offer_until(outlet, slot, make_event(verdict=Verdict.FAULT, frame_size=(0, 0)))
        message = watcher.receive()
        assert (message.frame_picture(), message.map_picture()) == (None, None)


def test_nothing_is_made_while_nobody_watches_that_camera(outlet: PreviewOutlet, make_event: MakeEvent) -> None:
    slot, one, ten = make_slot(), make_event(), make_event(camera="cam10")
    assert not outlet.offer(slot, one)
    with Watcher(outlet.endpoint, "redi/preview/cam10") as watcher:
        offer_until(outlet, slot, ten)
        assert not outlet.offer(slot, one)
        assert watcher.receive().preview.camera == "cam10"
    offer_until(outlet, slot, ten, taken=False)
    assert not outlet.offer(slot, make_event(camera="unknown"))
    assert outlet.failed == 0


def test_at_most_so_many_per_second(make_event: MakeEvent) -> None:
    with PreviewOutlet(LOOPBACK, ["cam0"], rate=1 / 3600) as outlet, Watcher(outlet.endpoint) as watcher:
        offer_until(outlet, make_slot(), make_event())
        assert not outlet.offer(make_slot(), make_event())
        watcher.receive()
        assert outlet.sent == 1


def test_a_subscriber_that_reads_nothing_holds_nobody_up(outlet: PreviewOutlet, make_event: MakeEvent) -> None:
    noise = make_slot()
    noise.pixels[...] = np.random.default_rng(0).integers(0, 256, noise.pixels.shape)
    with Watcher(outlet.endpoint) as stuck, Watcher(outlet.endpoint) as watcher:
        stuck.socket.setsockopt(zmq.RCVHWM, 1)
        for seq in range(1, 30):
            offer_until(outlet, noise, make_event(seq=seq))
            while watcher.socket.poll(0):
                watcher.receive()
        offer_until(outlet, noise, make_event(seq=1000))
        while watcher.receive().preview.seq != 1000:
            offer_until(outlet, noise, make_event(seq=1000))


def test_subscriptions_without_end_fill_no_memory(outlet: PreviewOutlet, make_event: MakeEvent) -> None:
    with Watcher(outlet.endpoint, "redi/preview/cam0") as watcher:
        for number in range(300):
            watcher.socket.subscribe(f"redi/preview/other{number}")
        watcher.socket.subscribe("redi/preview/cam10")
        offer_until(outlet, make_slot(), make_event(camera="cam10"))
        assert len(outlet._subscribed) <= 2


def test_a_message_that_is_none_ends_nobody(outlet: PreviewOutlet, make_event: MakeEvent) -> None:
    context: zmq.Context[Any] = zmq.Context()
    with context.socket(zmq.XSUB) as rude, Watcher(outlet.endpoint) as watcher:
        rude.linger = 0
        rude.connect(outlet.endpoint)
        for data in (b"", b"\x01", b"\x02x", b"\xff" * 300, b"\x00redi/preview/cam0"):
            rude.send_multipart([data, b"more"])
        offer_until(outlet, make_slot(), make_event())
        watcher.receive()
    context.term()


def test_an_ipc_socket_is_its_owners_alone_and_goes(tmp_path: Path, make_event: MakeEvent) -> None:
    endpoint = preview_endpoint(f"ipc://{tmp_path}/events")
    with PreviewOutlet(endpoint, ["cam0"]) as outlet, Watcher(endpoint) as watcher:
        path = tmp_path / "events.preview"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        offer_until(outlet, make_slot(), make_event())
        watcher.receive()
        with pytest.raises(PublishError, match="in use"):
            PreviewOutlet(endpoint, ["cam0"])
    assert not path.exists()
    outlet.close()
    assert not outlet.offer(make_slot(), make_event())


def test_keys_and_exposure(tmp_path: Path, make_event: MakeEvent) -> None:
    with pytest.raises(PublishError, match="reached from other machines"):
        PreviewOutlet("tcp://0.0.0.0:*", ["cam0"])
    folder = KeyFolder(tmp_path / "keys")
    folder.make("station", Kind.CONNECT)
    station, client = folder.pair(Kind.CONNECT, "station"), generate(Kind.CONNECT, "hmi")
    folder.allow(client.public)
    with ExitStack() as stack:
        outlet = stack.enter_context(PreviewOutlet(LOOPBACK, ["cam0"], keys=ServerKeys(station, folder)))
        stranger = stack.enter_context(Watcher(outlet.endpoint))
        watcher = stack.enter_context(Watcher(outlet.endpoint, keys=ClientKeys(client, station.public)))
        offer_until(outlet, make_slot(), make_event())
        watcher.receive()
        assert not stranger.socket.poll(0)


def test_endpoints() -> None:
    assert preview_endpoint("tcp://127.0.0.1:5560") == "tcp://127.0.0.1:5562"
    assert preview_endpoint("ipc:///run/redi") == "ipc:///run/redi.preview"
    assert preview_endpoint(LOOPBACK) == LOOPBACK
    with pytest.raises(PublishError, match="no port for previews"):
        preview_endpoint("tcp://127.0.0.1:65534")


def test_the_arguments(free_port: int) -> None:
    parser = argparse.ArgumentParser()
    add_preview_arguments(parser)
    parser.add_argument("--insecure", action="store_true")
    events = f"tcp://127.0.0.1:{free_port}"
    assert open_preview(parser.parse_args([]), ["cam0"], events=events) is None
    for words, expected in (["--preview"], f"tcp://127.0.0.1:{free_port + 2}"), (["--preview", events], events):
        outlet = open_preview(parser.parse_args(words), ["cam0"], events=events)
        assert outlet is not None
        with outlet:
            assert outlet.endpoint == expected


# The codec


def test_a_message_comes_back() -> None:
    message = PreviewMessage(header(), jpeg(20, 30), jpeg(8, 16, 1))
    decoded = decode_preview(encode_preview(message))
    assert decoded == message
    frame, shown = decoded.frame_picture(), decoded.map_picture()
    assert frame is not None
    assert shown is not None
    assert (frame.shape, shown.shape) == ((20, 30, 3), (8, 16))


@pytest.mark.parametrize(
    "change",
    [
        {1: b"\x80"},
        {1: b""},
        {1: b"\xc1"},
        {1: b"\x81" * 5000},
        {1: msgspec.msgpack.encode({**msgspec.to_builtins(header()), "schema": 2})},
        {1: msgspec.msgpack.encode({**msgspec.to_builtins(header()), "seq": 0})},
        {1: msgspec.msgpack.encode({**msgspec.to_builtins(header()), "verdict": "fine"})},
        {1: b"x" * (MAX_PREVIEW_HEADER_BYTES + 1)},
        {0: b"redi/preview/cam1"},
        {0: b"redi/event/cam0"},
        {0: b"redi/preview/\xff"},
        {0: b"x" * (MAX_TOPIC_BYTES + 1)},
        {2: b"x" * (MAX_PICTURE_BYTES + 1)},
        {3: b"x" * (MAX_PICTURE_BYTES + 1)},
    ],
)
def test_what_is_no_preview_is_refused(change: dict[int, bytes]) -> None:
    parts = encode_preview(PreviewMessage(header(), b"", b""))
    for index, part in change.items():
        parts[index] = part
    with pytest.raises(MessageError):
        decode_preview(parts)


@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_other_numbers_of_parts_are_refused(count: int) -> None:
    with pytest.raises(MessageError):
        decode_preview([b"redi/preview/cam0"] * count)


def test_pictures_beyond_the_size_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    good = jpeg(MAX_PREVIEW_SIDE, MAX_PREVIEW_SIDE)
    assert len(good) < MAX_PICTURE_BYTES
    assert PreviewMessage(header(), good, b"").frame_picture() is not None
    large = jpeg(8, MAX_PREVIEW_SIDE + 1)
    at = good.index(b"\xff\xc0")
    bomb = good[: at + 5] + b"\xff\xff\xff\xff" + good[at + 9 :]
    png = bytes(cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].data)
    monkeypatch.setattr(codec.cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    for picture in (large, bomb, png, good[:at], b"\xff\xd8", b"x"):
        with pytest.raises(MessageError):
            PreviewMessage(header(), picture, b"").frame_picture()


@settings(max_examples=40)
@given(st.data())
def test_damaged_pictures_are_refused_or_of_the_size_allowed(data: st.DataObject) -> None:
    picture = bytearray(jpeg(24, 40))
    for at in data.draw(st.lists(st.integers(0, len(picture) - 1), min_size=1, max_size=5)):
        picture[at] = data.draw(st.integers(0, 255))
    try:
        frame = PreviewMessage(header(), bytes(picture), b"").frame_picture()
    except MessageError:
        return
    assert frame is not None
    assert max(frame.shape) <= MAX_PREVIEW_SIDE


@settings(max_examples=40)
@given(st.lists(st.binary(max_size=200), min_size=4, max_size=4))
def test_any_bytes_are_refused(parts: list[bytes]) -> None:
    with pytest.raises(MessageError):
        decode_preview([b"redi/preview/cam0", *parts[1:]])
