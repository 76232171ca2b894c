from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from edge.errors import CameraError, UsageError
from edge.parts import Parts
from edge.triggers.gpio import GpioLine, GpioTrigger, open_line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("gpio:0:17", GpioLine("/dev/gpiochip0", 17)),
        ("gpio:/dev/gpiochip3:4:falling", GpioLine("/dev/gpiochip3", 4, "falling")),
    ],
)
def test_lines_are_named(text: str, line: GpioLine) -> None:
    assert GpioLine.parse(text) == line


@pytest.mark.parametrize(
    "text", ["gpio:", "gpio:0", "gpio:0:17:up", "gpio:/etc/passwd:1", "gpio:0:-1", "gpio:0:1:rising:x"]
)
def test_other_texts_are_not(text: str) -> None:
    with pytest.raises(UsageError, match="names no GPIO line"):
        GpioLine.parse(text)


@dataclass
class Signal:
    timestamp_ns: int


class Wire:
    """A line at which the test makes signals, with a real file descriptor as the kernel's has."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        self.released = False

    def fileno(self) -> int:
        return self._read

    def signal(self) -> None:
        os.write(self._write, time.monotonic_ns().to_bytes(8, "little"))

    def read_edge_events(self) -> list[Signal]:
        return [Signal(int.from_bytes(os.read(self._read, 8), "little"))]

    def release(self) -> None:
        self.released = True
        os.close(self._read)
        os.close(self._write)


def test_each_signal_is_a_part_at_the_kernels_time() -> None:
    woken = threading.Semaphore(0)
    parts = Parts(wake=woken.release)
    wire = Wire()
    before = time.monotonic_ns()
    with GpioTrigger(GpioLine("/dev/gpiochip0", 1), "cam0", parts, request=lambda line: wire):
        for _ in range(3):
            wire.signal()
            assert woken.acquire(timeout=20.0)
        tickets = [parts.next(20.0) for _ in range(1)]
        for _ in range(2):
            assert tickets[-1] is not None
            assert parts.take(tickets[-1])
            tickets.append(parts.next(20.0))
    assert wire.released
    found = [ticket for ticket in tickets if ticket is not None]
    assert len({ticket.part_id for ticket in found}) == 3
    assert all(ticket.part_id.startswith("cam0-") for ticket in found)
    assert before <= found[0].triggered_ns < found[1].triggered_ns < found[2].triggered_ns <= time.monotonic_ns()


def test_a_clock_that_was_set_back_costs_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    woken = threading.Semaphore(0)
    parts = Parts(wake=woken.release)
    wire = Wire()
    monkeypatch.setattr("edge.triggers.gpio.time.time_ns", lambda: 10**18)
    monkeypatch.setattr("edge.triggers.gpio.time.monotonic_ns", lambda: 0)
    with GpioTrigger(GpioLine("/dev/gpiochip0", 1), "cam0", parts, request=lambda line: wire):
        for _ in range(3):
            wire.signal()
            assert woken.acquire(timeout=20.0)
        assert len(parts) == 3


def test_signals_without_room_are_counted() -> None:
    parts = Parts()
    parts.close("the end")
    wire = Wire()
    with GpioTrigger(GpioLine("/dev/gpiochip0", 1), "cam0", parts, request=lambda line: wire) as trigger:
        wire.signal()
        limit = time.monotonic() + 20
        while not trigger.refused and time.monotonic() < limit:
            threading.Event().wait(0.01)
        assert trigger.refused == 1


@pytest.mark.skipif(Path("/dev/gpiochip9").exists(), reason="there is such a chip")
def test_a_chip_that_is_not_there_is_one_clear_error() -> None:
    pytest.importorskip("gpiod")
    with pytest.raises(CameraError, match="gpiochip9"):
        open_line(GpioLine("/dev/gpiochip9", 1))
