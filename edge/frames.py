"""The frame slot: the one place where a frame's bytes and its results live, from the camera to the event."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from edge.inspection.result import Inspection
    from edge.parts import Ticket

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]

#: The largest side of a frame or of the network input, in pixels.
MAX_SIDE = 16384

#: A station's slots: one each for camera, inspector and publisher, or a live camera would take back every frame
#: before it is inspected; and no more than memory should be spent on.
MIN_SLOTS, MAX_SLOTS = 3, 64


class PixelFormat(str, Enum):
    """Layout of a frame's bytes: rows of interleaved 8-bit samples."""

    BGR8 = "bgr8"
    RGB8 = "rgb8"
    MONO8 = "mono8"

    @property
    def channels(self) -> int:
        """Samples per pixel."""
        return 1 if self is PixelFormat.MONO8 else 3


@dataclass
class FrameMeta:
    """What is known of a frame beside its bytes.

    `captured_ns` is the monotonic clock (for latencies), `captured_at_ns` the wall clock (for people), both in
    nanoseconds.  `error` names why there are no usable bytes: such a frame still gets its verdict, `fault`.
    `ticket` is the triggered part that the frame shows, None where the camera runs freely.
    """

    source: str = ""
    frame_id: int = 0
    ticket: Ticket | None = None
    captured_ns: int = 0
    captured_at_ns: int = 0
    capture_ms: float = 0.0
    error: str | None = None


class Area(NamedTuple):
    """Where a frame lies on its anomaly map and mask, in whole pixels; the rest is padding."""

    top: int
    left: int
    height: int
    width: int


@dataclass
class Slot:
    """One frame slot: memory allocated once and reused for every frame that passes through it.

    `memory` is a flat, 64-byte aligned uint8 buffer.  `pixels` is the view of it that the current frame occupies,
    shape `(height, width)` for mono8 and `(height, width, 3)` otherwise, C-contiguous.  `anomaly_map` is float32
    `(H, W)` at the size of the model's canvas, `mask` is uint8 `(H, W // 8)`, rows packed as `numpy.packbits` does;
    the frame covers `area` of both, all of it where that is None.
    The ring hands a slot to one owner at a time: camera, then inspector, then publisher, then back.
    """

    index: int
    memory: U8
    anomaly_map: F32
    mask: U8
    pixels: U8 = field(default_factory=lambda: np.empty((0, 0), np.uint8))
    pixel_format: PixelFormat = PixelFormat.BGR8
    meta: FrameMeta = field(default_factory=FrameMeta)
    inspection: Inspection | None = None
    area: Area | None = None

    @property
    def frame_map(self) -> F32:
        """The part of the anomaly map that covers the frame, a view."""
        if self.area is None:
            return self.anomaly_map
        top, left, height, width = self.area
        return self.anomaly_map[top : top + height, left : left + width]

    @property
    def frame_mask(self) -> U8:
        """The part of the mask that covers the frame, one sample for each pixel: 0 or 1, of the shape of `frame_map`.

        The bits are unpacked anew at each call.
        """
        if self.area is None:
            return np.unpackbits(self.mask, axis=1)
        top, left, height, width = self.area
        return np.unpackbits(self.mask[top : top + height], axis=1)[:, left : left + width]

    def shape_pixels(self, height: int, width: int, pixel_format: PixelFormat) -> U8:
        """Point `pixels` at the first bytes of `memory` with this shape and return it, to be written in place.

        Memory grows when the frame does not fit: with cameras of one size that is never after the first frame.
        """
        channels = pixel_format.channels
        shape = (height, width) if channels == 1 else (height, width, channels)
        if self.pixels.shape != shape or self.pixel_format is not pixel_format:
            size = height * width * channels
            if size > self.memory.size:
                self.memory = aligned_bytes(size)
            self.pixels = self.memory[:size].reshape(shape)
            self.pixel_format = pixel_format
        return self.pixels


def aligned_bytes(size: int, alignment: int = 64) -> U8:
    """Return `size` zeroed bytes whose address is a multiple of `alignment`, every page touched."""
    raw = np.zeros(size + alignment, np.uint8)
    raw.fill(0)
    offset = -raw.ctypes.data % alignment
    return raw[offset : offset + size]


def aligned_f32(*shape: int) -> F32:
    """Return a zeroed, 64-byte aligned float32 array of this shape."""
    size = int(np.prod(shape))
    return aligned_bytes(size * 4).view(np.float32).reshape(shape)
