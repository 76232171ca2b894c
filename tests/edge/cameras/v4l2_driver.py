"""A V4L2 capture driver played in Python: buffers, states and refusals as V4L2 documents them."""

from __future__ import annotations

import ctypes
import errno
import os
import time
from collections import deque
from typing import Any

from edge.cameras import v4l2_abi as abi
from edge.frames import PAGE

REQUESTS = ("QUERYCAP", "ENUM_FMT", "G_FMT", "S_FMT", "REQBUFS", "QBUF", "DQBUF", "STREAMON", "STREAMOFF", "G_CTRL")


class Driver:
    """A capture device: what is queued is filled in order, what is filled is dequeued in order.

    The descriptor is readable as long as a filled buffer waits; when the device is unplugged it hangs up.
    """

    def __init__(self, name: str = "NV12", width: int = 64, height: int = 48, **given: Any) -> None:
        self.name, self.width, self.height = name, width, height
        self.formats: list[str] = given.pop("formats", [name])
        self.padding: int = given.pop("padding", 0)
        self.fewest: int = given.pop("fewest", 1)
        self.abilities: int = given.pop("abilities", abi.CAP_VIDEO_CAPTURE | abi.CAP_STREAMING)
        self.refuse: dict[int, int] = given.pop("refuse", {})
        self.largest: int = given.pop("largest", 10**6)
        assert not given
        # The camera closes the one that it is given.
        self.fd, self._bell = os.pipe()
        self._own = os.dup(self.fd)
        self.count = 0
        self.streaming = self.gone = False
        self.queued: deque[abi.Buffer] = deque()
        self.filled: deque[abi.Buffer] = deque()
        self.calls: list[int] = []
        self.sequence = 0
        #: Addresses that the driver was ever lent.
        self.lent: list[int] = []

    @property
    def stride(self) -> int:
        return self.width * (3 if self.name in ("BGR3", "RGB3") else 1) + self.padding

    @property
    def image_size(self) -> int:
        return self.stride * (self.height * 3 // 2 if self.name == "NV12" else self.height)

    def ioctl(self, fd: int, request: int, structure: Any) -> int:
        assert fd == self.fd
        self.calls.append(request)
        # The request's number has the size of what it reads and writes.
        assert ctypes.sizeof(structure) == request >> 16 & 0x3FFF
        if self.gone:
            self.fail(errno.ENODEV)
        if request in self.refuse:
            self.fail(self.refuse[request])
        name = next(name for name in REQUESTS if getattr(abi, name) == request)
        getattr(self, name.lower())(structure)
        return 0

    @staticmethod
    def fail(number: int) -> None:
        raise OSError(number, os.strerror(number))

    def querycap(self, can: abi.Capability) -> None:
        can.capabilities, can.device_caps = self.abilities | abi.CAP_DEVICE_CAPS, self.abilities

    def enum_fmt(self, one: abi.FormatDescription) -> None:
        if one.index >= len(self.formats):
            self.fail(errno.EINVAL)
        one.pixelformat = int.from_bytes(self.formats[one.index].encode(), "little")

    def g_fmt(self, known: abi.Format) -> None:
        assert known.type == abi.VIDEO_CAPTURE
        known.pixelformat = int.from_bytes(self.name.encode(), "little")
        known.width, known.height = self.width, self.height
        known.bytesperline, known.sizeimage = self.stride, self.image_size

    def s_fmt(self, wanted: abi.Format) -> None:
        if self.streaming or self.count:
            self.fail(errno.EBUSY)
        name = wanted.pixelformat.to_bytes(4, "little").decode()
        # A driver does what is nearest to the wish.
        self.name = name if name in self.formats else self.formats[0]
        self.width, self.height = min(wanted.width, self.largest), min(wanted.height, self.largest)
        self.g_fmt(wanted)

    def g_ctrl(self, control: abi.Control) -> None:
        assert control.id == 0x00980927
        if self.fewest == 1:
            self.fail(errno.EINVAL)
        control.value = self.fewest

    def reqbufs(self, request: abi.RequestBuffers) -> None:
        assert (request.type, request.memory) == (1, 2)
        self.count = request.count = min(request.count, 32)

    def qbuf(self, buffer: abi.Buffer) -> None:
        held = [other.index for other in (*self.queued, *self.filled)]
        if buffer.index >= self.count or buffer.index in held or buffer.memory != 2 or buffer.type != 1:
            self.fail(errno.EINVAL)
        if buffer.length < self.image_size or buffer.userptr % PAGE or buffer.length % PAGE:
            self.fail(errno.EINVAL)
        self.lent.append(buffer.userptr)
        self.queued.append(abi.Buffer.from_buffer_copy(buffer))

    def dqbuf(self, buffer: abi.Buffer) -> None:
        if not self.streaming or buffer.memory != 2 or buffer.type != 1:
            self.fail(errno.EINVAL)
        if not self.filled:
            self.fail(errno.EAGAIN)
        os.read(self._own, 1)
        ctypes.memmove(ctypes.byref(buffer), ctypes.byref(self.filled.popleft()), ctypes.sizeof(buffer))

    def streamon(self, kind: ctypes.c_int) -> None:
        assert kind.value == 1
        if not self.count:
            self.fail(errno.EINVAL)
        self.streaming = True

    def streamoff(self, kind: ctypes.c_int) -> None:
        assert kind.value == 1
        self.streaming = False
        self.queued.clear()
        for _ in range(len(self.filled)):
            os.read(self._own, 1)
        self.filled.clear()

    def expose(self, value: int, *, bytesused: int | None = None, flags: int = abi.FLAG_CLOCK_MONOTONIC) -> bool:
        """One frame, every byte of it `value`; return whether it fell into a buffer."""
        self.sequence += 1
        if not self.streaming or len(self.queued) < self.fewest:
            return False
        buffer = self.queued.popleft()
        ctypes.memset(buffer.userptr, value, self.image_size)
        now = time.monotonic_ns() // 1000
        buffer.seconds, buffer.microseconds = now // 10**6, now % 10**6
        buffer.sequence, buffer.flags = self.sequence, flags
        buffer.bytesused = self.image_size if bytesused is None else bytesused
        self.filled.append(buffer)
        os.write(self._bell, b"!")
        return True

    def unplug(self) -> None:
        self.gone = True
        os.close(self._bell)

    def close(self) -> None:
        os.close(self._own)
        if not self.gone:
            os.close(self._bell)
