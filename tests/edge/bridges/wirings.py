"""How each protocol connects the simulated PLC with the bridge."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol

from tests.edge.bridges.modbus_plc import PollingPlc, Scan, ServingPlc

# Of the PLC's program.
_CYCLE_S = 0.005


class Plc(Protocol):
    """A simulated PLC that runs."""

    def close(self) -> None: ...


class Wiring(ABC):
    """How a protocol connects PLC and bridge.

    Attributes:
        bridge_listens: the bridge does, and the PLC comes through the network that can be cut; otherwise the PLC, or
            the broker that both use, and the bridge comes through it.
        needs: a module that is installed with the protocol.
    """

    needs: ClassVar[str]

    bridge_listens: ClassVar[bool] = False

    @contextmanager
    def laid(self, folder: Path, port: int) -> Iterator[None]:
        """Lay it: make what is there whatever the two do."""
        yield

    @abstractmethod
    def keys(self, port: int) -> dict[str, Any]:
        """The keys of `bridge.toml`: where to listen, or where to connect to."""

    @abstractmethod
    def plc(self, scan: Scan, port: int) -> Plc:
        """Start a PLC that listens at a port, or connects to one."""


class ModbusClientWiring(Wiring):
    """The bridge connects to the PLC."""

    needs = "pymodbus"

    def keys(self, port: int) -> dict[str, Any]:
        return {"protocol": "modbus", "port": port, "timeout_ms": 300}

    def plc(self, scan: Scan, port: int) -> Plc:
        return ServingPlc(scan, port, _CYCLE_S)


class ModbusServerWiring(Wiring):
    """The PLC connects to the bridge."""

    needs = "pymodbus"
    bridge_listens = True

    def keys(self, port: int) -> dict[str, Any]:
        return {"protocol": "modbus", "role": "server", "port": port}

    def plc(self, scan: Scan, port: int) -> Plc:
        return PollingPlc(scan, port, _CYCLE_S)


class S7Wiring(Wiring):
    """The bridge connects to the PLC."""

    needs = "snap7"

    def keys(self, port: int) -> dict[str, Any]:
        return {"protocol": "s7", "port": port, "timeout_ms": 300}

    def plc(self, scan: Scan, port: int) -> Plc:
        from tests.edge.bridges.s7_plc import S7Server

        return S7Server(scan, port, period_s=_CYCLE_S)


class OpcUaWiring(Wiring):
    """The PLC connects to the bridge, signed and encrypted, with certificate and password."""

    needs = "asyncua"
    bridge_listens = True

    @contextmanager
    def laid(self, folder: Path, port: int) -> Iterator[None]:
        from tests.edge.bridges.opcua_plc import admit_a_plc

        self._credentials, self._keys = admit_a_plc(folder)
        yield

    def keys(self, port: int) -> dict[str, Any]:
        return {"protocol": "opcua", "port": port, **self._keys}

    def plc(self, scan: Scan, port: int) -> Plc:
        from tests.edge.bridges.opcua_plc import OpcUaPlc

        return OpcUaPlc(scan, port, self._credentials, _CYCLE_S)


class MqttWiring(Wiring):
    """Both connect to a broker; the network between it and the bridge can be cut."""

    needs = "paho.mqtt"

    @contextmanager
    def laid(self, folder: Path, port: int) -> Iterator[None]:
        from tests.edge.bridges.broker import Mosquitto

        with Mosquitto(folder, port=port, durable=False):
            yield

    def keys(self, port: int) -> dict[str, Any]:
        from tests.edge.bridges.mqtt_plc import CAMERA, STATION

        where = {"port": port, "station": STATION, "camera": CAMERA}
        return {"protocol": "mqtt", "commands": True, "timeout_ms": 500, **where}

    def plc(self, scan: Scan, port: int) -> Plc:
        from tests.edge.bridges.mqtt_plc import MqttPlc

        return MqttPlc(scan, port, _CYCLE_S)


WIRINGS: dict[str, Callable[[], Wiring]] = {
    "modbus": ModbusClientWiring,
    "modbus-server": ModbusServerWiring,
    "opcua": OpcUaWiring,
    "s7": S7Wiring,
    "mqtt": MqttWiring,
}
