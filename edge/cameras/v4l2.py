"""V4L2 cameras whose driver writes each frame straight into a slot's memory: user-pointer streaming.

The driver is lent one slot at a time, the one that `capture` was given, and may write into it until the frame is there
or the stream is stopped.  Drivers that want several buffers before they deliver are lent memory of the camera's own as
well; a frame that falls into that is left out, and the next one comes into the slot.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import select
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import numpy as np

from edge.cameras import v4l2_abi as abi
from edge.cameras.base import Camera
from edge.cameras.opencv import why_not
from edge.errors import CameraError, FrameError
from edge.frames import MAX_SIDE, PAGE, PixelFormat, Slot, frame_memory

#: `ioctl(fd, request, structure)` as of `fcntl`: the structure is read and written in place.
Ioctl = Callable[[int, int, Any], object]

# Indices by which the driver knows the slots' memory; it keeps what it had to prepare for each.
_SLOT_BUFFERS = 8
_HINT = "read it through OpenCV instead, which converts what it gets: --camera {path}"


class Layout(NamedTuple):
    """What the driver agreed to deliver: `stride` bytes from row to row, `length` bytes of memory for a frame."""

    height: int
    width: int
    pixel_format: PixelFormat
    stride: int
    length: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the frame's bytes."""
        return self.pixel_format.shape(self.height, self.width)

    @property
    def used(self) -> int:
        """Bytes up to the last one of the last row."""
        return (self.shape[0] - 1) * self.stride + self.width * self.pixel_format.channels


