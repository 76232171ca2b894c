"""A whole plant on loopback: station, bridge, PLC and conveyor, with a network between each two that can be cut."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from edge.events.control import control_endpoint
from edge.station import SWITCH_INTERVAL_S
from tests.edge.bridges.driving import EdgeBridge
from tests.edge.bridges.modbus_plc import wait_for
from tests.edge.bridges.plc import Line, Program
from tests.edge.bridges.proxy import Proxy, to_tcp, to_unix
from tests.edge.bridges.view import View
from tests.edge.bridges.wirings import WIRINGS, Plc, Wiring
from tests.edge.events.killed import Killer
from tests.ports import free_port


class Plant:
    """Runs from `__enter__` to `__exit__`.

    Args:
        wiring: how PLC and bridge are connected.
        killer: runs `station.py`.
        bundle: the tiny one.
        folder: for all files; its path is short.
        line: the conveyor.
        program: makes the PLC's program, again for each of its starts.
        window_ms, rate: the station's, its camera's.
        keys: of `bridge.toml`.
    """

    def __init__(
        self,
        wiring: Wiring,
        killer: Killer,
        bundle: Path,
        folder: Path,
        line: Line,
        program: Callable[[], Program],
        *,
        window_ms: float,
        rate: float = 100.0,
        **keys: Any,
    ) -> None:
        self._wiring, self._killer, self._folder, self._keys = wiring, killer, folder, keys
        self.line, self._new_program = line, program
        self.endpoint = f"ipc://{folder / 'events'}"
        self._job = {
            "role": "line",
            "bundle": str(bundle),
            "folder": str(folder / "journal"),
            "endpoint": self.endpoint,
            "view": str(folder / "view"),
            "window_ms": window_ms,
            "rate": rate,
        }
        self._stack = ExitStack()
        self._bridge: EdgeBridge | None = None
        self._plc: Plc | None = None
        self._station = False
        self.program = program()

    def __enter__(self) -> Plant:
        # PLC, conveyor and networks share this process: their threads must not stand in line behind each other.
        self._stack.callback(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        try:
            self.line.view = self._stack.enter_context(View(self._folder / "view"))
            # Where either of the two listens; the other one comes through the proxy.
            self.port = free_port()
            self._stack.enter_context(self._wiring.laid(self._folder, self.port))
            self.plc_network = self._stack.enter_context(Proxy(to_tcp(self.port)))
            paths = [self.endpoint, control_endpoint(self.endpoint)]
            self.station_network = [
                self._stack.enter_context(Proxy(to_unix(path.removeprefix("ipc://")))) for path in paths
            ]
            self.start_station()
            self._stack.callback(self.kill_station)
            self.start_plc()
            self._stack.callback(self.stop_plc)
            self.start_bridge()
            self._stack.callback(self.kill_bridge)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # Its members, one by one

    def start_station(self, slow_s: float = 0.0) -> None:
        self._killer.begin(**self._job, steps=10**9, slow_s=slow_s)
        self._station = True

    def kill_station(self) -> None:
        if self._station:
            self._killer.end()
            self._station = False

    def start_plc(self) -> None:
        """Start the PLC, with an empty memory."""
        self.program = self._new_program()
        self._plc = self._wiring.plc(
            lambda seen: self.program.scan(seen), self.plc_network.port if self._wiring.bridge_listens else self.port
        )

    def stop_plc(self) -> None:
        if self._plc is not None:
            self._plc.close()
            self._plc = None

    def start_bridge(self) -> None:
        port = self.port if self._wiring.bridge_listens else self.plc_network.port
        events, control = (f"tcp://127.0.0.1:{proxy.port}" for proxy in self.station_network)
        self._bridge = EdgeBridge(self._folder, events, control, **{**self._wiring.keys(port), **self._keys})

    def kill_bridge(self) -> None:
        if self._bridge is not None:
            self._bridge.close()
            self._bridge = None

    # What comes of it

    def wait_parts(self, count: int) -> None:
        """Wait until so many more parts have come."""
        target = len(self.line.parts) + count
        wait_for(lambda: len(self.line.parts) >= target)

    def wait_passed(self, count: int) -> None:
        """Wait until so many good parts that come from now on have passed."""
        first = len(self.line.parts)
        wait_for(lambda: sum(number > first for number in self.line.passed) >= count)

    def finish(self) -> None:
        """Let no more parts come, and wait until the last one is at the gate."""
        self.line.end()
        wait_for(lambda: self.line.done)


__all__ = ["WIRINGS", "Plant"]
