"""Modbus TCP: as a client that writes into the PLC, or as a server that the PLC polls.

Both signal blocks are holding registers, see `edge.bridges.layout`.  A block is always read and written by one request,
so that nobody sees half of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import msgspec
from pymodbus.client import ModbusTcpClient
from pymodbus.constants import ExcCodes
from pymodbus.exceptions import ModbusException
from pymodbus.pdu import ModbusPDU
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from edge.bridges.base import Milliseconds, Plc, PlcLostError, PlcSettings, Port, Protocol
from edge.bridges.layout import (
    INPUT_WORDS,
    OUTPUT_WORDS,
    PLACES,
    Place,
    from_registers,
    pack,
    registers,
    unpack_inputs,
)
from edge.bridges.tags import Direction, Inputs, Outputs, Tag
from edge.errors import BridgeError

# What goes wrong is said by the errors raised here, once.
logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL)

_PLACES: dict[Tag, Place] = {place.tag: place for place in PLACES}
_WRITES = frozenset({6, 16, 22, 23})

Register = Annotated[int, msgspec.Meta(ge=0, le=65535 - max(INPUT_WORDS, OUTPUT_WORDS))]


class ModbusSettings(PlcSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of a Modbus PLC.

    Attributes:
        role: `client`: we connect to the PLC and write into its registers; `server`: it connects to us.
        host: the PLC's address; as a server, the address of ours at which to listen.
        unit: the unit id of the PLC; as a server we answer every one.
        to_plc: first register of the block that we write.
        from_plc: first register of the block that the PLC writes.
        word_order: which word of a 32-bit value is in the register with the lower number.
        timeout_ms: for an answer of the PLC.
    """

    role: Literal["client", "server"] = "client"
    host: str = "127.0.0.1"
    port: Port = 502
    unit: Annotated[int, msgspec.Meta(ge=0, le=255)] = 1
    to_plc: Register = 0
    from_plc: Register = 100
    word_order: Literal["high-first", "low-first"] = "high-first"
    timeout_ms: Milliseconds = 500.0

    def __post_init__(self) -> None:
        if self.to_plc < self.from_plc + INPUT_WORDS and self.from_plc < self.to_plc + OUTPUT_WORDS:
            raise ValueError(
                f"the blocks overlap: to_plc = {self.to_plc} takes {OUTPUT_WORDS} registers, "
                f"from_plc = {self.from_plc} takes {INPUT_WORDS}"
            )

    @property
    def low_word_first(self) -> bool:
        """Whether 32-bit values have their low word first."""
        return self.word_order == "low-first"


class ModbusClient(Plc):
    """Writes into a PLC that serves Modbus TCP, and polls what it says."""

    def __init__(self, settings: ModbusSettings) -> None:
        self._settings = settings
        self._client = ModbusTcpClient(settings.host, port=settings.port, timeout=settings.timeout_ms / 1000, retries=0)
        self._where = f"{settings.host}:{settings.port}"

    def open(self) -> None:
        """Connect."""
        if not self._client.connect():  # type: ignore[no-untyped-call]
            raise PlcLostError(f"no connection to {self._where}")

    def read(self) -> Inputs:
        """Read the PLC's block."""
        first = self._settings.from_plc
        what = f"holding registers {first} to {first + INPUT_WORDS - 1} of {self._where} cannot be read"
        answer = self._ask(
            lambda: self._client.read_holding_registers(first, count=INPUT_WORDS, device_id=self._settings.unit), what
        )
        if len(answer.registers) != INPUT_WORDS:
            raise PlcLostError(f"{what}: {len(answer.registers)} came")
        return unpack_inputs(from_registers(answer.registers), low_word_first=self._settings.low_word_first)

    def write(self, outputs: Outputs) -> None:
        """Write our block."""
        first = self._settings.to_plc
        block = registers(pack(outputs, low_word_first=self._settings.low_word_first))
        self._ask(
            lambda: self._client.write_registers(first, block, device_id=self._settings.unit),
            f"holding registers {first} to {first + OUTPUT_WORDS - 1} of {self._where} cannot be written",
        )

    def close(self) -> None:
        """Disconnect."""
        self._client.close()  # type: ignore[no-untyped-call]

    def _ask(self, request: Callable[[], ModbusPDU], what: str) -> ModbusPDU:
        if not self._client.connected:
            raise PlcLostError(f"{what}: not connected")
        try:
            answer = request()
        except (ModbusException, OSError) as error:
            raise PlcLostError(f"{what}: {_reason(error)}") from error
        if answer.isError():
            code = getattr(answer, "exception_code", 0)
            name = ExcCodes(code).name.lower().replace("_", " ") if code in set(ExcCodes) else "unknown"
            raise PlcLostError(f"{what}: the PLC answers with exception {code} ({name})")
        return answer


