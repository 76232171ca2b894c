from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.bridges.base import Plc, PlcLostError, transitions
from edge.bridges.bridge import Bridge
from edge.bridges.finding import Finding
from edge.bridges.handshake import AskStation, Handshake, Timing
from edge.bridges.protocols import gpio
from edge.bridges.protocols.gpio import PROTOCOL, DigitalOutput, EventOutput, GpioSettings, open_gpiod_output
from edge.bridges.settings import read_settings
from edge.bridges.side import StationAddress
from edge.bridges.tags import Outputs, StateCode, VerdictCode
from edge.errors import BridgeError, CameraError, UsageError
from edge.events.requests import Trigger
from edge.inspection.result import Verdict
from edge.triggers.gpio import GpioLine
from tests.edge.bridges.modbus_plc import wait_for
from tests.edge.bridges.standin import StandIn
from tests.edge.events.conftest import fixed_event


@dataclass
class Signal:
    timestamp_ns: int


class Wire:
    """An input at which the test makes edges, with a real file descriptor as the kernel's has."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._read, self._write = os.pipe()
        self.broken = False

    def fileno(self) -> int:
        return self._read

    def edge(self) -> None:
        os.write(self._write, round(self._clock() * 1e9).to_bytes(8, "little"))

    def read_edge_events(self) -> list[Signal]:
        if self.broken:
            raise OSError(19, "No such device")
        return [Signal(int.from_bytes(os.read(self._read, 8), "little"))]

    def release(self) -> None:
        os.close(self._read)
        os.close(self._write)


@dataclass
class Output:
    """An output, and all that was seen at it."""

    active: bool
    active_low: bool
    seen: list[bool] = field(default_factory=list)
    released: bool = False

    def set(self, active: bool) -> None:
        assert not self.released
        self.active = active
        self.seen.append(active)

    def release(self) -> None:
        self.released = True


@dataclass
class Chip:
    """Lines by offset."""

    clock: Callable[[], float] = time.monotonic
    outputs: dict[int, Output] = field(default_factory=dict)
    wires: dict[int, Wire] = field(default_factory=dict)

    def open_output(self, line: GpioLine, active_low: bool, active: bool) -> Output:
        output = self.outputs[line.offset] = Output(active, active_low)
        return output

    def open_trigger(self, line: GpioLine) -> Wire:
        wire = self.wires[line.offset] = Wire(self.clock)
        return wire

    def rejects(self) -> bool:
        return self.outputs[1].active


def the(**keys: Any) -> GpioSettings:
    return GpioSettings(name="gate", protocol="gpio", reject="gpio:0:1", **keys)


# With a trigger line


class Rig:
    """The lines and the handshake, on a clock of the test's, with the test as the station."""

    def __init__(self, **keys: Any) -> None:
        self.now = 100.0
        self.chip = Chip(lambda: self.now)
        self._woken = threading.Semaphore(0)
        self.plc = DigitalOutput(
            the(trigger="gpio:0:2", **keys),
            self._woken.release,
            open_output=self.chip.open_output,
            open_trigger=self.chip.open_trigger,
            clock=lambda: self.now,
        )
        self.handshake = Handshake("gate", "token", Timing())
        self.asked: list[str] = []
        self.edges = 0
        self._seen = Outputs()
        self.plc.open()

    def edge(self) -> None:
        while self._woken.acquire(blocking=False):
            pass
        self.chip.wires[2].edge()
        self.edges += 1
        assert self._woken.acquire(timeout=20)

    def exchange(self, rounds: int = 1) -> None:
        for _ in range(rounds):
            for action in self.handshake.read(self.plc.read(), self.now):
                assert isinstance(action, AskStation)
                self.asked.append(action.part)
            wanted = self.handshake.outputs(self.now)
            for image in transitions(self._seen, wanted):
                self.plc.write(image)
            self._seen = wanted

    def ready(self) -> None:
        self.exchange(2)
        self.handshake.station_alive("running", self.now)
        self.exchange(6)

    def answer(self, verdict: VerdictCode) -> None:
        self.handshake.trigger_taken(self.asked[-1], self.now)
        self.handshake.verdict(self.asked[-1], Finding(verdict), self.now)
        self.exchange(3)


@contextmanager
def rig(**keys: Any) -> Iterator[Rig]:
    rig = Rig(**keys)
    try:
        yield rig
    finally:
        rig.plc.close()


def test_a_part_passes_from_its_ok_to_the_next_edge() -> None:
    with rig() as each:
        assert each.chip.rejects()
        assert each.chip.outputs[1].active_low
        each.ready()
        for verdict, passes in [(VerdictCode.OK, True), (VerdictCode.NG, False), (VerdictCode.OK, True)]:
            each.edge()
            assert each.chip.rejects()
            each.exchange(2)
            assert each.chip.rejects()
            each.answer(verdict)
            assert each.chip.rejects() is not passes
    assert each.chip.rejects()
    assert each.chip.outputs[1].released


