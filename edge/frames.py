"""The frame slot: the one place where a frame's bytes and its results live, from the camera to the event."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.errors import FrameError

if TYPE_CHECKING:
    from edge.inspection.result import Inspection
    from edge.manifest import Lens
    from edge.parts import Ticket

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]

#: Bytes of a memory page: drivers that write into memory want whole ones.
PAGE = 4096

#: The largest side of a frame or of the network input, in pixels.
MAX_SIDE = 16384

#: A station's slots: one each for camera, inspector and publisher, or a live camera would take back every frame
#: before it is inspected; and no more than memory should be spent on.
MIN_SLOTS, MAX_SLOTS = 3, 64


class PixelFormat(str, Enum):
    """Layout of a frame's bytes, all of them 8-bit samples.

    `bgr8`, `rgb8` and `mono8` are rows of interleaved samples.  `nv12` is a plane of luma, one sample for each pixel,
    and below it one of chroma, an interleaved pair for each 2 x 2 pixels: ITU-R BT.601 in limited range.  `bayer_…` is
    one sample for each pixel, of the colour that the sensor's filter lets through there; the name lists the upper left
    2 x 2 pixels, row by row.
    """

    BGR8 = "bgr8"
    RGB8 = "rgb8"
    MONO8 = "mono8"
    NV12 = "nv12"
    BAYER_RGGB = "bayer_rggb"
    BAYER_BGGR = "bayer_bggr"
    BAYER_GRBG = "bayer_grbg"
    BAYER_GBRG = "bayer_gbrg"

    @property
    def channels(self) -> int:
        """Samples that lie side by side for each pixel of a row."""
        return 3 if self in (PixelFormat.BGR8, PixelFormat.RGB8) else 1

    @property
    def bayer(self) -> str:
        """The colours of the upper left 2 x 2 pixels of a Bayer frame, such as `rggb`; else empty."""
        return self.value[6:] if self.value.startswith("bayer_") else ""

    def shape(self, height: int, width: int) -> tuple[int, ...]:
        """Return the shape of the bytes of a frame of this many pixels.

        Raises:
            FrameError: there are no frames of this format and size.
        """
        if self is PixelFormat.NV12 and (height % 2 or width % 2):
            raise FrameError(f"a frame of {width} x {height} pixels cannot be nv12: both must be even")
        if self.bayer and 1 in (height, width):
            raise FrameError(f"a frame of {width} x {height} pixels cannot be {self.value}: 2 a side are the fewest")
        if self is PixelFormat.NV12:
            height += height // 2
        return (height, width) if self.channels == 1 else (height, width, self.channels)

    def size(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return the height and width in pixels of a frame whose bytes have this shape.

        Raises:
            FrameError: this is not the shape of a frame of this format.
        """
        if len(shape) == (2 if self.channels == 1 else 3):
            height = shape[0] // 3 * 2 if self is PixelFormat.NV12 else shape[0]
            if self.shape(height, shape[1]) == shape:
                return height, shape[1]
        raise FrameError(f"a frame of shape {shape} is not {self.value}", "check the camera's pixel format")


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


class Roi(NamedTuple):
    """A region of interest: the part of a frame that is inspected, in pixels of the frame."""

    x: int
    y: int
    width: int
    height: int


@dataclass
class Slot:
    """One frame slot: memory allocated once and reused for every frame that passes through it.

    `memory` is a flat, 64-byte aligned uint8 buffer, at best whole pages.  `pixels` is the view of it that the current
    frame occupies, of its format's shape: `(height, width, 3)` for bgr8 and rgb8, `(height * 3 // 2, width)` for nv12,
    else `(height, width)`; rows may lie apart where a driver wrote them.  `size` is the frame's own.  `anomaly_map` is
    float32 `(H, W)` at the size of the model's canvas, `mask` is uint8 `(H, W // 8)`, rows packed as `numpy.packbits`
    does; what is inspected of the frame covers `area` of both, all of it where that is None.
    `corrected` frames are as the model was shown them in training: the calibration's flat field and region of interest
    are not for them.  `roi` is what was inspected of the frame, None where that is all of it; `lens` is the lens whose
    distortion was taken out before, and regions and mask lie where they would be without it.
    `allocate` gives more memory where a frame does not fit, and `seat` is what the runtime that made the slot, or made
    it fit, keeps with it.
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
    corrected: bool = False
    roi: Roi | None = None
    lens: Lens | None = None
    allocate: Callable[[int], U8] = field(default=lambda size: frame_memory(size), repr=False, compare=False)
    seat: object = field(default=None, repr=False, compare=False)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frame in pixels, 0 and 0 where there is none.

        Raises:
            FrameError: `pixels` are not of the shape of their format.
        """
        return self.pixel_format.size(self.pixels.shape) if self.pixels.size else (0, 0)

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

        Raises:
            FrameError: there are no frames of this format and size.
        """
        shape = pixel_format.shape(height, width)
        if self.pixels.shape != shape or self.pixel_format is not pixel_format:
            size = math.prod(shape)
            if size > self.memory.size:
                self.memory = self.allocate(size)
            self.pixels = self.memory[:size].reshape(shape)
            self.pixel_format = pixel_format
        return self.pixels


def frame_memory(size: int) -> U8:
    """Return memory for a frame of `size` bytes: zeroed whole pages, every one touched."""
    return aligned_bytes(-(-size // PAGE) * PAGE, PAGE)


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
