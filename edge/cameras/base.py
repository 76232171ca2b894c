"""What every camera is to the rest: something that fills frame slots."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from edge.errors import FrameError
from edge.frames import MAX_SIDE, U8, FrameMeta, PixelFormat, Slot

if TYPE_CHECKING:
    from edge.parts import Ticket

_Camera = TypeVar("_Camera", bound="Camera")


class EndOfStream(Exception):
    """There are no more frames, and that is as it should be: the last file, the end of a video."""


class Camera(ABC):
    """A source of frames, used by one thread.

    Attributes:
        name: the camera's name in events, such as `cam0`.
        live: frames come whether or not anyone is ready for them, so the newest is the one to inspect.  Otherwise
            the source waits, and no frame may be lost.
        total: how many frames there will be, where that is known.
    """

    def __init__(self, name: str, *, live: bool, total: int | None = None) -> None:
        self.name = name
        self.live = live
        self.total = total
        self._frames = 0

    @abstractmethod
    def capture(self, slot: Slot, timeout_s: float) -> bool:
        """Write the next frame into the slot.

        Every field of `slot.meta` is set.  `captured_ns` is the moment from which the frame existed or, where it is
        read from a file, its reading began; `capture_ms` is the time from then until its pixels lay in the slot.
        `frame_id` counts from 0.

        Returns:
            True with the frame in `slot.pixels`; also True for a frame that came but is unusable: then
            `slot.meta.error` says why and `slot.pixels` is empty.  False when no frame came within `timeout_s`.

        Raises:
            EndOfStream: the source has ended.
            CameraError: the camera is lost.
        """

    def expect(self, ticket: Ticket) -> None:  # noqa: B027  most cameras show what is before them
        """Note which triggered part the next frame is to show.  Called only where the source waits to be asked."""

    @property
    def holds_slot(self) -> bool:
        """Whether the slot in which no frame came may still be written to: give that one to `capture` again.

        Before anybody else gets it, `recall` it.
        """
        return False

    def recall(self) -> None:  # noqa: B027  most cameras write only within `capture`
        """Let nothing be written into a slot any more."""

    def close(self) -> None:  # noqa: B027  most files have nothing to let go of
        """Let go of the device or file.  May be called twice."""

    def __enter__(self: _Camera) -> _Camera:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _deliver(self, slot: Slot, frame: U8, source: str, started_ns: int) -> None:
        """Make a decoded frame the slot's, or a frame in error where it cannot be inspected."""
        try:
            place(slot, frame)
        except FrameError as error:
            self._stamp(slot, source, started_ns, error=error.problem)
        else:
            self._stamp(slot, source, started_ns)

    def _stamp(self, slot: Slot, source: str, started_ns: int, error: str | None = None) -> None:
        """Set every field of `slot.meta`, and empty the pixels of a frame in error: no stale ones may pass for it."""
        now_ns = time.monotonic_ns()
        if error is not None:
            slot.shape_pixels(0, 0, PixelFormat.BGR8)
        slot.meta = FrameMeta(
            source=source,
            frame_id=self._frames,
            captured_ns=started_ns,
            captured_at_ns=time.time_ns() - (now_ns - started_ns),
            capture_ms=(now_ns - started_ns) / 1e6,
            error=error,
        )
        self._frames += 1


def place(slot: Slot, frame: U8) -> None:
    """Make a decoded frame the slot's pixels: shape `(height, width)` or `(height, width, 1)` is mono8, `(…, 3)` BGR8.

    Nothing is copied where the decoder wrote into the slot's memory already.

    Raises:
        FrameError: it has other samples or channels, or is larger than any frame that can be inspected: the slot's
            memory, which is kept, does not grow for it.
    """
    if frame.dtype != np.uint8 or frame.shape[2:] not in ((), (1,), (3,)):
        raise FrameError(
            f"a frame of {frame.dtype} samples and shape {frame.shape}, but 1 or 3 channels of uint8 are needed",
            "configure the camera's pixel format",
        )
    height, width = frame.shape[:2]
    if max(height, width) > MAX_SIDE:
        raise FrameError(f"a frame of {width} x {height} pixels, up to {MAX_SIDE} a side are possible")
    mono = frame.ndim == 2 or frame.shape[2] == 1
    pixels = slot.shape_pixels(height, width, PixelFormat.MONO8 if mono else PixelFormat.BGR8)
    if frame.ctypes.data != pixels.ctypes.data:
        pixels[...] = frame.reshape(pixels.shape)
