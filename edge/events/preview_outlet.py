"""Sending previews: a socket and a thread of their own, which cannot slow the line.

Publish threads offer every frame.  While nobody watches a camera, or the next preview is not due, that is one look at
a flag; else the frame is copied, thinned out, and the thread does the rest.  A copy that is not taken yet is replaced.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import zmq

from edge.events.bind import serve
from edge.events.codec import MAX_TOPIC_BYTES
from edge.events.endpoint import check_endpoint
from edge.events.preview import (
    MAX_PREVIEW_SIDE,
    PREVIEW_TOPIC,
    Preview,
    PreviewMessage,
    encode_preview,
)
from edge.events.schema import Event
from edge.events.security import ServerKeys, check_exposure
from edge.frames import F32, U8, PixelFormat, Slot
from edge.images import thinned, to_bgr
from edge.inspection.result import Verdict
from edge.machine import lower_priority
from edge.supervision.pulse import Pulse, resting

DEFAULT_RATE = 5.0

# What may wait for one subscriber: of previews, only the newest is of use.
_HWM = 2
_SEND_BUFFER_BYTES = 64 << 10
_MAX_SUBSCRIPTION_BYTES = 4 * MAX_TOPIC_BYTES
_MAX_DRAINED = 1000
# Thinned out by the publish thread to at most this side, averaged to `MAX_PREVIEW_SIDE` by ours.
_COPY_SIDE = 2 * MAX_PREVIEW_SIDE
_QUALITY = 80
# An anomaly map is shown up to this multiple of the value above which a pixel is marked.
_CEILING = 2.0


@dataclass(frozen=True)
class _Copy:
    event: Event
    frame: U8 | None
    pixel_format: PixelFormat
    map: F32 | None


class _Line:
    """One camera: whether its preview is wanted, when the next is due, and the newest copy."""

    def __init__(self, camera: str) -> None:
        self.topic = (PREVIEW_TOPIC + camera).encode()
        self.wanted = False
        self.due = 0.0
        self.newest: _Copy | None = None


class PreviewOutlet:
    """Sends previews of cameras to who subscribes; nothing of it raises or waits, but for making and closing it.

    Args:
        endpoint: `tcp://ADDRESS:PORT` or `ipc://PATH`, see `preview_endpoint`.
        cameras: their names.
        rate: previews of each camera per second, at most.
        context: the station's, so that one gatekeeper serves all its sockets; its own when None.
        keys: on TCP, admit only clients that these allow.
        insecure: without keys, listen beyond loopback all the same.
        pulse: its thread's sign of life; not a critical one.

    Attributes:
        sent: previews that were made.
        failed: previews that could not be made.

    Raises:
        PublishError: the endpoint is invalid or in use, or open to other machines without keys.
        KeysError: the keys cannot be used.
    """

    def __init__(
        self,
        endpoint: str,
        cameras: Sequence[str],
        *,
        rate: float = DEFAULT_RATE,
        context: zmq.Context[Any] | None = None,
        keys: ServerKeys | None = None,
        insecure: bool = False,
        pulse: Pulse | None = None,
    ) -> None:
        check_endpoint(endpoint)
        check_exposure(endpoint, secured=keys is not None, insecure=insecure)
        self.sent = self.failed = 0
        self._lines = {camera: _Line(camera) for camera in cameras}
        self._pause_s = 1 / rate
        self._pulse = pulse
        self._closed = False
        self._subscribed: set[bytes] = set()
        self._lock = threading.Lock()
        self._own_context: zmq.Context[Any] | None = None
        if context is None:
            context = self._own_context = zmq.Context()
        self._path = None
        self._socket: zmq.Socket[bytes] = context.socket(zmq.XPUB)
        self._wake: zmq.Socket[bytes] = context.socket(zmq.PAIR)
        self._woken: zmq.Socket[bytes] = context.socket(zmq.PAIR)
        for option, value in (
            (zmq.SNDHWM, _HWM),
            (zmq.SNDBUF, _SEND_BUFFER_BYTES),
            (zmq.MAXMSGSIZE, _MAX_SUBSCRIPTION_BYTES),
        ):
            self._socket.setsockopt(option, value)
        for each in (self._socket, self._wake, self._woken):
            each.linger = 0
        wake = f"inproc://preview-{id(self)}"
        try:
            self._woken.bind(wake)
            self._wake.connect(wake)
            self._path, _ = serve(self._socket, endpoint, keys)
        except BaseException:
            self._close_sockets()
            raise
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._thread = threading.Thread(target=self._run, name="preview", daemon=True)
        self._thread.start()

    def offer(self, slot: Slot, event: Event) -> bool:
        """Take a published frame's copy, if a preview of it is wanted and due; return whether it was taken.

        May be called by one thread for each camera.
        """
        line = self._lines.get(event.camera)
        if line is None or not line.wanted:
            return False
        now = time.monotonic()
        if now < line.due:
            return False
        line.due = now + self._pause_s
        try:
            copy = _copy(slot, event)
        except (cv2.error, MemoryError):
            self.failed += 1
            return False
        with self._lock:
            if self._closed:
                return False
            was_waiting, line.newest = line.newest is not None, copy
            if not was_waiting:
                self._wake.send(b"")
        return True

    def close(self) -> None:
        """Stop and close."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._wake.send(b"")
        self._thread.join()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        self._close_sockets()

    def __enter__(self) -> PreviewOutlet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _close_sockets(self) -> None:
        for each in (self._socket, self._wake, self._woken):
            each.close(linger=0)
        if self._own_context is not None:
            self._own_context.term()

    # In the preview's thread

    def _run(self) -> None:
        lower_priority()
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._woken, zmq.POLLIN)
        while True:
            with resting(self._pulse):
                ready = dict(poller.poll())
            if self._socket in ready:
                self._drain()
            if self._woken in ready:
                self._woken.recv()
                if self._closed:
                    return
                self._send_all()

    def _send_all(self) -> None:
        for line in self._lines.values():
            with self._lock:
                copy, line.newest = line.newest, None
            if copy is not None and line.wanted:
                try:
                    parts = encode_preview(_make(copy))
                except (cv2.error, MemoryError):
                    self.failed += 1
                    continue
                self.sent += 1
                # XPUB never waits: a subscriber that is behind misses it.
                self._socket.send_multipart(parts)

    def _drain(self) -> None:
        """Follow who subscribes and who leaves: the socket tells the first of each prefix, and the last."""
        for _ in range(_MAX_DRAINED):
            if not self._socket.poll(0):
                break
            subscription = self._socket.recv_multipart()[0]
            prefix = subscription[1:]
            # No others are remembered, or a subscriber could fill the memory with them.
            if any(line.topic.startswith(prefix) for line in self._lines.values()):
                if subscription[:1] == b"\x01":
                    self._subscribed.add(prefix)
                elif subscription[:1] == b"\x00":
                    self._subscribed.discard(prefix)
        for line in self._lines.values():
            line.wanted = any(line.topic.startswith(prefix) for prefix in self._subscribed)


