"""Cameras read through OpenCV: video files, network streams and V4L2 devices."""

from __future__ import annotations

import os
import re
import threading
import time
from pathlib import Path
from typing import Any

import cv2

from edge.cameras.base import Camera, EndOfStream
from edge.errors import CameraError
from edge.files import utf8_text
from edge.frames import PixelFormat, Slot

#: A stream that cannot be reached, or gives no frame, for so long is lost.
STREAM_TIMEOUT_S = 5.0

#: V4L2 waits for a frame in the driver, by default for 10 s.  A grab that failed after at least this time met
#: silence; one that failed sooner met a device that is gone.
_SILENCE_S = 0.9

#: How long `close` waits for a grab that is still blocked in a driver.
_CLOSE_S = 1.0

# FFmpeg's own log lines on stderr would stand beside our error; read by OpenCV when it first opens a stream.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


class VideoFile(Camera):
    """Delivers every frame of a video file.

    Args:
        name: the camera's name.
        file: the video.

    Raises:
        CameraError: the file cannot be read as a video.
    """

    def __init__(self, name: str, file: Path) -> None:
        self._video = _open(str(file), cv2.CAP_FFMPEG)
        if not self._video.isOpened():
            raise CameraError(f"cannot read video {file}: truncated, damaged, or of an unknown codec")
        count = int(self._video.get(cv2.CAP_PROP_FRAME_COUNT))
        super().__init__(name, live=False, total=count if count > 0 else None)
        self._file = file
        self._shape = _announced_shape(self._video)

    def capture(self, slot: Slot, timeout_s: float) -> bool:
        """Decode the next frame into the slot; `timeout_s` does not matter, a file is always there."""
        started_ns = time.monotonic_ns()
        there, frame = self._video.read(slot.shape_pixels(*self._shape, PixelFormat.BGR8))
        if not there:
            if self._frames == 0:
                raise CameraError(f"video {self._file} holds no frame that can be decoded")
            raise EndOfStream
        self._shape = frame.shape[:2]
        self._deliver(slot, frame, f"{self._file.name}#{self._frames:06d}", started_ns)
        return True

    def close(self) -> None:
        """Close the file."""
        self._video.release()


