from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import cv2
import pytest

from edge.bundle import Bundle
from edge.cameras.base import Camera, EndOfStream, place
from edge.cameras.files import open_folder
from edge.errors import CameraError
from edge.events.codec import EventMessage, StatusMessage
from edge.events.publisher import Publisher
from edge.events.schema import Event
from edge.events.subscriber import Subscriber
from edge.frames import Slot
from edge.inspection.inspector import Inspector
from edge.inspection.result import Inspection, Verdict
from edge.station import Station
from tests.tiny_bundle import TinyBundle, TinyProduct

#: Nothing here takes as long; a test that waits for so long has failed.
LIMIT_S = 30.0
PRODUCT = TinyProduct()

Step = Callable[[Slot, float], bool]


class ScriptedCamera(Camera):
    """Each capture runs the script's next step; a step may write a part, report silence, wait or raise."""

    def __init__(self, script: Iterator[Step], *, live: bool = False) -> None:
        super().__init__("cam0", live=live)
        self._script = script
        self.captured = 0
        self.closed = False

    def capture(self, slot: Slot, timeout_s: float) -> bool:
        step = next(self._script, None)
        if step is None:
            raise EndOfStream
        started_ns = time.monotonic_ns()
        if not step(slot, timeout_s):
            return False
        self._stamp(slot, f"part{self._frames}", started_ns)
        self.captured += 1
        return True

    def close(self) -> None:
        self.closed = True


def part(slot: Slot, timeout_s: float) -> bool:
    place(slot, PRODUCT.good(0))
    return True


def blemished(slot: Slot, timeout_s: float) -> bool:
    place(slot, PRODUCT.defective(0))
    return True


def silence(slot: Slot, timeout_s: float) -> bool:
    threading.Event().wait(min(timeout_s, 0.05))
    return False


def lost(slot: Slot, timeout_s: float) -> bool:
    raise CameraError("the cable is out")


@pytest.fixture
def inspector(tiny: TinyBundle) -> Iterator[Inspector]:
    with Bundle.open(tiny.path) as bundle, Inspector(bundle, threads=1) as made:
        yield made


class Listener:
    """A subscriber in a thread of its own, from before the station until it says that it has stopped."""

    def __init__(self, endpoint: str) -> None:
        self.events: list[Event] = []
        self.states: list[str] = []
        self._endpoint = endpoint
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        with Subscriber(self._endpoint) as subscriber:
            until = time.monotonic() + LIMIT_S
            while "stopped" not in self.states and time.monotonic() < until:
                message = subscriber.receive(0.5)
                if isinstance(message, EventMessage):
                    self.events.append(message.event)
                elif isinstance(message, StatusMessage):
                    self.states.append(message.status.state)

    def join(self) -> list[Event]:
        self._thread.join(LIMIT_S)
        assert self.states[-1:] == ["stopped"]
        return self.events


class Line:
    """A station with a publisher and a listener around it."""

    def __init__(self, inspector: Inspector) -> None:
        self._inspector = inspector
        self.station: Station | None = None

    def run(self, camera: Camera, error: type[BaseException] | None = None, **settings: object) -> list[Event]:
        with Publisher("tcp://127.0.0.1:*", camera="cam0") as publisher:
            listener = Listener(publisher.endpoint)
            publisher.settle()
            self.station = Station(camera, self._inspector, publisher, **settings)  # type: ignore[arg-type]
            if error is None:
                assert self.station.run() is self.station.summary
            else:
                with pytest.raises(error):
                    self.station.run()
            events = listener.join()
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert self.station.summary.frames == len(events)
        return events


@pytest.fixture
def line(inspector: Inspector) -> Line:
    return Line(inspector)


