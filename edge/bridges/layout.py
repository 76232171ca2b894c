"""Both signal blocks as bytes, big-endian: for protocols that know registers or data blocks instead of names.

A block begins with one 16-bit word that holds its BOOLs, the first in bit 0 (the lowest).  UINT takes one word, the
32-bit types two, the high word first unless `low_word_first`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from edge.bridges.tags import INPUT_TAGS, OUTPUT_TAGS, Inputs, Outputs, Tag, TagType

_FORMATS = {TagType.UINT: "H", TagType.UDINT: "I", TagType.DINT: "i", TagType.REAL: "f"}


class Place(NamedTuple):
    """Where a tag is in its block: offset in words from the block's begin; the bit of a BOOL, else None."""

    tag: Tag
    word: int
    bit: int | None


def _places(tags: Sequence[Tag]) -> tuple[Place, ...]:
    places, bit, word = [], 0, 1
    for tag in tags:
        if tag.type is TagType.BOOL:
            places.append(Place(tag, 0, bit))
            bit += 1
        else:
            places.append(Place(tag, word, None))
            word += struct.calcsize(_FORMATS[tag.type]) // 2
    assert bit <= 16
    return tuple(places)


def _words(places: Sequence[Place]) -> int:
    last = places[-1]
    return last.word + struct.calcsize(_FORMATS[last.tag.type]) // 2


INPUT_PLACES = _places(INPUT_TAGS)
OUTPUT_PLACES = _places(OUTPUT_TAGS)
PLACES = INPUT_PLACES + OUTPUT_PLACES
#: Length of the block that the PLC writes, and of the one that the bridge writes, in 16-bit words.
INPUT_WORDS = _words(INPUT_PLACES)
OUTPUT_WORDS = _words(OUTPUT_PLACES)


def pack(values: Inputs | Outputs, *, low_word_first: bool = False) -> bytes:
    """Return a block's bytes, 2 x `INPUT_WORDS` or `OUTPUT_WORDS`.

    Raises:
        ValueError: a value does not fit its type; names the tag and the value.
    """
    places = INPUT_PLACES if isinstance(values, Inputs) else OUTPUT_PLACES
    block = bytearray(2 * _words(places))
    bits = 0
    for tag, word, bit in places:
        value = getattr(values, tag.field)
        if bit is not None:
            bits |= bool(value) << bit
            continue
        try:
            data = struct.pack(f">{_FORMATS[tag.type]}", value)
        except (struct.error, OverflowError) as error:
            raise ValueError(f"{tag.name} cannot be {value!r}: it is a {tag.type.value}") from error
        if low_word_first and len(data) == 4:
            data = data[2:] + data[:2]
        block[2 * word : 2 * word + len(data)] = data
    struct.pack_into(">H", block, 0, bits)
    return bytes(block)


def unpack_inputs(block: bytes, *, low_word_first: bool = False) -> Inputs:
    """Return what the PLC has written, 2 x `INPUT_WORDS` bytes."""
    return msgspec.convert(_unpack(INPUT_PLACES, block, low_word_first), Inputs)


def unpack_outputs(block: bytes, *, low_word_first: bool = False) -> Outputs:
    """Return what the bridge has written, 2 x `OUTPUT_WORDS` bytes."""
    return msgspec.convert(_unpack(OUTPUT_PLACES, block, low_word_first), Outputs)


def _unpack(places: Sequence[Place], block: bytes, low_word_first: bool) -> dict[str, bool | int | float]:
    values: dict[str, bool | int | float] = {}
    for tag, word, bit in places:
        if bit is not None:
            values[tag.field] = bool(block[1 - bit // 8] >> bit % 8 & 1)
            continue
        form = _FORMATS[tag.type]
        data = block[2 * word : 2 * word + struct.calcsize(form)]
        if low_word_first and len(data) == 4:
            data = data[2:] + data[:2]
        (values[tag.field],) = struct.unpack(f">{form}", data)
    return values


def registers(block: bytes) -> list[int]:
    """Return a block as 16-bit numbers."""
    return list(struct.unpack(f">{len(block) // 2}H", block))


def from_registers(numbers: Sequence[int]) -> bytes:
    """Return 16-bit numbers as a block."""
    return struct.pack(f">{len(numbers)}H", *numbers)


__all__ = [
    "INPUT_PLACES",
    "INPUT_WORDS",
    "OUTPUT_PLACES",
    "OUTPUT_WORDS",
    "PLACES",
    "Place",
    "from_registers",
    "pack",
    "registers",
    "unpack_inputs",
    "unpack_outputs",
]