def _reason(error: Exception) -> str:
    text = str(error).lower()
    if "no response" in text:
        return "no answer in time"
    return "the connection was closed" if "closed" in text or isinstance(error, OSError) else str(error)


class ModbusServer(Plc):
    """Serves Modbus TCP to a PLC that polls; its event loop runs in a thread of its own."""

    polled = False

    def __init__(self, settings: ModbusSettings, wake: Callable[[], None]) -> None:
        self._settings = settings
        self._wake = wake
        self._lock = threading.Lock()
        self._inputs = [0] * INPUT_WORDS
        self._outputs = registers(pack(Outputs(), low_word_first=settings.low_word_first))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._server: ModbusTcpServer | None = None
        #: The port that is served; for `port = 0`, a free one.
        self.port = settings.port

    def open(self) -> None:
        """Listen."""
        loop = self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, args=(loop,), name="modbus-server", daemon=True)
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._start(), loop).result()
        except (RuntimeError, OSError) as error:
            self.close()
            raise BridgeError(
                f"cannot listen on {self._settings.host}:{self._settings.port} for Modbus",
                "another program has this port, the address is not this machine's, or a port below 1024 needs rights",
            ) from error

    def read(self) -> Inputs:
        """Return what the PLC wrote last."""
        with self._lock:
            block = from_registers(self._inputs)
        return unpack_inputs(block, low_word_first=self._settings.low_word_first)

    def write(self, outputs: Outputs) -> None:
        """Let the next reading see this."""
        block = registers(pack(outputs, low_word_first=self._settings.low_word_first))
        with self._lock:
            self._outputs = block

    def close(self) -> None:
        """Stop listening, and close all connections."""
        if self._loop is None or self._thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = self._thread = self._server = None
        # Who connects next has written nothing yet.
        self._inputs = [0] * INPUT_WORDS

    @staticmethod
    def _serve(loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        loop.run_forever()

    async def _start(self) -> None:
        to_plc, from_plc = self._settings.to_plc, self._settings.from_plc
        device = SimDevice(
            0,
            [
                SimData(to_plc, count=OUTPUT_WORDS, datatype=DataType.REGISTERS, readonly=True),
                SimData(from_plc, count=INPUT_WORDS, datatype=DataType.REGISTERS),
            ],
            action=self._access,
        )
        self._server = ModbusTcpServer(device, address=(self._settings.host, self._settings.port))
        await self._server.serve_forever(background=True)
        listening: Any = self._server.transport
        self.port = listening.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        if self._server is not None:
            with contextlib.suppress(OSError):
                await self._server.shutdown()  # type: ignore[no-untyped-call]
        # Of each connection, the one that answers a request; the last one that came is no task yet.
        await asyncio.sleep(0)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _access(
        self,
        function: int,
        start: int,
        address: int,
        count: int,
        current: list[int],
        values: Sequence[int] | Sequence[bool] | None,
    ) -> ExcCodes | None:
        """Called before each access: bring the registers up to date, or take what is about to be written."""
        to_plc, from_plc = self._settings.to_plc - start, self._settings.from_plc
        if values is None:
            with self._lock:
                current[to_plc : to_plc + OUTPUT_WORDS] = self._outputs
            return None
        if function not in _WRITES or address < from_plc or address + len(values) > from_plc + INPUT_WORDS:
            return ExcCodes.ILLEGAL_ADDRESS
        with self._lock:
            self._inputs[address - from_plc : address - from_plc + len(values)] = map(int, values)
        self._wake()
        return None


def _connect(settings: ModbusSettings, wake: Callable[[], None]) -> Plc:
    return ModbusClient(settings) if settings.role == "client" else ModbusServer(settings, wake)


def _address(settings: ModbusSettings, tag: Tag) -> str:
    _, word, bit = _PLACES[tag]
    first = settings.to_plc if tag.direction is Direction.TO_PLC else settings.from_plc
    return f"holding register {first + word}" if bit is None else f"holding register {first + word} bit {bit}"


PROTOCOL = Protocol(settings=ModbusSettings, connect=_connect, address=_address)
