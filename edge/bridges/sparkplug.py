"""Sparkplug B payloads, as far as an edge node needs them: metrics of basic types out, node commands in.

The wire format is protobuf with the fields of the public `sparkplug_b.proto`: of `Payload`, timestamp (1), metrics (2),
seq (3); of `Metric`, name (1), timestamp (3), datatype (4), is_historical (5), is_null (7) and the values (10 to 15).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

#: Larger ones are not read.
MAX_PAYLOAD_BYTES = 64 << 10


class DataType(IntEnum):
    """The types of metrics that we use, by Sparkplug's numbers."""

    INT64 = 4
    UINT32 = 7
    UINT64 = 8
    FLOAT = 9
    DOUBLE = 10
    BOOLEAN = 11
    STRING = 12
    DATE_TIME = 13


class Metric(NamedTuple):
    """A named value; None is Sparkplug's null.  A `DATE_TIME` is in milliseconds since 1970 UTC.

    `at_ms`: when it was so, likewise; None for the payload's time.  `historical`: told later than it could have been.
    """

    name: str
    type: DataType
    value: bool | int | float | str | None
    at_ms: int | None = None
    historical: bool = False


class Command(NamedTuple):
    """A metric that somebody else has written: its name, empty where it came by alias, and its value."""

    name: str
    value: bool | int | float | str | None


class PayloadError(ValueError):
    """What was received is no Sparkplug B payload."""


_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_INT, _LONG, _FLOAT, _DOUBLE, _BOOLEAN, _STRING = 10, 11, 12, 13, 14, 15


def encode_payload(metrics: Sequence[Metric], *, timestamp_ms: int, seq: int | None = None) -> bytes:
    """Return a payload; one without `seq` is a death certificate."""
    parts = [_number(1, timestamp_ms)]
    parts += [_bytes(2, _metric(metric, timestamp_ms)) for metric in metrics]
    if seq is not None:
        parts.append(_number(3, seq))
    return b"".join(parts)


def decode_commands(payload: bytes) -> list[Command]:
    """Return the metrics of a received payload.

    Raises:
        PayloadError: says what is wrong with it.
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise PayloadError(f"a payload of {len(payload)} bytes")
    try:
        return [_command(value) for field, value in _fields(payload) if field == 2 and isinstance(value, bytes)]
    except (struct.error, UnicodeDecodeError) as error:
        raise PayloadError(str(error)) from error


def _metric(metric: Metric, timestamp_ms: int) -> bytes:
    parts = [_bytes(1, metric.name.encode()), _number(3, timestamp_ms if metric.at_ms is None else metric.at_ms)]
    parts.append(_number(4, metric.type))
    if metric.historical:
        parts.append(_number(5, 1))
    parts.append(_number(7, 1) if metric.value is None else _value(metric.type, metric.value))
    return b"".join(parts)


def _value(kind: DataType, value: bool | int | float | str) -> bytes:
    if kind is DataType.STRING:
        return _bytes(_STRING, str(value).encode())
    assert not isinstance(value, str)
    if kind is DataType.BOOLEAN:
        return _number(_BOOLEAN, bool(value))
    if kind is DataType.FLOAT:
        return _varint(_FLOAT << 3 | _FIXED32) + struct.pack("<f", value)
    if kind is DataType.DOUBLE:
        return _varint(_DOUBLE << 3 | _FIXED64) + struct.pack("<d", value)
    # Negative numbers as their two's complement, as `long_value` has no sign.
    return _number(_INT if kind is DataType.UINT32 else _LONG, int(value) & 0xFFFF_FFFF_FFFF_FFFF)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _command(data: bytes) -> Command:
    name = ""
    value: bool | int | float | str | None = None
    for field, each in _fields(data):
        if field == 1 and isinstance(each, bytes):
            name = each.decode()
        elif field in (_INT, _LONG) and isinstance(each, int):
            value = each
        elif field == _BOOLEAN and isinstance(each, int):
            value = bool(each)
        elif field == _STRING and isinstance(each, bytes):
            value = each.decode()
        elif field == _FLOAT and isinstance(each, bytes):
            (value,) = struct.unpack("<f", each)
        elif field == _DOUBLE and isinstance(each, bytes):
            (value,) = struct.unpack("<d", each)
    return Command(name, value)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield each field's number and value; fixed-size ones are bytes."""
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        kind = key & 7
        if kind == _VARINT:
            number, at = _read_varint(data, at)
            yield key >> 3, number
            continue
        if kind == _BYTES:
            size, at = _read_varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise PayloadError(f"a field of wire type {kind}")
        if at + size > len(data):
            raise PayloadError("it ends within a field")
        yield key >> 3, data[at : at + size]
        at += size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise PayloadError("a number that does not end")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