class V4l2Camera(Camera):
    """Delivers the next frame of a V4L2 device, in the slot's own memory.

    Args:
        name: the camera's name.
        fd: the opened device, not blocking; it belongs to the camera from here on.
        path: what the frames' source names and the errors call it.
        options: `format` (V4L2's name), `width`, `height`; what is left out is as the device is set.
        ioctl: how the device is asked.

    Attributes:
        layout: what the driver agreed to.

    Raises:
        CameraError: the device cannot do this.
    """

    def __init__(self, name: str, fd: int, path: str, options: dict[str, str], ioctl: Ioctl | None = None) -> None:
        super().__init__(name, live=True)
        self._fd: int | None = fd
        self._path = path
        self._ioctl = ioctl or (lambda number, request, structure: fcntl.ioctl(number, request, structure, True))
        self._streaming = False
        self._lent: Slot | None = None
        self._indices: dict[int, int] = {}
        try:
            self.layout = self._negotiate(options)
            self._own = [frame_memory(self.layout.length) for _ in range(self._fewest() - 1)]
            self._count = self._request_buffers(_SLOT_BUFFERS + len(self._own))
        except BaseException:
            self.close()
            raise
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    @property
    def holds_slot(self) -> bool:
        """Whether the driver may still write into the slot that `capture` was given last."""
        return self._lent is not None

    def capture(self, slot: Slot, timeout_s: float) -> bool:
        """Lend the slot's memory to the driver and wait until it has written a frame into it."""
        try:
            return self._capture(slot, timeout_s)
        except CameraError:
            # What the driver held is the slots' again, before anybody else gets them.
            self.close()
            raise
        except BaseException:
            self.recall()
            raise

    def _capture(self, slot: Slot, timeout_s: float) -> bool:
        if self._fd is None:
            raise CameraError(f"{self._path} is closed")
        if self._lent is not slot:
            if self._lent is not None:
                self.recall()
            self._lend(slot)
        end = time.monotonic() + timeout_s
        while True:
            events = self._poll.poll(max(0.0, end - time.monotonic()) * 1e3)
            if not events:
                return False
            buffer = self._take_back()
            if buffer is None:
                if events[0][1] & (select.POLLERR | select.POLLHUP | select.POLLNVAL):
                    raise self._lost("it reports an error")
            elif buffer.index < len(self._own):
                self._queue(buffer.index, self._own[buffer.index].ctypes.data)
            else:
                self._lent = None
                self._hand_over(slot, buffer)
                return True

    def recall(self) -> None:
        """Stop the stream, so that nothing is written into a slot any more; `capture` starts it again."""
        self._lent = None
        if self._fd is None or not self._streaming:
            return
        self._streaming = False
        try:
            self._ioctl(self._fd, abi.STREAMOFF, ctypes.c_int(abi.VIDEO_CAPTURE))
        except OSError:
            # Closing takes everything back, whatever state the device is in.
            self._let_go()

    def close(self) -> None:
        """Stop the stream and let go of the device."""
        self.recall()
        self._let_go()

    def _let_go(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    # Before the stream

    def _negotiate(self, options: dict[str, str]) -> Layout:
        can = abi.Capability()
        self._ask(abi.QUERYCAP, can, "it is no V4L2 device")
        abilities = can.device_caps if can.capabilities & abi.CAP_DEVICE_CAPS else can.capabilities
        if not abilities & abi.CAP_VIDEO_CAPTURE or not abilities & abi.CAP_STREAMING:
            raise CameraError(f"{self._path} does not stream frames of one plane", _HINT.format(path=self._path))
        wanted = abi.Format(type=abi.VIDEO_CAPTURE)
        self._ask(abi.G_FMT, wanted, "it does not say how it is set")
        name = options.get("format") or abi.CODES.get(wanted.pixelformat) or self._offered()
        wanted.pixelformat, wanted.field = abi.CODE_OF[name], abi.FIELD_NONE
        wanted.width = int(options.get("width", wanted.width))
        wanted.height = int(options.get("height", wanted.height))
        asked = wanted.width, wanted.height
        # Rows one after the other, where the driver can.
        wanted.bytesperline = wanted.sizeimage = 0
        self._ask(abi.S_FMT, wanted, f"it cannot be set to {name}")
        given = wanted.width, wanted.height
        if wanted.pixelformat != abi.CODE_OF[name] or any(
            key in options and got != want for key, got, want in zip(("width", "height"), given, asked, strict=True)
        ):
            raise CameraError(
                f"{self._path} does not give {name} at {asked[0]} x {asked[1]}, but "
                f"{_text(wanted.pixelformat)} at {given[0]} x {given[1]}",
                f"v4l2-ctl --device {self._path} --list-formats-ext shows what it gives",
            )
        return self._check(wanted, abi.FORMATS[name])

    def _check(self, given: abi.Format, pixel_format: PixelFormat) -> Layout:
        """Return the layout that the driver states, if it can be that of a frame."""
        size = f"{given.width} x {given.height}"
        row = given.width * pixel_format.channels
        if not (0 < given.width <= MAX_SIDE and 0 < given.height <= MAX_SIDE):
            raise CameraError(f"{self._path} gives frames of {size}, 1 to {MAX_SIDE} pixels a side are possible")
        stride = given.bytesperline or row
        length = -(-given.sizeimage // PAGE) * PAGE
        layout = Layout(given.height, given.width, pixel_format, stride, length)
        try:
            fits = stride >= row and layout.used <= given.sizeimage
        except FrameError as error:
            raise CameraError(f"{self._path}: {error.problem}", "choose another width and height") from error
        if not fits:
            raise CameraError(
                f"{self._path} states {given.sizeimage} bytes in rows of {stride} for {size} pixels of "
                f"{pixel_format.value}: they cannot be",
                _HINT.format(path=self._path),
            )
        return layout

    def _offered(self) -> str:
        """Return the best of the formats that the device gives and that can be inspected."""
        found = []
        for index in range(256):
            one = abi.FormatDescription(index=index, type=abi.VIDEO_CAPTURE)
            try:
                self._ioctl(self._require_fd(), abi.ENUM_FMT, one)
            except OSError:
                break
            found.append(_text(one.pixelformat))
        for name in abi.FORMATS:
            if name in found:
                return name
        raise CameraError(
            f"{self._path} gives {', '.join(found) or 'no formats'}, of which none is {', '.join(abi.FORMATS)}",
            _HINT.format(path=self._path),
        )

    def _fewest(self) -> int:
        """Return how many buffers the driver wants before it delivers a frame."""
        control = abi.Control(id=abi.CONTROL_MIN_BUFFERS)
        try:
            self._ioctl(self._require_fd(), abi.G_CTRL, control)
        except OSError:
            return 1
        wanted: int = control.value
        return min(max(1, wanted), 16)

    def _request_buffers(self, count: int) -> int:
        request = abi.RequestBuffers(count=count, type=abi.VIDEO_CAPTURE, memory=abi.MEMORY_USERPTR)
        self._ask(abi.REQBUFS, request, "its driver cannot write into memory of ours")
        if request.count <= len(self._own):
            raise CameraError(f"{self._path} takes {request.count} buffers, too few to deliver a frame")
        granted: int = request.count
        return granted

    # The stream

    def _lend(self, slot: Slot) -> None:
        memory = slot.memory
        if memory.size < self.layout.length or memory.ctypes.data % PAGE:
            memory = slot.memory = slot.allocate(self.layout.length)
        if memory.size < self.layout.length or memory.ctypes.data % PAGE:
            raise RuntimeError(f"slot {slot.index} has no memory of whole pages")
        if not self._streaming:
            # Stopping has taken these back too.
            for index, own in enumerate(self._own):
                self._queue(index, own.ctypes.data)
        free = self._count - len(self._own)
        index = self._indices.setdefault(memory.ctypes.data, len(self._own) + len(self._indices) % free)
        self._queue(index, memory.ctypes.data)
        self._lent = slot
        if not self._streaming:
            self._streaming = True
            self._ask(abi.STREAMON, ctypes.c_int(abi.VIDEO_CAPTURE), "it does not start")

    def _queue(self, index: int, address: int) -> None:
        buffer = abi.Buffer(
            index=index,
            type=abi.VIDEO_CAPTURE,
            memory=abi.MEMORY_USERPTR,
            userptr=address,
            length=self.layout.length,
        )
        self._ask(abi.QBUF, buffer, "it takes no memory for a frame")

    def _take_back(self) -> abi.Buffer | None:
        """Return the next buffer that the driver is done with, None where there is none yet."""
        buffer = abi.Buffer(type=abi.VIDEO_CAPTURE, memory=abi.MEMORY_USERPTR)
        try:
            self._ioctl(self._require_fd(), abi.DQBUF, buffer)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EINTR):
                return None
            raise self._lost(error.strerror or str(error)) from error
        return buffer

    def _hand_over(self, slot: Slot, buffer: abi.Buffer) -> None:
        """Point the slot's pixels at what the driver has written."""
        now_ns = time.monotonic_ns()
        taken_ns = buffer.seconds * 1_000_000_000 + buffer.microseconds * 1000
        # A clock of its own says nothing here.
        if buffer.flags & abi.FLAG_CLOCK != abi.FLAG_CLOCK_MONOTONIC or not 0 < taken_ns <= now_ns:
            taken_ns = now_ns
        source = f"{self._path}#{self._frames:06d}"
        layout = self.layout
        if buffer.flags & abi.FLAG_ERROR or buffer.bytesused < layout.used:
            missing = f"{buffer.bytesused} of {layout.used} bytes of a frame"
            why = missing if buffer.bytesused < layout.used else "a frame that it calls damaged"
            self._stamp(slot, source, taken_ns, error=f"{self._path} gave {why}")
            return
        channels = layout.pixel_format.channels
        strides = (layout.stride, 1) if channels == 1 else (layout.stride, channels, 1)
        slot.pixels = np.ndarray(layout.shape, np.uint8, slot.memory, strides=strides)
        slot.pixel_format = layout.pixel_format
        self._stamp(slot, source, taken_ns)

    # Asking

    def _ask(self, request: int, structure: object, trouble: str) -> None:
        try:
            self._ioctl(self._require_fd(), request, structure)
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.ENXIO):
                raise self._lost(error.strerror or str(error)) from error
            hint = _HINT.format(path=self._path)
            if error.errno == errno.EBUSY:
                hint = "another program uses it: end that one"
            raise CameraError(f"{self._path}: {trouble}: {error.strerror or error}", hint) from error

    def _require_fd(self) -> int:
        if self._fd is None:
            raise CameraError(f"{self._path} is closed")
        return self._fd

    def _lost(self, why: str) -> CameraError:
        return CameraError(f"{self._path} is lost: {why}", "check its cable and power")


