"""Previews: small pictures of the newest frame and its anomaly map, for people who look; `docs/events.md`.

On the wire a preview is a four-part ZeroMQ message: topic, header (one msgpack map, the fields of `Preview`), frame and
map, both JPEG.  It may be lost, and is when there is no time for it: nothing counts on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import cv2
import msgspec
import numpy as np

from edge.events.codec import MAX_TOPIC_BYTES, MessageError
from edge.events.endpoint import endpoint_beside
from edge.events.schema import SCHEMA_VERSION, Count
from edge.frames import U8
from edge.inspection.result import Verdict

#: Topics start with this, followed by the camera's name.
PREVIEW_TOPIC = "redi/preview/"

#: Longest side of both pictures, in pixels.
MAX_PREVIEW_SIDE = 320
MAX_PREVIEW_HEADER_BYTES = 64 << 10
MAX_PICTURE_BYTES = 1 << 20

# JPEG markers of start-of-frame: all of C0 to CF but those for tables and arithmetic coding.
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


class Preview(msgspec.Struct, omit_defaults=False):
    """What a preview's pictures are of; `boot_id`, `journal_id` and `seq` are its event's.

    `map_ceiling` is the anomaly map's value that the map picture shows as 255, 0 being 0; null where there is no map.
    """

    boot_id: str
    journal_id: str
    seq: Annotated[int, msgspec.Meta(ge=1)]
    camera: str
    source: str
    verdict: Verdict
    captured_at_ns: int
    score: float | None
    threshold: float | None
    frame_size: tuple[Count, Count]
    map_ceiling: float | None = None
    roi: tuple[Count, Count, Count, Count] | None = None
    reason: str = ""
    schema: int = SCHEMA_VERSION


@dataclass(frozen=True)
class PreviewMessage:
    """A preview as received; a picture is empty where there is none."""

    preview: Preview
    frame: bytes
    map: bytes

    def frame_picture(self) -> U8 | None:
        """Return the frame, uint8 `(height, width, 3)` BGR, at most `MAX_PREVIEW_SIDE`; None where there is none.

        Raises:
            MessageError: it is no JPEG of such a size.
        """
        return _decode(self.frame, cv2.IMREAD_COLOR) if self.frame else None

    def map_picture(self) -> U8 | None:
        """Return the anomaly map, uint8 `(height, width)`, 255 for `map_ceiling` and above; None where there is none.

        Raises:
            MessageError: it is no JPEG of such a size.
        """
        return _decode(self.map, cv2.IMREAD_GRAYSCALE) if self.map else None


class _Envelope(msgspec.Struct):
    schema: int


_encoder = msgspec.msgpack.Encoder()
_envelope_decoder = msgspec.msgpack.Decoder(_Envelope)
_decoder = msgspec.msgpack.Decoder(Preview)


def preview_endpoint(events: str) -> str:
    """Return where the station of an event endpoint sends previews: two ports on, or `PATH.preview`.

    A free port for events (`*` or 0) means a free one here.

    Raises:
        PublishError: the endpoint is invalid, or there is no such port.
    """
    return endpoint_beside(events, 2, "preview", "no port for previews")


def encode_preview(message: PreviewMessage) -> list[bytes]:
    """Return the message's parts: topic, header, frame, map."""
    topic = (PREVIEW_TOPIC + message.preview.camera).encode()
    return [topic, _encoder.encode(message.preview), message.frame, message.map]


def decode_preview(parts: Sequence[bytes]) -> PreviewMessage:
    """Decode a received message; its pictures are looked at when they are asked for.

    Raises:
        MessageError: says what is wrong with it.
    """
    if len(parts) != 4 or len(parts[0]) > MAX_TOPIC_BYTES:
        raise MessageError("no preview: it has four parts, with a topic of acceptable length")
    if len(parts[1]) > MAX_PREVIEW_HEADER_BYTES or max(map(len, parts[2:])) > MAX_PICTURE_BYTES:
        raise MessageError("a preview that is too large")
    try:
        topic = parts[0].decode()
        schema = _envelope_decoder.decode(parts[1]).schema
        if schema > SCHEMA_VERSION:
            raise MessageError(
                f"{topic}: schema {schema} is newer than {SCHEMA_VERSION}, the newest this release reads"
            )
        preview = _decoder.decode(parts[1])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"a preview that cannot be read: {error}") from error
    if topic != PREVIEW_TOPIC + preview.camera:
        raise MessageError(f"{topic!r} is not the preview topic of {preview.camera!r}")
    return PreviewMessage(preview, parts[2], parts[3])


def _decode(jpeg: bytes, flags: int) -> U8:
    size = _jpeg_size(jpeg)
    # Before the decoder, which would make room for whatever the header says.
    if size is None or not 1 <= min(size) <= max(size) <= MAX_PREVIEW_SIDE:
        raise MessageError(f"a preview's picture is no JPEG of at most {MAX_PREVIEW_SIDE} pixels a side")
    try:
        picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise MessageError("a preview's picture is damaged") from error
    if picture is None or picture.shape[:2] != (size[1], size[0]):
        raise MessageError("a preview's picture is damaged")
    pixels: U8 = picture
    return pixels


def _jpeg_size(jpeg: bytes) -> tuple[int, int] | None:
    """Return width and height of a JPEG, from its first frame header (ITU-T T.81, B.2.2); None where it has none."""
    at = 2
    if jpeg[:2] != b"\xff\xd8":
        return None
    while at + 9 <= len(jpeg) and jpeg[at] == 0xFF:
        if jpeg[at + 1] in _FRAME_MARKERS:
            return int.from_bytes(jpeg[at + 7 : at + 9], "big"), int.from_bytes(jpeg[at + 5 : at + 7], "big")
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return None
