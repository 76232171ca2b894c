"""The whole way, over real connections: conveyor, PLC, Modbus, bridge, station and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.bridges.protocols.modbus import ModbusServer
from edge.errors import BridgeError
from edge.events.requests import Trigger
from edge.inspection.result import Verdict
from tests.edge.bridges.driving import running
from tests.edge.bridges.modbus_plc import PollingPlc, ServingPlc, wait_for
from tests.edge.bridges.plc import Line, Program
from tests.edge.bridges.standin import StandIn

# Generous, as the tests' machine may be busy: what they decide on is who comes first, not when.
ACK_S = 1.0
SLOW: dict[str, Any] = {"trigger_timeout_ms": 1000 * ACK_S, "deadline_ms": 2000}


def look(line: Line) -> Callable[[Trigger], tuple[Verdict, float] | None]:
    """Inspect what is in front of the camera, whatever the part's name."""

    def decide(request: Trigger) -> tuple[Verdict, float]:
        part = line.in_view()
        assert part is not None
        return (Verdict.NG if part.defective else Verdict.OK), 0.0

    return decide


def a_line(count: int, **fields: Any) -> Line:
    return Line(count, spacing_s=0.04, to_gate_s=2.0, indexed=True, defects=frozenset(range(3, 10_000, 7)), **fields)


@pytest.mark.parametrize("role", ["client", "server"])
def test_every_defect_is_rejected_and_every_good_part_passes(role: str, tmp_path: Path) -> None:
    line = a_line(24)
    program = Program(line, ack_timeout_s=ACK_S)
    with StandIn(tmp_path / "journal", look(line)) as station:
        if role == "client":
            with (
                ServingPlc(program.scan) as plc,
                running(tmp_path, station.events, station.control, **SLOW, port=plc.port),
            ):
                wait_for(lambda: line.done)
        else:
            with running(tmp_path, station.events, station.control, **SLOW, role="server", port=0) as bridge:
                server = bridge.sides[0].plc
                assert isinstance(server, ModbusServer)
                wait_for(lambda: server.port)
                with PollingPlc(program.scan, server.port):
                    wait_for(lambda: line.done)
        assert [part.passed for part in line.parts] == [not part.defective for part in line.parts]
        assert [trigger.encoder for trigger in station.triggers] == [100 * part.number - 1000 for part in line.parts]


def test_an_address_in_use_names_it(tmp_path: Path) -> None:
    with (
        StandIn(tmp_path / "journal", lambda _: None) as station,
        ServingPlc(lambda _: {}) as plc,
        pytest.raises(BridgeError, match=f"127.0.0.1:{plc.port}") as raised,
        running(tmp_path, station.events, station.control, **SLOW, role="server", port=plc.port) as bridge,
    ):
        wait_for(lambda: bridge.sides[0].error)
    assert raised.value.exit_code == 13