def test_every_image_of_a_folder_is_one_event_in_order(line: Line, inspector: Inspector, tmp_path: Path) -> None:
    for index in range(12):
        image = PRODUCT.defective(index) if index % 3 == 2 else PRODUCT.good(index)
        cv2.imwrite(str(tmp_path / f"{index}.png"), image)
    (tmp_path / "5.png").write_bytes((tmp_path / "4.png").read_bytes()[:200])
    events = line.run(open_folder("cam0", tmp_path))

    assert [event.source for event in events] == [f"{index}.png" for index in range(12)]
    expected = [Verdict.NG if index % 3 == 2 else Verdict.OK for index in range(12)]
    expected[5] = Verdict.FAULT
    assert [event.verdict for event in events] == expected
    assert "5.png" in events[5].reason
    assert events[5].score is None
    assert events[2].regions
    assert {event.bundle_id for event in events} == {inspector.bundle_id}
    assert {event.calibration_id for event in events} == {inspector.calibration_id}
    for event in events[:5]:
        stages = event.latency_ms
        assert stages.keys() == {"capture", "queue", "before", "core", "after", "total"}
        assert sum(ms for stage, ms in stages.items() if stage != "total") <= stages["total"] + 0.01
        assert event.frame_size == (96, 80)
    assert line.station is not None
    assert line.station.summary.counters() == {
        "frames": 12, "ok": 8, "ng": 3, "late": 0, "fault": 1, "skipped": 0, "timeouts": 0, "reconnects": 0,
    }  # fmt: skip


def test_capture_inspection_and_publishing_overlap(line: Line) -> None:
    third_captured = threading.Event()

    def third(slot: Slot, timeout_s: float) -> bool:
        third_captured.set()
        return part(slot, timeout_s)

    threads = set()

    def hold_the_first(event: Event, mask: bytes, slot: Slot | None) -> None:
        threads.add(threading.current_thread().name)
        if event.frame_id == 0:
            # Only a capture that goes on meanwhile can end this.
            assert third_captured.wait(LIMIT_S)

    camera = ScriptedCamera(iter([part, part, third, part]))
    assert len(line.run(camera, on_event=hold_the_first)) == 4
    assert threads == {"publish"}


def test_slots_are_allocated_once_and_go_round(line: Line) -> None:
    memory = set()
    camera = ScriptedCamera(iter([part] * 20))
    line.run(camera, slots=3, on_event=lambda event, mask, slot: memory.add((slot.index, slot.memory.ctypes.data)))
    assert len(memory) == 3


@pytest.mark.parametrize("slots", [1, 2])
def test_few_slots_are_slow_but_lose_nothing(line: Line, slots: int) -> None:
    assert len(line.run(ScriptedCamera(iter([part] * 10)), slots=slots)) == 10


def test_stopping_finishes_what_was_captured(line: Line) -> None:
    def forever() -> Iterator[Step]:
        while True:
            yield part

    camera = ScriptedCamera(forever())

    def stop_at_five(event: Event, mask: bytes, slot: Slot | None) -> None:
        if event.frame_id == 5:
            assert line.station is not None
            line.station.stop()

    events = line.run(camera, on_event=stop_at_five)
    assert len(events) == camera.captured >= 6
    assert {event.verdict for event in events} == {Verdict.OK}
    assert camera.closed


def test_count_ends_the_run(line: Line) -> None:
    camera = ScriptedCamera(iter([part] * 10))
    assert len(line.run(camera, count=4)) == camera.captured == 4


def test_a_live_camera_is_not_waited_for(line: Line, inspector: Inspector, monkeypatch: pytest.MonkeyPatch) -> None:
    delivered = threading.Event()

    def flood() -> Iterator[Step]:
        for _ in range(60):
            yield part
        delivered.set()

    inspect = inspector.inspect

    def slow(slot: Slot) -> Inspection:
        # The first inspection lasts until the camera has delivered everything.
        assert delivered.wait(LIMIT_S)
        return inspect(slot)

    monkeypatch.setattr(inspector, "inspect", slow)
    events = line.run(ScriptedCamera(flood(), live=True))
    assert line.station is not None
    assert len(events) + line.station.summary.skipped == 60
    assert [event.frame_id for event in events[1:]] == [59]
    assert events[-1].skipped == line.station.summary.skipped