def test_with_a_delay_each_part_has_its_own_time_at_the_gate() -> None:
    with rig(delay_ms=1000, pulse_ms=100, heartbeat_ms=10_000) as each:
        each.ready()
        for verdict in (VerdictCode.OK, VerdictCode.NG, VerdictCode.OK):
            each.edge()
            each.exchange(2)
            each.answer(verdict)
            assert each.chip.rejects()
            each.now += 0.25
        opened = []
        each.now = 100.9375
        while each.now < 102:
            each.handshake.station_alive("running", each.now)
            each.plc.write(each.handshake.outputs(each.now))
            opened.append((each.now - 100, not each.chip.rejects()))
            each.now += 0.0625
        passes = [at for at, is_open in opened if is_open]
        assert passes == [1.0, 1.0625, 1.5, 1.5625]


def test_a_hanging_bridge_rejects() -> None:
    with rig(heartbeat_ms=10) as each:
        each.ready()
        each.edge()
        each.exchange(2)
        each.answer(VerdictCode.OK)
        assert not each.chip.rejects()
        each.now += 0.05
        wait_for(each.chip.rejects)


def test_a_lost_station_rejects() -> None:
    with rig() as each:
        each.ready()
        each.edge()
        each.exchange(2)
        each.answer(VerdictCode.OK)
        assert not each.chip.rejects()
        each.handshake.station_lost(each.now)
        each.exchange()
        assert each.chip.rejects()
        each.ready()
        assert each.chip.rejects()


_DO = st.sampled_from(
    [
        "edge",
        "part",
        "part",
        "answer-ok",
        "answer-ok",
        "answer-ng",
        "taken",
        "ok",
        "ng",
        "wait",
        "lost",
        "alive",
        "alive",
        "reopen",
    ]
)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(_DO, st.integers(1, 3), st.integers(1, 4)), min_size=4, max_size=20))
def test_reject_is_never_released_without_a_fresh_ok(steps: list[tuple[str, int, int]]) -> None:
    with rig() as each:
        each.ready()
        edges_at: dict[int, float] = {}
        said_ok: dict[int, float] = {}

        def edge() -> None:
            each.edge()
            edges_at[each.edges] = each.now

        def taken(name: str) -> None:
            each.handshake.trigger_taken(name, each.now)

        def verdict(name: str, code: VerdictCode) -> None:
            each.handshake.verdict(name, Finding(code), each.now)
            if code is VerdictCode.OK:
                said_ok.setdefault(int(name.split(".")[0]), each.now)

        for what, back, rounds in steps:
            if what in ("edge", "part"):
                edge()
                if what == "part":
                    # Which the station takes, and finds good.
                    each.exchange()
                    what = "answer-ok"
            name = each.asked[-back] if len(each.asked) >= back else None
            if what == "wait":
                each.now += 0.06
            elif what == "lost":
                each.handshake.station_lost(each.now)
                said_ok.clear()
            elif what == "alive":
                each.handshake.station_alive("running", each.now)
            elif what == "reopen":
                each.plc.close()
                assert each.chip.rejects()
                each.handshake.plc_lost(each.now)
                each.plc.open()
                said_ok.clear()
            elif what.startswith("answer") and each.asked:
                taken(each.asked[-1])
                verdict(each.asked[-1], VerdictCode[what[-2:].upper()])
            elif name is not None and what == "taken":
                taken(name)
            elif name is not None and what in ("ok", "ng"):
                verdict(name, VerdictCode[what.upper()])
            each.exchange(rounds)
            if not each.chip.rejects():
                # The newest part's own, in time.
                assert each.asked[-1].startswith(f"{each.edges}.")
                assert each.edges in said_ok
                assert said_ok[each.edges] <= edges_at[each.edges] + 0.5


def test_an_edge_too_many_is_a_part_that_is_rejected() -> None:
    said: list[str] = []
    with rig() as each:
        each.plc.report = said.append
        each.ready()
        each.edge()
        each.edge()
        each.exchange(2)
        each.answer(VerdictCode.OK)
        assert each.plc.refused == 1
        assert said == ["a part is rejected: gpio:0:2 came while the one before was being handed on"]
        assert len(each.asked) == 1
        assert each.chip.rejects()
        each.edge()
        each.exchange(2)
        each.answer(VerdictCode.OK)
        assert not each.chip.rejects()


def test_a_line_that_breaks_is_lost_and_named() -> None:
    with rig() as each:
        each.ready()
        each.chip.wires[2].broken = True
        each.edge()
        with pytest.raises(PlcLostError, match=r"gpio:0:1, gpio:0:2 cannot be used: .*No such device"):
            each.plc.read()
        each.plc.close()
        each.plc.open()
        each.exchange()


# Without one


@contextmanager
def event_output(**keys: Any) -> Iterator[tuple[EventOutput, Chip]]:
    chip = Chip()
    plc = EventOutput(the(pulse_ms=60_000, heartbeat_ms=60_000, **keys), lambda: None, open_output=chip.open_output)
    plc.open()
    try:
        plc.write(Outputs(state=StateCode.READY))
        yield plc, chip
    finally:
        plc.close()


