"""Between events and the parts of a ZeroMQ message.  Whatever comes in is bounded and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge.events.rle import MAX_PIXELS, decode_mask
from edge.events.schema import EVENT_TOPIC, SCHEMA_VERSION, STATUS_TOPIC, Event, Status

#: Largest accepted parts, in bytes.  A part beyond the last of them is refused by ZeroMQ before it is in
#: memory.
MAX_TOPIC_BYTES = 1024
MAX_HEADER_BYTES = 1 << 20
MAX_MASK_BYTES = 16 << 20


class MessageError(ValueError):
    """A message that is no event and no status of ours, or one of a newer schema."""


@dataclass(frozen=True)
class EventMessage:
    """An event as received: the header and the mask's compressed counts."""

    event: Event
    mask: bytes

    def mask_array(self) -> NDArray[np.bool_]:
        """Return the mask, shape `(height, width)` of the event's `mask_size`.

        Raises:
            ValueError: the counts do not describe a mask of that size.
        """
        return decode_mask(self.mask, self.event.mask_size)


@dataclass(frozen=True)
class StatusMessage:
    """A status as received."""

    status: Status


Message = EventMessage | StatusMessage


class _Envelope(msgspec.Struct):
    """The one field that every schema has."""

    schema: int


def _plain(value: Any) -> Any:
    # Scores and areas come from NumPy; a NumPy scalar is as good as a number.
    if isinstance(value, np.generic):
        return value.item()
    raise NotImplementedError(f"an event cannot carry a {type(value).__name__}")


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)
_json_encoder = msgspec.json.Encoder(enc_hook=_plain)
_envelope_decoder = msgspec.msgpack.Decoder(_Envelope)
_event_decoder = msgspec.msgpack.Decoder(Event)
_status_decoder = msgspec.msgpack.Decoder(Status)

_Header = TypeVar("_Header", Event, Status)


def encode_event(event: Event, mask: bytes) -> list[bytes]:
    """Return the message's parts: topic, header, mask."""
    return [(EVENT_TOPIC + event.camera).encode(), _encoder.encode(event), mask]


def encode_status(status: Status) -> list[bytes]:
    """Return the message's parts: topic, header."""
    return [(STATUS_TOPIC + status.camera).encode(), _encoder.encode(status)]


def decode_message(parts: Sequence[bytes]) -> Message:
    """Decode a received message.  Fields that this release does not know are ignored.

    Raises:
        MessageError: says what is wrong with it.
    """
    if not parts or len(parts[0]) > MAX_TOPIC_BYTES:
        raise MessageError("a message without a topic of acceptable length")
    try:
        topic = parts[0].decode()
    except UnicodeDecodeError as error:
        raise MessageError("a topic that is not UTF-8") from error
    if topic.startswith(EVENT_TOPIC):
        _check_parts(topic, parts, 3)
        if len(parts[2]) > MAX_MASK_BYTES:
            raise MessageError(f"{topic}: a mask of {len(parts[2])} bytes")
        event = _decode_header(topic, parts[1], _event_decoder)
        for name, (width, height) in (("frame_size", event.frame_size), ("mask_size", event.mask_size)):
            if width * height > MAX_PIXELS:
                raise MessageError(f"{topic}: {name} {width} x {height} is out of bounds")
        if event.roi is not None:
            x, y, width, height = event.roi
            if x + width > event.frame_size[0] or y + height > event.frame_size[1]:
                raise MessageError(f"{topic}: roi {event.roi} is not within the frame")
        _check_camera(topic, EVENT_TOPIC, event.camera)
        return EventMessage(event, parts[2])
    if topic.startswith(STATUS_TOPIC):
        _check_parts(topic, parts, 2)
        status = _decode_header(topic, parts[1], _status_decoder)
        _check_camera(topic, STATUS_TOPIC, status.camera)
        return StatusMessage(status)
    raise MessageError(f"unknown topic {topic!r}")


def event_to_json(message: EventMessage) -> bytes:
    """Return one JSON object on one line: every field of the event, and `mask`, its counts as a string.

    NaN and infinities, which JSON does not have, become null.
    """
    fields = msgspec.structs.asdict(message.event)
    return _json_encoder.encode({**fields, "mask": message.mask.decode("ascii", "replace")})


def _check_parts(topic: str, parts: Sequence[bytes], expected: int) -> None:
    if len(parts) != expected:
        raise MessageError(f"{topic}: {len(parts)} parts instead of {expected}")
    if len(parts[1]) > MAX_HEADER_BYTES:
        raise MessageError(f"{topic}: a header of {len(parts[1])} bytes")


def _check_camera(topic: str, prefix: str, camera: str) -> None:
    if topic != prefix + camera:
        raise MessageError(f"{topic}: the header names another camera, {camera!r}")


def _decode_header(topic: str, header: bytes, decoder: msgspec.msgpack.Decoder[_Header]) -> _Header:
    try:
        schema = _envelope_decoder.decode(header).schema
        if schema > SCHEMA_VERSION:
            raise MessageError(
                f"{topic}: schema {schema} is newer than {SCHEMA_VERSION}, the newest this release reads; "
                "install the station's release of redi-edge here"
            )
        return decoder.decode(header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"{topic}: {error}") from error
