"""What goes wrong between camera and gate: good parts may be rejected then, but no defective part ever passes.

Station and bridge are processes of their own; PLC and conveyor are here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.edge.bridges.modbus_plc import wait_for
from tests.edge.bridges.plant import WIRINGS, Plant
from tests.edge.bridges.plc import Line, Program
from tests.edge.events.killed import Killer
from tests.tiny_bundle import TinyBundle

pytestmark = pytest.mark.slow

# A part lies before the camera until its trigger is confirmed, and then as long as a frame of it may be taken.
ACK_S, WINDOW_S = 0.25, 0.15
MARGIN_S = 0.05


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    killer = Killer(Path(__file__).with_name("station.py"))
    yield killer
    killer.close()


@pytest.fixture
def build(killer: Killer, tiny: TinyBundle, quick_folder: Path) -> Callable[..., Plant]:
    def build(
        protocol: str, line: Line, ack_s: float, window_s: float, deadline_s: float, alive_s: float = 0.5, **keys: Any
    ) -> Plant:
        wiring = WIRINGS[protocol]()
        pytest.importorskip(wiring.needs)
        return Plant(
            wiring,
            killer,
            tiny.path,
            quick_folder,
            line,
            lambda: Program(line, ack_timeout_s=ack_s, exposure_s=window_s + MARGIN_S, bridge_timeout_s=alive_s),
            window_ms=1000 * window_s,
            trigger_timeout_ms=1000 * ack_s,
            deadline_ms=1000 * deadline_s,
            **keys,
        )

    return build


@pytest.mark.parametrize("protocol", WIRINGS)
def test_in_normal_running_every_part_is_sorted(protocol: str, build: Callable[..., Plant]) -> None:
    # Generous: here a busy machine must not make a good part late.
    line = Line(60, spacing_s=0.03, to_gate_s=2.0, indexed=True, defects=frozenset(range(3, 61, 3)))
    timing = {"plc_timeout_ms": 10_000, "station_timeout_ms": 10_000, "timeout_ms": 10_000}
    with build(protocol, line, ack_s=5.0, window_s=5.0, deadline_s=10.0, alive_s=10.0, **timing):
        wait_for(lambda: line.done)
        assert [part.passed for part in line.parts] == [not part.defective for part in line.parts]


def station_killed(plant: Plant) -> None:
    plant.kill_station()
    plant.wait_parts(4)
    plant.start_station()


def bridge_killed(plant: Plant) -> None:
    plant.kill_bridge()
    plant.wait_parts(4)
    plant.start_bridge()


def plc_restarted(plant: Plant) -> None:
    plant.stop_plc()
    # Its part ids begin anew, and results of before are under way.
    plant.start_plc()
    plant.wait_parts(2)
    plant.stop_plc()
    plant.start_plc()


def plc_cut(plant: Plant) -> None:
    plant.plc_network.cut()
    plant.wait_parts(4)
    plant.plc_network.heal()


def plc_held(plant: Plant) -> None:
    for _ in range(3):
        plant.plc_network.hold()
        plant.wait_parts(2)
        plant.plc_network.heal()
        plant.wait_parts(2)


def station_cut(plant: Plant) -> None:
    for proxy in plant.station_network:
        proxy.cut()
    plant.wait_parts(4)
    for proxy in plant.station_network:
        proxy.heal()


def station_held(plant: Plant) -> None:
    for proxy in [*plant.station_network, *plant.station_network]:
        proxy.hold()
        plant.wait_parts(2)
        proxy.heal()
        plant.wait_parts(2)


def verdicts_delayed(plant: Plant) -> None:
    plant.kill_station()
    plant.start_station(slow_s=0.6)
    plant.wait_parts(12)
    plant.kill_station()
    plant.start_station()


Fault = Callable[[Plant], None]
OF_THE_PLC: list[Fault] = [bridge_killed, plc_restarted, plc_cut, plc_held]
OF_THE_STATION: list[Fault] = [station_killed, station_cut, station_held, verdicts_delayed]
ESSENTIAL: list[Fault] = [bridge_killed, plc_restarted, plc_cut, station_killed, verdicts_delayed]


@pytest.mark.parametrize(
    ("protocol", "faults"),
    [(each, [*OF_THE_PLC, *OF_THE_STATION] if each == "modbus" else ESSENTIAL) for each in WIRINGS],
)
def test_no_defective_part_ever_passes(protocol: str, faults: list[Fault], build: Callable[..., Plant]) -> None:
    line = Line(100_000, spacing_s=0.03, to_gate_s=0.8, indexed=True, defects=frozenset(range(2, 100_000, 2)))
    timing = {"plc_timeout_ms": 500, "station_timeout_ms": 1000}
    came: dict[str, range] = {}
    with build(protocol, line, ack_s=ACK_S, window_s=WINDOW_S, deadline_s=0.4, **timing) as plant:
        plant.wait_passed(2)
        for fault in faults:
            first = len(line.parts) + 1
            fault(plant)
            plant.wait_passed(1)
            came[fault.__name__] = range(first, len(line.parts) + 1)
        plant.finish()
    assert line.wrong == [], came
    for name, parts in came.items():
        assert sum(part.defective for part in line.parts if part.number in parts) >= 2, name