@pytest.mark.parametrize(
    ("verdict", "age_s", "passes"),
    [
        (Verdict.OK, 0.0, True),
        (Verdict.NG, 0.0, False),
        (Verdict.LATE, 0.0, False),
        (Verdict.FAULT, 0.0, False),
        (Verdict.OK, 30.0, False),
        (Verdict.OK, -30.0, False),
    ],
)
def test_an_event_lets_its_part_pass_while_it_is_fresh(verdict: Verdict, age_s: float, passes: bool) -> None:
    with event_output(deadline_ms=20_000) as (plc, chip):
        taken = time.time_ns() - int(age_s * 1e9)
        plc.event(fixed_event(verdict=verdict, captured_at_ns=taken, triggered_at_ns=None, seq=1))
        assert chip.rejects() is not passes
        plc.write(Outputs(state=StateCode.PREOPERATIONAL))
        assert chip.rejects()
        # The same again, as after a replay.
        plc.write(Outputs(state=StateCode.READY))
        plc.event(fixed_event(verdict=Verdict.OK, captured_at_ns=time.time_ns(), triggered_at_ns=None, seq=1))
        assert chip.rejects()


def test_an_event_of_a_station_that_is_not_known_to_run_rejects() -> None:
    with event_output() as (plc, chip):
        plc.write(Outputs(state=StateCode.HALTED))
        plc.event(fixed_event(verdict=Verdict.OK, captured_at_ns=time.time_ns(), triggered_at_ns=None, seq=1))
        plc.write(Outputs(state=StateCode.READY))
        assert chip.rejects()


# The whole way


def at_gate(chip: Chip, passes: bool) -> bool:
    return chip.rejects() is not passes


def idle(plc: Plc) -> bool:
    assert isinstance(plc, DigitalOutput)
    return plc._asking.value == 0


@pytest.mark.parametrize("mode", ["trigger", "events"])
def test_from_the_edge_over_the_station_to_the_gate(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chip = Chip()
    monkeypatch.setattr(gpio, "open_gpiod_output", chip.open_output)
    monkeypatch.setattr(gpio, "open_line", chip.open_trigger)
    verdicts = iter([Verdict.OK, Verdict.NG, Verdict.OK])
    how = 'trigger = "gpio:0:2"' if mode == "trigger" else "pulse_ms = 60000"
    path = tmp_path / "bridge.toml"
    path.write_text(
        f'[[plc]]\nname = "gate"\nprotocol = "gpio"\nreject = "gpio:0:1"\nready = "gpio:0:3"\n{how}\n'
        "deadline_ms = 20000\ntrigger_timeout_ms = 20000\nheartbeat_ms = 2000\nplc_timeout_ms = 20000\n"
    )
    with StandIn(tmp_path / "journal", lambda _: (next(verdicts), 0.0)) as station:
        bridge = Bridge(read_settings(path), StationAddress(station.events, station.control), report=None)
        thread = threading.Thread(target=bridge.run, daemon=True)
        thread.start()
        try:
            wait_for(lambda: 3 in chip.outputs and chip.outputs[3].active)
            for number, passes in enumerate([True, False, True]):
                if mode == "trigger":
                    chip.wires[2].edge()
                else:
                    station._trigger(Trigger(f"part-{number}"))
                wait_for(partial(at_gate, chip, passes))
                # Before the next edge, this one's trigger has been cleared.
                wait_for(partial(idle, bridge.sides[0].plc))
            assert chip.outputs[1].seen == [False, True, False]
        finally:
            bridge.stop()
            thread.join()
        assert bridge.sides[0].error is None
    assert chip.rejects()
    assert not chip.outputs[3].active
    assert all(output.released for output in chip.outputs.values())


# Settings


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("", "key reject is missing"),
        ('reject = "17"', "'17' names no GPIO line"),
        ('reject = "gpio:0:17:rising"\npulse_ms = 10', "has an edge"),
        ('reject = "gpio:0:17"', "pulse_ms must say"),
        ('reject = "gpio:0:17"\ntrigger = "gpio:/dev/gpiochip0:17"', "different lines"),
        ('reject = "gpio:0:17"\ntrigger = "gpio:0:1"\nreject_level = "off"', "`reject_level`"),
    ],
)
def test_wrong_keys_are_named(lines: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "bridge.toml"
    path.write_text(f'[[plc]]\nname = "gate"\nprotocol = "gpio"\n{lines}\n')

    def connect() -> None:
        (entry,) = read_settings(path)
        entry.protocol.connect(entry.settings, lambda: None)

    with pytest.raises(UsageError) as raised:
        connect()
    assert words in raised.value.problem
    assert "gate" in raised.value.problem


@pytest.mark.skipif(Path("/dev/gpiochip9").exists(), reason="there is such a chip")
def test_a_chip_that_is_not_there_is_one_clear_error() -> None:
    pytest.importorskip("gpiod")
    with pytest.raises(CameraError, match="gpiochip9"):
        open_gpiod_output(GpioLine("/dev/gpiochip9", 1), True, True)
    plc = PROTOCOL.connect(GpioSettings(name="gate", protocol="gpio", reject="gpio:9:1", pulse_ms=10), lambda: None)
    with pytest.raises(BridgeError, match="gpiochip9"):
        plc.open()
    plc.close()