def _copy(slot: Slot, event: Event) -> _Copy:
    usable = slot.pixels.size and event.frame_size != (0, 0)
    frame = thinned(slot.pixels, slot.pixel_format, _COPY_SIDE) if usable else None
    # What a fault leaves in the slot's map belongs to some earlier frame.
    anomaly_map = None if event.verdict is Verdict.FAULT else _resized(slot.frame_map, _COPY_SIDE, cv2.INTER_NEAREST)
    return _Copy(event, frame, slot.pixel_format, anomaly_map)


def _make(copy: _Copy) -> PreviewMessage:
    event = copy.event
    frame = anomaly_map = b""
    ceiling = None
    if copy.frame is not None:
        frame = _jpeg(_averaged(to_bgr(copy.frame, copy.pixel_format)))
    if copy.map is not None:
        values = np.nan_to_num(_averaged(copy.map), posinf=0.0, neginf=0.0)
        ceiling = _CEILING * event.pixel_threshold if event.pixel_threshold else float(values.max(initial=0.0))
        if ceiling > 0:
            anomaly_map = _jpeg(np.rint(np.clip(values / ceiling, 0, 1) * 255).astype(np.uint8))
        else:
            anomaly_map = _jpeg(np.zeros(values.shape, np.uint8))
    header = Preview(
        boot_id=event.boot_id,
        journal_id=event.journal_id,
        seq=event.seq,
        camera=event.camera,
        source=event.source,
        verdict=event.verdict,
        captured_at_ns=event.captured_at_ns,
        score=event.score,
        threshold=event.threshold,
        frame_size=event.frame_size,
        map_ceiling=ceiling,
        roi=event.roi,
        reason=event.reason,
    )
    return PreviewMessage(header, frame, anomaly_map)


def _averaged(image: Any) -> Any:
    return _resized(image, MAX_PREVIEW_SIDE, cv2.INTER_AREA)


def _resized(image: Any, side: int, interpolation: int) -> Any:
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return image.copy()
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(image, size, interpolation=interpolation)


def _jpeg(picture: U8) -> bytes:
    return bytes(cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, _QUALITY))[1].data)
