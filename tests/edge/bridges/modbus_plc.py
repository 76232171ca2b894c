"""A PLC's memory, over real Modbus connections, at the addresses of the exported tag list."""

from __future__ import annotations

import asyncio
import csv
import io
import struct
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from typing import Any

from pymodbus.client import ModbusTcpClient
from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from edge.commands import bridge

Values = dict[str, Any]
_FORMATS = {"UINT": "H", "UDINT": "I", "DINT": "i", "REAL": "f"}


def exported_tags() -> list[dict[str, str]]:
    """What `edge-bridge tags --csv` tells a PLC programmer."""
    text = io.StringIO()
    with redirect_stdout(text):
        assert bridge.main(["tags", "--protocol", "modbus", "--csv"]) == 0
    return list(csv.DictReader(io.StringIO(text.getvalue())))


class Block:
    """The signals that one of the two writes, in registers."""

    def __init__(self, writer: str) -> None:
        self._tags = [tag for tag in exported_tags() if tag["written by"] == writer]
        words = {tag["name"]: [int(word) for word in tag["address"].split() if word.isdigit()] for tag in self._tags}
        self._places = words
        self.first = min(place[0] for place in words.values())
        self.count = max(words[tag["name"]][0] + self._length(tag) for tag in self._tags) - self.first

    @staticmethod
    def _length(tag: dict[str, str]) -> int:
        return 1 if tag["type"] == "BOOL" else struct.calcsize(_FORMATS[tag["type"]]) // 2

    def decode(self, registers: Sequence[int]) -> Values:
        values: Values = {}
        for tag in self._tags:
            place = self._places[tag["name"]]
            at = place[0] - self.first
            if tag["type"] == "BOOL":
                values[tag["name"]] = bool(registers[at] & (1 << place[1]))
            else:
                words = registers[at : at + self._length(tag)]
                values[tag["name"]] = struct.unpack(
                    ">" + _FORMATS[tag["type"]], b"".join(word.to_bytes(2, "big") for word in words)
                )[0]
        return values

    def encode(self, values: Values) -> list[int]:
        registers = [0] * self.count
        for tag in self._tags:
            place, value = self._places[tag["name"]], values.get(tag["name"], 0)
            at = place[0] - self.first
            if tag["type"] == "BOOL":
                registers[at] |= bool(value) << place[1]
            else:
                data = struct.pack(">" + _FORMATS[tag["type"]], value)
                registers[at : at + len(data) // 2] = struct.unpack(f">{len(data) // 2}H", data)
        return registers


Scan = Callable[[Values], Values]


async def end_tasks() -> None:
    """End what pymodbus leaves running."""
    # A request that came last is no task yet.
    await asyncio.sleep(0)
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class ServingPlc:
    """A PLC that serves Modbus: the bridge writes into it."""

    def __init__(self, scan: Scan, port: int = 0, period_s: float = 0.002) -> None:
        self._scan, self._period_s = scan, period_s
        self._to_plc, self._from_plc = Block("station"), Block("PLC")
        self.memory = [0] * 300
        self.writes: list[Values] = []
        self.port = port
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),), daemon=True)
        self._stop = asyncio.Event()
        self._thread.start()
        assert self._started.wait(10)

    async def _run(self) -> None:
        device = SimDevice(0, SimData(0, count=300, datatype=DataType.REGISTERS), action=self._access)
        server = ModbusTcpServer(device, address=("127.0.0.1", self.port))
        await server.serve_forever(background=True)
        listening: Any = server.transport
        self.port = listening.sockets[0].getsockname()[1]
        self._started.set()
        try:
            while not self._stop.is_set():
                seen = self._to_plc.decode(self.memory[self._to_plc.first : self._to_plc.first + self._to_plc.count])
                first = self._from_plc.first
                self.memory[first : first + self._from_plc.count] = self._from_plc.encode(self._scan(seen))
                await asyncio.sleep(self._period_s)
        finally:
            await server.shutdown()  # type: ignore[no-untyped-call]
            await end_tasks()

    async def _access(
        self, function: int, start: int, address: int, count: int, current: list[int], values: Any
    ) -> ExcCodes | None:
        if values is None:
            current[: len(self.memory)] = self.memory
        else:
            self.memory[address : address + len(values)] = values
            self.writes.append(self._to_plc.decode(self.memory[self._to_plc.first :]))
        return None

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> ServingPlc:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class PollingPlc:
    """A PLC that polls the bridge's Modbus server; its program runs on, whether or not there is a connection."""

    def __init__(self, scan: Scan, port: int, period_s: float = 0.002) -> None:
        self._scan, self._period_s = scan, period_s
        self._to_plc, self._from_plc = Block("station"), Block("PLC")
        self._client = ModbusTcpClient("127.0.0.1", port=port, timeout=1, retries=0)
        self._seen = self._to_plc.decode([0] * self._to_plc.count)
        self._written = self._from_plc.encode({})
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._run, self._communicate)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._period_s):
            self._written = self._from_plc.encode(self._scan(self._seen))

    def _communicate(self) -> None:
        while not self._stop.wait(self._period_s):
            try:
                answer = self._client.read_holding_registers(self._to_plc.first, count=self._to_plc.count)
                self._seen = self._to_plc.decode(answer.registers)
                assert not self._client.write_registers(self._from_plc.first, self._written).isError()
            except Exception:  # noqa: BLE001  as a PLC: try again in the next cycle
                self._client.close()  # type: ignore[no-untyped-call]
        self._client.close()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> PollingPlc:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def wait_for(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Return as soon as something is so."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.002)
