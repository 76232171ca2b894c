"""A Siemens PLC's data block, served by snap7's own server, at the addresses of the exported tag list."""

from __future__ import annotations

import csv
import io
import re
import threading
from contextlib import redirect_stdout
from typing import Any

from snap7.server import Server
from snap7.type import SrvArea
from snap7.util import (
    get_bool,
    get_dint,
    get_real,
    get_udint,
    get_uint,
    set_bool,
    set_dint,
    set_udint,
    set_uint,
)

from edge.commands import bridge
from tests.edge.bridges.modbus_plc import Scan, Values

_ADDRESS = re.compile(r"DB(\d+)\.DB[XWD](\d+)(?:\.([0-7]))?")
_GET = {"UINT": get_uint, "UDINT": get_udint, "DINT": get_dint, "REAL": get_real}
_SET: dict[str, Any] = {"UINT": set_uint, "UDINT": set_udint, "DINT": set_dint}


def exported_tags() -> list[dict[str, str]]:
    """What `edge-bridge tags --csv` tells a PLC programmer."""
    text = io.StringIO()
    with redirect_stdout(text):
        assert bridge.main(["tags", "--protocol", "s7", "--csv"]) == 0
    return list(csv.DictReader(io.StringIO(text.getvalue())))


def place(tag: dict[str, str]) -> tuple[int, int, int]:
    """A tag's data block, byte and bit."""
    found = _ADDRESS.fullmatch(tag["address"])
    assert found is not None, tag
    return int(found[1]), int(found[2]), int(found[3] or 0)


def decode(memory: bytearray, tag: dict[str, str]) -> bool | int | float:
    _, byte, bit = place(tag)
    return get_bool(memory, byte, bit) if tag["type"] == "BOOL" else _GET[tag["type"]](memory, byte)


def encode(memory: bytearray, tag: dict[str, str], value: Any) -> None:
    _, byte, bit = place(tag)
    if tag["type"] == "BOOL":
        set_bool(memory, byte, bit, bool(value))
    else:
        _SET[tag["type"]](memory, byte, value)


class S7Server:
    """A PLC: its memory, and the program that it runs, one scan each `period_s`."""

    def __init__(self, scan: Scan, port: int = 0, *, db: int = 100, size: int = 60, period_s: float = 0.002) -> None:
        self._scan, self._period_s = scan, period_s
        self._tags = exported_tags()
        self.memory = bytearray(size)
        self._server = Server(log=False)
        self._server.register_area(SrvArea.DB, db, self.memory)
        # The program sees no request half done.
        (self._lock,) = self._server.area_locks.values()
        self._server.start_to("127.0.0.1", port)
        assert self._server.server_socket is not None
        self.port: int = self._server.server_socket.getsockname()[1]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._period_s):
            with self._lock:
                seen: Values = {
                    tag["name"]: decode(self.memory, tag) for tag in self._tags if tag["written by"] == "station"
                }
                written = self._scan(seen)
                for tag in self._tags:
                    if tag["written by"] == "PLC":
                        encode(self.memory, tag, written.get(tag["name"], 0))

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._server.stop()

    def __enter__(self) -> S7Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