class LiveCamera(Camera):
    """Delivers the newest frame of a device or a stream.

    A grab can block in a driver or a socket for longer than any time-out, so it runs in a thread of its own; the
    thread never touches a slot, so that a late frame cannot be written into memory that has another owner by then.
    The frame is decoded into the slot by the caller, while the thread waits for the next request.

    Args:
        name: the camera's name.
        video: the opened capture; it belongs to the camera from here on.
        label: what the frames' source names and the errors call it.
        silence_s: a grab that fails after at least so long is a time-out, not a loss; None where any failure is one.
    """

    def __init__(self, name: str, video: Any, label: str, silence_s: float | None = None) -> None:
        super().__init__(name, live=True)
        self._video = video
        self._label = label
        self._silence_s = silence_s
        self._shape = _announced_shape(video)
        self._change = threading.Condition()
        self._wanted = False
        self._grabbed_ns: int | None = None
        self._lost = False
        self._closed = False
        # A daemon: a driver that never returns must not keep the process alive.
        self._thread = threading.Thread(target=self._grab, name=f"grab-{name}", daemon=True)
        self._thread.start()

    def capture(self, slot: Slot, timeout_s: float) -> bool:
        """Wait for the device's next frame and decode it into the slot."""
        # The lock is held while decoding: the thread is idle then, and `close` must not pull the device away.
        with self._change:
            if self._grabbed_ns is None:
                self._wanted = True
                self._change.notify_all()
            self._change.wait_for(lambda: self._grabbed_ns is not None or self._lost or self._closed, timeout_s)
            if self._closed:
                raise CameraError(f"{self._label} is closed")
            if self._grabbed_ns is None:
                if self._lost:
                    raise CameraError(
                        f"{self._label} is lost: it gives no more frames", "check its cable, power and network"
                    )
                return False
            started_ns, self._grabbed_ns = self._grabbed_ns, None
            decoded, frame = self._video.retrieve(slot.shape_pixels(*self._shape, PixelFormat.BGR8))
        source = f"{self._label}#{self._frames:06d}"
        if not decoded or frame is None or frame.size == 0:
            self._stamp(slot, source, started_ns, error=f"{self._label} gave a frame that cannot be decoded")
            return True
        self._shape = frame.shape[:2]
        self._deliver(slot, frame, source, started_ns)
        return True

    def close(self) -> None:
        """Let go of the device; where a grab is blocked in its driver, as soon as that returns."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        self._thread.join(_CLOSE_S)

    def _grab(self) -> None:
        while self._await_request():
            began = time.monotonic()
            there = self._video.grab()
            now_ns = time.monotonic_ns()
            silent = self._silence_s is not None and time.monotonic() - began >= self._silence_s
            with self._change:
                if there:
                    self._wanted = False
                    self._grabbed_ns = now_ns
                elif not silent:
                    self._lost = True
                self._change.notify_all()
        self._video.release()

    def _await_request(self) -> bool:
        with self._change:
            self._change.wait_for(lambda: self._closed or (self._wanted and not self._lost))
            return not self._closed


def open_stream(name: str, url: str) -> LiveCamera:
    """Open a network stream: RTSP, HTTP, UDP and what else FFmpeg knows.

    Raises:
        CameraError: it cannot be reached or is no video, within `STREAM_TIMEOUT_S`.
    """
    label = _without_password(url)
    limit = int(STREAM_TIMEOUT_S * 1000)
    video = _open(url, cv2.CAP_FFMPEG, [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, limit, cv2.CAP_PROP_READ_TIMEOUT_MSEC, limit])
    if not video.isOpened():
        raise CameraError(
            f"cannot open stream {label}", "check the address, the network and the camera's user and password"
        )
    return LiveCamera(name, video, label)


def open_device(name: str, device: int | str) -> LiveCamera:
    """Open a V4L2 device by number or by path, such as `/dev/v4l/by-id/…`.

    Raises:
        CameraError: there is no such device, it is in use, or this user may not open it.
    """
    path = f"/dev/video{device}" if isinstance(device, int) else device
    video = _open(device, cv2.CAP_V4L2)
    if not video.isOpened():
        raise CameraError(f"cannot open camera {path}", why_not(Path(path)))
    return LiveCamera(name, video, path, silence_s=_SILENCE_S)


def _open(source: int | str, *settings: Any) -> Any:
    if isinstance(source, str) and utf8_text(source) != source:
        # OpenCV crashes on it.
        name = _without_password(source)
        raise CameraError(f"cannot open {name}: its name is not UTF-8", "rename it, or reach it through a link")
    return cv2.VideoCapture(source, *settings)


def _without_password(url: str) -> str:
    """Return the address without its user: a password must not get into events and logs."""
    return re.sub(r"(?<=://)[^/]*@", "", url)


def why_not(path: Path) -> str:
    """Return what to do about a device that cannot be opened."""
    if not path.exists():
        found = sorted(str(device) for device in Path("/dev").glob("video*"))
        return f"cameras on this machine: {', '.join(found) or 'none'}"
    if not os.access(path, os.R_OK | os.W_OK):
        return "this user may not open it: add the user to the group `video` and log in again"
    return "another program uses it, or it is no camera that V4L2 can capture from"


def _announced_shape(video: Any) -> tuple[int, int]:
    """Return `(height, width)` as the source announces it, a first guess of what the decoder will write."""
    height = int(video.get(cv2.CAP_PROP_FRAME_HEIGHT))
    width = int(video.get(cv2.CAP_PROP_FRAME_WIDTH))
    return (height, width) if height > 0 and width > 0 else (1, 1)
