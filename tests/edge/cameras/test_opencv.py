from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge.cameras.base import Camera, EndOfStream
from edge.cameras.open import open_camera
from edge.cameras.opencv import LiveCamera
from edge.errors import CameraError
from edge.frames import U8, PixelFormat, Slot

NewSlot = Callable[..., Slot]

#: Long enough to be a hang where it is reached.
LONG = 30.0


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Eight frames, 64x48, each brighter by 30 than the one before."""
    file = tmp_path / "line.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 25, (64, 48))
    for number in range(8):
        writer.write(np.full((48, 64, 3), 30 * number, np.uint8))
    writer.release()
    return file


def test_every_frame_of_a_video_is_decoded_into_the_slot(video: Path, new_slot: NewSlot) -> None:
    slot = new_slot()
    memory = slot.memory.ctypes.data
    with open_camera(str(video)) as camera:
        assert (camera.live, camera.total) == (False, 8)
        for number in range(8):
            assert camera.capture(slot, 1.0)
            assert slot.pixels.shape == (48, 64, 3)
            assert slot.pixel_format is PixelFormat.BGR8
            assert slot.pixels.ctypes.data == slot.memory.ctypes.data == memory
            assert abs(float(slot.pixels.mean()) - 30 * number) < 3
            assert slot.meta.source == f"line.avi#{number:06d}"
            assert slot.meta.frame_id == number
            assert slot.meta.error is None
        with pytest.raises(EndOfStream):
            camera.capture(slot, 1.0)


def test_a_slot_that_is_too_small_grows(video: Path, new_slot: NewSlot) -> None:
    slot = new_slot(frame_bytes=16)
    with open_camera(str(video)) as camera:
        assert camera.capture(slot, 1.0)
    assert slot.pixels.shape == (48, 64, 3)


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100])
def test_a_video_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.mp4").write_bytes(content)
    with pytest.raises(CameraError, match=r"x\.mp4"):
        open_camera(str(tmp_path / "x.mp4"))


class MjpegServer:
    """A network camera: frame N is filled with 20 N; between frames it waits to be told to go on."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._go = threading.Semaphore(0)
        self._connection: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self.port = self._socket.getsockname()[1]

    def send(self, frames: int) -> None:
        self._go.release(frames)

    def hang_up(self) -> None:
        self._socket.close()
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
        self._go.release(1000)
        self._thread.join(LONG)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            self._connection = self._socket.accept()[0]
            self._connection.recv(65536)
            self._connection.sendall(
                b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n"
            )
            for number in range(1000):
                self._go.acquire()
                jpeg = cv2.imencode(".jpg", np.full((48, 64, 3), 20 * (number % 12), np.uint8))[1].tobytes()
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                self._connection.sendall(head.encode() + jpeg + b"\r\n")
            self._connection.close()


def drain(camera: Camera, slot: Slot) -> None:
    while camera.capture(slot, LONG):
        pass


@pytest.fixture
def server() -> Iterator[MjpegServer]:
    server = MjpegServer()
    yield server
    server.hang_up()


def test_a_stream_that_flows_falls_silent_and_is_lost(server: MjpegServer, new_slot: NewSlot) -> None:
    slot = new_slot()
    server.send(12)
    with open_camera(f"http://user:secret@127.0.0.1:{server.port}/video") as camera:
        assert (camera.live, camera.total) == (True, None)
        seen = 0
        while camera.capture(slot, 0.5):
            assert slot.meta.frame_id == seen
            assert slot.meta.source == f"http://127.0.0.1:{server.port}/video#{seen:06d}"
            assert abs(float(slot.pixels.mean()) - 20 * seen) < 3
            assert slot.pixels.ctypes.data == slot.memory.ctypes.data
            seen += 1
        # FFmpeg hands a frame on when it sees the next one begin.
        assert seen >= 10
        assert not camera.capture(slot, 0.05)
        server.send(2)
        assert camera.capture(slot, LONG)
        assert slot.meta.frame_id == seen
        server.hang_up()
        with pytest.raises(CameraError, match="lost") as caught:
            drain(camera, slot)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("password", ["secret", "a@secret", "secret@b"])