def open_v4l2(name: str, spec: str) -> V4l2Camera:
    """Open a device from `/dev/video0` or `/dev/video0?format=NV12&width=1920&height=1080`.

    Args:
        name: the camera's name.
        spec: its path or number, then options, each at most once: `format` as V4L2 names it (`NV12`, `RGGB`, `BA81`,
            `GRBG`, `GBRG`, `BGR3`, `RGB3`, `GREY`), `width` and `height` in pixels.  What is left out is as the device
            is set; a format that cannot be inspected gives way to one that can.

    Raises:
        CameraError: an unknown option, or the device is not there, is in use, or cannot do this.
    """
    path, _, query = spec.partition("?")
    options = _options(query)
    if re.fullmatch(r"[0-9]{1,3}", path):
        path = f"/dev/video{path}"
    try:
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CameraError(f"cannot open camera {path}: {reason}", why_not(Path(path))) from error
    return V4l2Camera(name, fd, path, options)


def _options(query: str) -> dict[str, str]:
    given: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in ("format", "width", "height"):
            raise CameraError(f"v4l2: no option '{key}'", "known: format, width, height")
        if key in given:
            raise CameraError(f"v4l2: option '{key}' is given twice", "give each once")
        if key == "format" and value not in abi.FORMATS:
            raise CameraError(f"v4l2: format={value}", f"one of {', '.join(abi.FORMATS)}")
        if key != "format" and not (re.fullmatch(r"[0-9]{1,5}", value) and 0 < int(value) <= MAX_SIDE):
            raise CameraError(f"v4l2: {key}={value}", f"a whole number from 1 to {MAX_SIDE} is needed")
        given[key] = value
    return given


def _text(code: int) -> str:
    """Return a format's name of four letters."""
    return "".join(chr(byte) if 32 < byte < 127 else "?" for byte in code.to_bytes(4, "little"))
