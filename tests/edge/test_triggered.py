"""A station that is triggered: every part gets one verdict, in time or with a reason."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from edge.bundle import Bundle
from edge.cameras.base import Camera, EndOfStream, place
from edge.capture import Triggering
from edge.errors import CameraError
from edge.events.publisher import Publisher
from edge.events.schema import Event
from edge.frames import Slot
from edge.inspection.inspector import Inspector
from edge.inspection.result import Inspection, Verdict
from edge.parts import Parts, Ticket
from edge.station import Station
from tests.tiny_bundle import TinyBundle, TinyProduct

LIMIT_S = 30.0
PRODUCT = TinyProduct()


class AskedCamera(Camera):
    """Shows the part whose number its id ends with: odd ones have a defect."""

    def __init__(self) -> None:
        super().__init__("cam0", live=False)
        self._number = -1
        self.closed = False

    def expect(self, ticket: Ticket) -> None:
        self._number = int(ticket.part_id[1:])

    def capture(self, slot: Slot, timeout_s: float) -> bool:
        started_ns = time.monotonic_ns()
        place(slot, PRODUCT.defective(0) if self._number % 2 else PRODUCT.good(0))
        self._stamp(slot, f"part{self._number}", started_ns)
        return True

    def close(self) -> None:
        self.closed = True


class LiveCamera(Camera):
    """A frame every few milliseconds, as long as it is not told otherwise."""

    def __init__(self) -> None:
        super().__init__("cam0", live=True)
        self.trouble: Exception | None = None
        self.silent = False

    def capture(self, slot: Slot, timeout_s: float) -> bool:
        threading.Event().wait(0.005)
        if self.trouble is not None:
            raise self.trouble
        if self.silent:
            return False
        place(slot, PRODUCT.good(0))
        self._stamp(slot, f"frame{self._frames}", time.monotonic_ns())
        return True


class Running:
    """A triggered station in a thread of its own, and the events that it published."""

    def __init__(
        self, camera: Camera, inspector: Inspector, *, deadline_ms: float | None = None, **more: object
    ) -> None:
        self.events: list[Event] = []
        self._arrived = threading.Condition()
        self.publisher = Publisher(None, camera="cam0")
        by_camera = bool(more.pop("by_camera", False))
        window_ms = float(more.pop("window_ms", 1000.0))  # type: ignore[arg-type]
        self.parts = Parts(deadline_ms=deadline_ms, wake=lambda: self.station.wake())
        self.station = Station(
            camera,
            inspector,
            self.publisher,
            triggering=Triggering(self.parts, by_camera, window_ms),
            on_event=self._note,
            **more,  # type: ignore[arg-type]
        )
        self._thread = threading.Thread(target=self.station.run, daemon=True)
        self._thread.start()

    def _note(self, event: Event, mask: bytes, slot: Slot | None) -> None:
        with self._arrived:
            self.events.append(event)
            self._arrived.notify_all()

    def wait(self, count: int) -> list[Event]:
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.events) >= count, LIMIT_S), self.events
            return list(self.events)

    def end(self) -> list[Event]:
        self.station.stop()
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()
        parts = [event.part_id for event in self.events]
        assert len(parts) == len(set(parts))
        assert [event.seq for event in self.events] == list(range(1, len(parts) + 1))
        assert len(self.parts) == 0
        return self.events


@pytest.fixture
def inspector(tiny: TinyBundle) -> Iterator[Inspector]:
    with Bundle.open(tiny.path) as bundle, Inspector(bundle, threads=1) as made:
        yield made


@pytest.fixture
def start(inspector: Inspector) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def begin(camera: Camera, **settings: object) -> Running:
        started.append(Running(camera, inspector, **settings))  # type: ignore[arg-type]
        return started[-1]

    yield begin
    for each in started:
        each.station.stop()
        each._thread.join(LIMIT_S)


def test_each_trigger_gets_its_own_frame_and_its_verdict(start: Callable[..., Running]) -> None:
    running = start(AskedCamera())
    for number in range(8):
        running.parts.trigger(f"P{number}", encoder=10 * number)
    events = running.wait(8)
    assert [event.part_id for event in events] == [f"P{number}" for number in range(8)]
    assert [event.source for event in events] == [f"part{number}" for number in range(8)]
    assert [event.encoder for event in events] == [10 * number for number in range(8)]
    assert [event.verdict.value for event in events] == ["ok", "ng"] * 4
    assert all(event.triggered_at_ns and event.triggered_at_ns <= event.decided_at_ns for event in events)
    running.end()


def test_a_live_camera_shows_a_frame_from_after_the_trigger(start: Callable[..., Running]) -> None:
    running = start(LiveCamera())
    for number in range(5):
        running.parts.trigger(f"P{number}")
        event = running.wait(number + 1)[-1]
        assert event.part_id == f"P{number}"
        assert event.verdict is Verdict.OK
        assert event.triggered_at_ns is not None
        assert event.captured_at_ns >= event.triggered_at_ns
    running.end()


def test_a_verdict_after_its_deadline_is_late_and_comes_at_the_deadline(
    start: Callable[..., Running], inspector: Inspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    inspect = inspector.inspect

    def slow(slot: Slot) -> Inspection:
        assert go_on.wait(LIMIT_S)
        return inspect(slot)

    monkeypatch.setattr(inspector, "inspect", slow)
    running = start(AskedCamera(), deadline_ms=100.0)
    running.parts.trigger("P0")
    # The verdict is there while the inspection still goes on.
    (late,) = running.wait(1)
    assert (late.part_id, late.verdict, late.score) == ("P0", Verdict.LATE, None)
    assert late.reason == "no verdict by its deadline"
    assert late.deadline_at_ns is not None
    assert late.decided_at_ns >= late.deadline_at_ns
    go_on.set()
    running.parts.trigger("P2", deadline_ms=60_000.0)
    assert running.wait(2)[-1].part_id == "P2"
    assert [event.verdict.value for event in running.end()] == ["late", "ok"]


def test_a_part_without_a_frame_is_a_fault(start: Callable[..., Running]) -> None:
    camera = LiveCamera()
    camera.silent = True
    running = start(camera, deadline_ms=80.0)
    running.parts.trigger("P0")
    (fault,) = running.wait(1)
    assert (fault.verdict, fault.reason) == (Verdict.FAULT, "no frame by its deadline")
    running.end()


def test_a_silent_camera_is_a_fault_without_a_deadline_too(start: Callable[..., Running]) -> None:
    camera = LiveCamera()
    camera.silent = True
    running = start(camera, window_ms=50.0)
    running.parts.trigger("P0")
    (fault,) = running.wait(1)
    assert (fault.verdict, fault.reason) == (Verdict.FAULT, "no frame came within 50 ms of its trigger")
    running.end()


def test_a_lost_camera_is_a_fault_at_once_until_it_is_back(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.capture._FIRST_PAUSE_S", 0.01)
    camera, second = LiveCamera(), LiveCamera()
    back = threading.Event()

    def reopen() -> Camera:
        if not back.is_set():
            raise CameraError("still out")
        return second

    running = start(camera, reopen=reopen)
    camera.trouble = CameraError("the cable is out")
    limit = time.monotonic() + LIMIT_S
    while not running.station.blind and time.monotonic() < limit:
        threading.Event().wait(0.01)
    running.parts.trigger("P0")
    (fault,) = running.wait(1)
    assert (fault.part_id, fault.verdict) == ("P0", Verdict.FAULT)
    assert "the cable is out" in fault.reason
    back.set()
    while running.station.blind and time.monotonic() < limit:
        threading.Event().wait(0.01)
    running.parts.trigger("P1")
    assert running.wait(2)[-1].verdict is Verdict.OK
    running.end()


def test_a_torn_frame_is_the_fault_of_its_part(start: Callable[..., Running]) -> None:
    class Torn(AskedCamera):
        def capture(self, slot: Slot, timeout_s: float) -> bool:
            self._stamp(slot, "torn", time.monotonic_ns(), error="half a frame")
            return True

    running = start(Torn())
    running.parts.trigger("P0")
    (fault,) = running.wait(1)
    assert (fault.part_id, fault.verdict, fault.reason) == ("P0", Verdict.FAULT, "half a frame")
    running.end()


def test_parts_that_wait_when_the_station_ends_get_a_fault(start: Callable[..., Running]) -> None:
    camera = LiveCamera()
    camera.silent = True
    running = start(camera)
    running.parts.trigger("P0")
    (fault,) = running.end()
    assert (fault.part_id, fault.verdict, fault.reason) == ("P0", Verdict.FAULT, "the station has stopped")


def test_an_ended_source_leaves_no_part_without_a_verdict(start: Callable[..., Running]) -> None:
    class Short(AskedCamera):
        def capture(self, slot: Slot, timeout_s: float) -> bool:
            if self._frames == 1:
                raise EndOfStream
            return super().capture(slot, timeout_s)

    running = start(Short())
    running.parts.trigger("P0")
    running.wait(1)
    running.parts.trigger("P1")
    events = running.wait(2)
    assert [event.verdict.value for event in events] == ["ok", "fault"]


def test_each_frame_of_a_camera_with_its_own_trigger_is_a_part(start: Callable[..., Running]) -> None:
    running = start(LiveCamera(), by_camera=True, count=6, deadline_ms=60_000.0)
    events = running.wait(6)
    assert len({event.part_id for event in events}) == 6
    assert all(event.part_id and event.part_id.startswith("cam0-") for event in events)
    assert {event.verdict for event in events} == {Verdict.OK}
    assert [event.frame_id for event in events] == list(range(6))


def test_a_clock_that_was_set_back_makes_no_two_parts_one(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if it were set back before each frame.
    monkeypatch.setattr(time, "time_ns", lambda: 1_767_225_600_000_000_000)
    running = start(LiveCamera(), by_camera=True, count=6)
    events = running.wait(6)
    assert len({event.part_id for event in events}) == 6
    assert {event.verdict for event in events} == {Verdict.OK}