def test_a_stream_that_cannot_be_reached_does_not_give_the_password_away(password: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(CameraError, match=f"cannot open stream http://127.0.0.1:{port}/") as caught:
        open_camera(f"http://user:{password}@127.0.0.1:{port}/")
    assert "secret" not in str(caught.value)


class StubDevice:
    """Stands in for a V4L2 capture, which needs a device: a grab blocks until the test lets it go with an outcome."""

    def __init__(self) -> None:
        self.outcomes: list[bool] = []
        self.go = threading.Semaphore(0)
        self.blocked = threading.Event()
        self.released = threading.Event()
        self.frame: U8 | None = np.full((4, 6, 3), 7, np.uint8)

    def let_go(self, outcome: bool) -> None:
        self.outcomes.append(outcome)
        self.go.release()

    def get(self, prop: int) -> float:
        return 0.0

    def grab(self) -> bool:
        self.blocked.set()
        self.go.acquire()
        return self.outcomes.pop(0)

    def retrieve(self, image: U8) -> tuple[bool, Any]:
        return self.frame is not None, self.frame

    def release(self) -> None:
        self.released.set()


@pytest.fixture
def device() -> Iterator[StubDevice]:
    device = StubDevice()
    yield device
    device.outcomes.extend([False] * 10)
    device.go.release(10)


def test_a_silent_device_is_a_time_out_and_its_late_frame_touches_no_slot(
    device: StubDevice, new_slot: NewSlot
) -> None:
    early, late = new_slot(), new_slot()
    with LiveCamera("cam0", device, "/dev/video0", silence_s=1.0) as camera:
        assert not camera.capture(early, 0.01)
        assert not camera.capture(early, 0.01)
        device.let_go(True)
        assert camera.capture(late, LONG)
        assert not early.memory.any()
        assert (late.pixels == 7).all()
        assert late.pixels.shape == (4, 6, 3)
        assert late.meta.source == "/dev/video0#000000"


def test_a_grab_that_fails_after_a_silence_is_tried_again(device: StubDevice, new_slot: NewSlot) -> None:
    with LiveCamera("cam0", device, "/dev/video0", silence_s=0.0) as camera:
        device.let_go(False)
        assert not camera.capture(new_slot(), 0.05)
        device.let_go(True)
        assert camera.capture(new_slot(), LONG)


def test_a_grab_that_fails_at_once_is_a_loss(device: StubDevice, new_slot: NewSlot) -> None:
    with LiveCamera("cam0", device, "/dev/video0", silence_s=LONG) as camera:
        device.let_go(False)
        for _ in range(2):
            with pytest.raises(CameraError, match="/dev/video0 is lost"):
                camera.capture(new_slot(), LONG)


def test_a_frame_that_cannot_be_decoded_is_in_error(device: StubDevice, new_slot: NewSlot) -> None:
    slot = new_slot()
    with LiveCamera("cam0", device, "/dev/video0") as camera:
        device.frame = None
        device.let_go(True)
        assert camera.capture(slot, LONG)
        assert "/dev/video0" in str(slot.meta.error)
        assert slot.pixels.size == 0
        device.frame = np.full((4, 6), 9, np.uint8)
        device.let_go(True)
        assert camera.capture(slot, LONG)
        assert slot.meta.error is None
        assert (slot.pixel_format, slot.pixels.shape) == (PixelFormat.MONO8, (4, 6))


def test_closing_does_not_wait_for_a_driver_that_hangs(device: StubDevice, new_slot: NewSlot) -> None:
    camera = LiveCamera("cam0", device, "/dev/video0")
    assert not camera.capture(new_slot(), 0.01)
    assert device.blocked.wait(LONG)
    camera.close()
    assert not device.released.is_set()
    with pytest.raises(CameraError, match="closed"):
        camera.capture(new_slot(), LONG)
    device.let_go(True)
    assert device.released.wait(LONG)


@pytest.mark.parametrize(
    "frame", [np.zeros((4, 6), np.uint16), np.zeros((4, 6, 2), np.uint8), np.zeros((4, 6, 4), np.uint8)]
)
def test_a_frame_of_other_samples_is_in_error_and_the_line_goes_on(
    frame: Any, device: StubDevice, new_slot: NewSlot
) -> None:
    slot = new_slot()
    with LiveCamera("cam0", device, "/dev/video0") as camera:
        device.frame = frame
        device.let_go(True)
        assert camera.capture(slot, LONG)
        assert str(frame.dtype) in str(slot.meta.error)
        assert str(frame.shape) in str(slot.meta.error)
        assert slot.pixels.size == 0
        device.frame = np.full((4, 6, 1), 9, np.uint8)
        device.let_go(True)
        assert camera.capture(slot, LONG)
        assert (slot.meta.error, slot.meta.frame_id, slot.pixels.shape) == (None, 1, (4, 6))


def test_a_video_whose_name_is_no_text_is_refused(video: Path) -> None:
    odd = video.rename(video.with_name(os.fsdecode(b"caf\xe9.avi")))
    with pytest.raises(CameraError, match="not UTF-8"):
        open_camera(str(odd))
