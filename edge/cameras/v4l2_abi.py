"""The part of Linux's video capture interface that `v4l2.py` uses: the requests and structures of `videodev2.h`.

Those of 64-bit systems: the size of each structure is part of its requests' numbers.
"""

from __future__ import annotations

import ctypes
from ctypes import c_char, c_int32, c_long, c_uint8, c_uint32, c_ulong

from edge.frames import PixelFormat

QUERYCAP, ENUM_FMT = 0x80685600, 0xC0405602
G_FMT, S_FMT = 0xC0D05604, 0xC0D05605
REQBUFS, QBUF, DQBUF = 0xC0145608, 0xC058560F, 0xC0585611
STREAMON, STREAMOFF = 0x40045612, 0x40045613
G_CTRL = 0xC008561B

CAP_VIDEO_CAPTURE, CAP_STREAMING, CAP_DEVICE_CAPS = 0x1, 0x04000000, 0x80000000
CONTROL_MIN_BUFFERS = 0x00980927
VIDEO_CAPTURE = 1
MEMORY_USERPTR = 2
FIELD_NONE = 1
FLAG_ERROR = 0x40
FLAG_CLOCK, FLAG_CLOCK_MONOTONIC = 0xE000, 0x2000


def _four(text: str) -> int:
    return int.from_bytes(text.encode("ascii"), "little")


#: The formats that can be inspected as they come, by V4L2's names for them, in the order of preference.
FORMATS = {
    "NV12": PixelFormat.NV12,
    "RGGB": PixelFormat.BAYER_RGGB,
    "BA81": PixelFormat.BAYER_BGGR,
    "GRBG": PixelFormat.BAYER_GRBG,
    "GBRG": PixelFormat.BAYER_GBRG,
    "BGR3": PixelFormat.BGR8,
    "RGB3": PixelFormat.RGB8,
    "GREY": PixelFormat.MONO8,
}
CODES = {_four(name): name for name in FORMATS}
CODE_OF = {name: code for code, name in CODES.items()}


class Capability(ctypes.Structure):
    """What a device is and can do."""

    _fields_ = (
        ("driver", c_char * 16),
        ("card", c_char * 32),
        ("bus_info", c_char * 32),
        *((name, c_uint32) for name in ("version", "capabilities", "device_caps")),
        ("reserved", c_uint32 * 3),
    )


class FormatDescription(ctypes.Structure):
    """One of the formats that a device gives."""

    _fields_ = (
        *((name, c_uint32) for name in ("index", "type", "flags")),
        ("description", c_char * 32),
        *((name, c_uint32) for name in ("pixelformat", "mbus_code")),
        ("reserved", c_uint32 * 3),
    )


class Format(ctypes.Structure):
    """A frame's size and the layout of its bytes."""

    _fields_ = (
        ("type", c_uint32),
        # The union that follows holds pointers in other uses, and is aligned for them.
        ("padding", c_uint32),
        *((name, c_uint32) for name in ("width", "height", "pixelformat", "field", "bytesperline", "sizeimage")),
        *((name, c_uint32) for name in ("colorspace", "priv", "flags", "ycbcr_enc", "quantization", "xfer_func")),
        ("rest", c_uint8 * 152),
    )


class RequestBuffers(ctypes.Structure):
    """How many buffers of which kind of memory there shall be."""

    _fields_ = (
        *((name, c_uint32) for name in ("count", "type", "memory", "capabilities")),
        ("flags", c_uint8),
        ("reserved", c_uint8 * 3),
    )


class Buffer(ctypes.Structure):
    """A frame's memory on its way to the driver or back; `userptr` is where it is, `length` how large."""

    _fields_ = (
        *((name, c_uint32) for name in ("index", "type", "bytesused", "flags", "field")),
        *((name, c_long) for name in ("seconds", "microseconds")),
        ("timecode", c_uint8 * 16),
        *((name, c_uint32) for name in ("sequence", "memory")),
        ("userptr", c_ulong),
        *((name, c_uint32) for name in ("length", "reserved")),
        ("request", c_int32),
    )


class Control(ctypes.Structure):
    """A device's setting."""

    _fields_ = (("id", c_uint32), ("value", c_int32))
