"""S7 communication with Siemens PLCs: we connect to the PLC, and read and write its signals in a data block.

Both signal blocks are in one data block of standard access, in the order and at the offsets that the PLC's compiler
gives to the same variables: BOOLs from bit 0 of byte 0 on, what follows at even bytes, big-endian.  A PLC may copy more
bytes than it guarantees in several steps, so nothing here relies on a request being carried out as a whole.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Annotated, TypeVar

import msgspec
from snap7 import Client
from snap7.error import S7Error, S7TimeoutError

from edge.bridges.base import Milliseconds, Plc, PlcLostError, PlcSettings, Port, Protocol
from edge.bridges.layout import INPUT_WORDS, OUTPUT_WORDS, PLACES, Place, pack, unpack_inputs
from edge.bridges.tags import Direction, Inputs, Outputs, Tag, TagType

# What goes wrong is said by the errors raised here, once.
logging.getLogger("snap7").setLevel(logging.CRITICAL)

_PLACES: dict[Tag, Place] = {place.tag: place for place in PLACES}
_INPUT_BYTES, _OUTPUT_BYTES = 2 * INPUT_WORDS, 2 * OUTPUT_WORDS
# A connection of the kind that PUT and GET have: those of programming devices and panels stay free.
_S7_BASIC = 3
_ITEM_CODE = re.compile(r"\(0x([0-9a-f]{2})\)$")
_ABSENT = "there is no such block, it is shorter, or 'Optimized block access' is set in its properties"
_REFUSED = "in the CPU's properties, 'Permit access with PUT/GET communication' must be set, and the access level full"
# Return codes of an item (one byte), and error classes with codes of a whole answer (two).
_REASONS = {
    0x03: _REFUSED,
    0x05: _ABSENT,
    0x0A: _ABSENT,
    0x8104: f"{_REFUSED}; and 'Optimized block access' not, in the block's",
    0x8404: _ABSENT,
    0xD0A1: _REFUSED,
    0xD241: _REFUSED,
}

Offset = Annotated[int, msgspec.Meta(ge=0, le=65535 - _OUTPUT_BYTES, multiple_of=2)]
_Answer = TypeVar("_Answer")


class S7Settings(PlcSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of an S7 PLC.

    Attributes:
        host: the PLC's address.
        rack, slot: of the CPU: 0 and 1 for S7-1200 and S7-1500, 0 and 2 for S7-300; S7-400 as in its hardware.
        db: number of the data block.
        from_plc: its first byte that the PLC writes.
        to_plc: its first byte that we write.
        timeout_ms: for an answer of the PLC; opening the connection may take 5 s.
    """

    host: str = "127.0.0.1"
    port: Port = 102
    rack: Annotated[int, msgspec.Meta(ge=0, le=7)] = 0
    slot: Annotated[int, msgspec.Meta(ge=0, le=31)] = 1
    db: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 100
    from_plc: Offset = 0
    to_plc: Offset = _INPUT_BYTES
    timeout_ms: Milliseconds = 500.0

    def __post_init__(self) -> None:
        if self.to_plc < self.from_plc + _INPUT_BYTES and self.from_plc < self.to_plc + _OUTPUT_BYTES:
            raise ValueError(
                f"the signals overlap: to_plc = {self.to_plc} takes {_OUTPUT_BYTES} bytes, "
                f"from_plc = {self.from_plc} takes {_INPUT_BYTES}"
            )


class S7Plc(Plc):
    """Reads and writes a PLC's data block."""

    def __init__(self, settings: S7Settings) -> None:
        self._settings = settings
        self._client = Client()
        self._client.set_connection_type(_S7_BASIC)
        self._where = f"{settings.host}:{settings.port}"
        self._last = Inputs()

    def open(self) -> None:
        """Connect."""
        settings = self._settings
        place = f"rack {settings.rack}, slot {settings.slot}"
        try:
            self._client.connect(settings.host, settings.rack, settings.slot, settings.port)
        except (S7Error, OSError) as error:
            raise PlcLostError(f"no connection to {self._where} ({place}): {error}") from error
        connection = self._client.connection
        assert connection is not None
        assert connection.socket is not None
        connection.socket.settimeout(settings.timeout_ms / 1000)
        self._last = Inputs()

    def read(self) -> Inputs:
        """Read the PLC's part of the block.

        A PLC writes the part id before or together with the trigger, but a reading may have passed the one before it
        comes to the other.  So a reading in which a trigger or a command appears is done again: what belongs to them
        was there before this one began.
        """
        inputs = self._read()
        if (inputs.trigger and not self._last.trigger) or inputs.command != self._last.command:
            inputs = self._read()
        self._last = inputs
        return inputs

    def write(self, outputs: Outputs) -> None:
        """Write our part of the block."""
        block = bytearray(_swap_bits(pack(outputs)))
        first = self._settings.to_plc
        self._ask(lambda: self._client.db_write(self._settings.db, first, block), first, len(block), "written")

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()

    def _read(self) -> Inputs:
        first = self._settings.from_plc
        block = self._ask(
            lambda: self._client.db_read(self._settings.db, first, _INPUT_BYTES), first, _INPUT_BYTES, "read"
        )
        return unpack_inputs(_swap_bits(bytes(block)))

    def _ask(self, request: Callable[[], _Answer], first: int, count: int, done: str) -> _Answer:
        what = f"DB{self._settings.db}.DBB{first} to DBB{first + count - 1} of {self._where} cannot be {done}"
        try:
            return request()
        except S7TimeoutError as error:
            raise PlcLostError(f"{what}: no answer in time") from error
        except (S7Error, OSError) as error:
            reason = _REASONS.get(_code(error))
            raise PlcLostError(f"{what}: {error}" + (f": {reason}" if reason else "")) from error


def _code(error: Exception) -> int:
    found = _ITEM_CODE.search(str(error))
    return int(found[1], 16) if found is not None else getattr(error, "error_code", None) or 0


def _swap_bits(block: bytes) -> bytes:
    """Return a block with the bytes of its first word swapped: bit 0 of the word is then bit 0 of the first byte."""
    return block[1::-1] + block[2:]


def _connect(settings: S7Settings, wake: Callable[[], None]) -> Plc:
    return S7Plc(settings)


def _address(settings: S7Settings, tag: Tag) -> str:
    _, word, bit = _PLACES[tag]
    first = settings.to_plc if tag.direction is Direction.TO_PLC else settings.from_plc
    if bit is not None:
        return f"DB{settings.db}.DBX{first + bit // 8}.{bit % 8}"
    return f"DB{settings.db}.DB{'W' if tag.type is TagType.UINT else 'D'}{first + 2 * word}"


PROTOCOL = Protocol(settings=S7Settings, connect=_connect, address=_address)