def test_a_lost_live_camera_is_a_fault_and_is_opened_again(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.capture._FIRST_PAUSE_S", 0.01)
    first = ScriptedCamera(iter([part, lost]), live=True)
    second = ScriptedCamera(iter([blemished]), live=True)
    attempts: list[int] = []

    def reopen() -> Camera:
        attempts.append(1)
        if len(attempts) < 3:
            raise CameraError("still out")
        return second

    seen = threading.Event()

    def first_seen(event: Event, mask: bytes, slot: Slot | None) -> None:
        seen.set()

    def lost_once_seen(slot: Slot, timeout_s: float) -> bool:
        assert seen.wait(LIMIT_S)
        return lost(slot, timeout_s)

    first._script = iter([part, lost_once_seen])
    events = line.run(first, reopen=reopen, on_event=first_seen)
    assert [event.verdict for event in events] == [Verdict.OK, Verdict.FAULT, Verdict.NG]
    assert "the cable is out" in events[1].reason
    assert first.closed
    assert second.closed
    assert line.station is not None
    assert line.station.summary.reconnects == 1


def test_a_lost_file_ends_the_run_after_its_fault(line: Line) -> None:
    events = line.run(ScriptedCamera(iter([part, blemished, lost, part])), CameraError, reopen=pytest.fail)
    assert [event.verdict for event in events] == [Verdict.OK, Verdict.NG, Verdict.FAULT]


def test_silence_is_one_fault(line: Line) -> None:
    camera = ScriptedCamera(iter([part, *[silence] * 12, part, *[silence] * 12, part]))
    events = line.run(camera, frame_timeout_s=0.2)
    assert [event.verdict.value for event in events] == ["ok", "fault", "ok", "fault", "ok"]
    assert events[1].reason == "no frame for 0.2 s"
    assert line.station is not None
    assert line.station.summary.timeouts >= 2


def test_an_error_in_the_capture_thread_ends_the_run(line: Line) -> None:
    def broken(slot: Slot, timeout_s: float) -> bool:
        raise ZeroDivisionError

    events = line.run(ScriptedCamera(iter([part, part, broken, part])), ZeroDivisionError)
    assert [event.verdict for event in events] == [Verdict.OK, Verdict.OK]


def test_an_error_in_the_publish_thread_ends_the_run(inspector: Inspector) -> None:
    def broken(event: Event, mask: bytes, slot: Slot | None) -> None:
        raise ZeroDivisionError

    def forever() -> Iterator[Step]:
        while True:
            yield part

    camera = ScriptedCamera(forever())
    with pytest.raises(ZeroDivisionError):
        Station(camera, inspector, Publisher(None, camera="cam0"), on_event=broken).run()
    assert camera.closed


def test_an_error_in_the_inspector_ends_the_run_but_leaves_no_frame_without_its_verdict(
    line: Line, inspector: Inspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    inspect = inspector.inspect
    camera = ScriptedCamera(iter([part] * 50))

    def breaks_at_three(slot: Slot) -> Inspection:
        if slot.meta.frame_id == 3:
            raise ZeroDivisionError("out of numbers")
        return inspect(slot)

    monkeypatch.setattr(inspector, "inspect", breaks_at_three)
    events = line.run(camera, ZeroDivisionError)
    assert len(events) == camera.captured
    assert [event.verdict for event in events[:3]] == [Verdict.OK] * 3
    assert all(event.verdict is Verdict.FAULT and "out of numbers" in event.reason for event in events[3:])


def test_without_a_publisher_results_still_come(inspector: Inspector) -> None:
    verdicts = []

    def note(event: Event, mask: bytes, slot: Slot | None) -> None:
        verdicts.append(event.verdict)

    summary = Station(
        ScriptedCamera(iter([part, blemished])), inspector, Publisher(None, camera="cam0"), on_event=note
    ).run()
    assert verdicts == [Verdict.OK, Verdict.NG]
    assert summary.frames == 2


def test_an_error_of_on_event_leaves_no_captured_frame_without_its_event(line: Line) -> None:
    def broken(event: Event, mask: bytes, slot: Slot | None) -> None:
        raise ZeroDivisionError

    camera = ScriptedCamera(iter([part] * 50))
    assert len(line.run(camera, ZeroDivisionError, on_event=broken)) == camera.captured


def test_a_signal_may_interrupt_the_end_of_the_run_at_any_line(inspector: Inspector) -> None:
    station = Station(ScriptedCamera(iter([])), inspector, Publisher(None, camera="cam0"))
    interrupted = 0

    def raise_signal(frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        nonlocal interrupted
        interrupted += 1
        if interrupted < 100:
            signal.raise_signal(signal.SIGUSR1)
        return raise_signal

    def give_up(number: int, frame: FrameType | None) -> None:
        pytest.fail("the signal handler waits for what it interrupted")

    before = [
        signal.signal(signal.SIGUSR1, lambda number, frame: station.stop()),
        signal.signal(signal.SIGALRM, give_up),
    ]
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    tracer = sys.gettrace()
    sys.settrace(raise_signal)
    try:
        station.stop()
    finally:
        sys.settrace(tracer)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGUSR1, before[0])
        signal.signal(signal.SIGALRM, before[1])
    assert interrupted > 0
    assert station.run().frames == 0
