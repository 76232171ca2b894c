"""What goes wrong around a station: it goes on, says so, and loses no verdict."""

from __future__ import annotations

import os
import random
import shutil
import socket
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import cv2
import pytest
import zmq

from edge.events.client import ControlClient
from edge.events.codec import EventMessage, StatusMessage
from edge.events.control import control_endpoint
from edge.events.durable import DurableSubscriber
from edge.events.follow import Gap
from edge.events.requests import MAX_REQUEST_BYTES, Trigger, encode_request
from edge.events.schema import Event
from edge.events.security import ClientKeys
from edge.events.subscriber import Subscriber
from edge.inspection.result import Verdict
from edge.keys import KeyFolder, Kind
from tests.edge.events.killed import Killer
from tests.edge.faults.line import LIMIT_S, EdgeRun, Log, Plc, Worker, kept
from tests.tiny_bundle import TinyBundle, TinyProduct, write_tiny_bundle

# So long, and until its queues have overflown, a subscriber reads nothing.  REDI_STALL_S=60 is the long run: the
# queues are bounded by messages, so that what overflows does not depend on the time.
STALL_S = float(os.environ.get("REDI_STALL_S", "1"))
PRODUCT = TinyProduct()
SIM = "sim:index=encoder,width=64,height=64"

pytestmark = pytest.mark.slow


def options(tiny: TinyBundle, folder: Path, **more: Any) -> dict[str, Any]:
    """Those of an edge-run that is triggered by requests."""
    given = {
        "camera": SIM, "engine": tiny.path, "publish": f"ipc://{folder / 'events'}", "threads": 1,
        "trigger": "request", "journal": folder,
    }  # fmt: skip
    return {**given, **more}


def forked(tiny: TinyBundle, folder: Path, **more: Any) -> dict[str, Any]:
    """The job of a station that is forked."""
    endpoint = f"ipc://{folder / 'events'}"
    return {"role": "line", "folder": str(folder / "journal"), "endpoint": endpoint, "bundle": str(tiny.path), **more}


def test_a_subscriber_that_stalls_catches_up(
    tiny: TinyBundle, killer: Killer, quick_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = 20
    monkeypatch.setattr("edge.events.durable._RECEIVE_HWM", waiting)
    job = forked(tiny, quick_folder, frames=2000, hwm=waiting)
    endpoint = job["endpoint"]
    with Log(endpoint, None) as log, DurableSubscriber(endpoint) as stalled, Subscriber(endpoint, hwm=waiting) as plain:
        killer.begin(**job, steps=10**9)
        begin = time.monotonic()
        for each in (stalled, plain):
            while not isinstance(each.receive(1.0), EventMessage):
                assert time.monotonic() < begin + LIMIT_S
        log.wait(lambda: len(log.events) >= 2000, "an event")
        threading.Event().wait(max(0.0, begin + STALL_S - time.monotonic()))
        log.check()
        # What was lost on the way, as who does not ask for it sees.
        seen, state = 1, ""
        while state != "stopped":
            message = plain.receive(LIMIT_S)
            assert message is not None
            seen += isinstance(message, EventMessage)
            state = message.status.state if isinstance(message, StatusMessage) else ""
        assert seen < 2000
        numbers = [1]
        behind = False
        while numbers[-1] < 2000:
            found = stalled.receive(LIMIT_S)
            behind = behind or stalled.behind
            assert found is not None
            assert not isinstance(found, Gap)
            if isinstance(found, EventMessage):
                numbers.append(found.event.seq)
        assert behind
        assert numbers == list(range(1, 2001))
        killer.end()


def test_a_disk_that_is_full_and_freed_loses_no_verdict(tiny: TinyBundle, quick_folder: Path, small_disk: Path) -> None:
    given = options(tiny, quick_folder, journal=small_disk)
    plc = Plc(given["publish"])

    def journal() -> str:
        return "" if log.status is None else log.status.status.journal

    with EdgeRun(**given) as station, Log(given["publish"], None) as log:
        log.wait_for(plc.ask(10))
        with suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass
        limit = time.monotonic() + LIMIT_S
        while journal() != "degraded":
            assert time.monotonic() < limit
            log.wait_for(plc.ask(1))
            # The status comes once a second, and what waits in memory must fit the disk once it is free again.
            time.sleep(0.05)
        answer = plc.ask(10)
        log.wait_for(answer)
        station.wait_said("events are kept in memory")
        (small_disk / "filler").unlink()
        log.wait(lambda: journal() == "ok", "a journal that works again")
        log.wait_for(plc.ask(10))
        station.stop()
    log.check()
    assert {event.verdict for event in log.events} <= {Verdict.OK, Verdict.NG}
    assert kept(small_disk / "cam0").keys() == {event.seq for event in log.events}


class MjpegCamera(Worker):
    """A network camera that can fail: `mode` says how."""

    def __init__(self) -> None:
        super().__init__()
        self.mode = "good"
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(0.05)
        self.port = self._server.getsockname()[1]
        good = PRODUCT.good(0)
        self._frames = {"good": good, "large": cv2.resize(good, (192, 160))}

    def work(self) -> None:
        with self._server:
            while not self.ended.is_set():
                with suppress(OSError):
                    connection = self._server.accept()[0]
                    with connection:
                        connection.settimeout(1.0)
                        if self.mode != "gone":
                            self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n")
        while not self.ended.wait(0.02) and self.mode != "gone":
            if self.mode == "silent":
                continue
            if self.mode == "garbage":
                jpeg = os.urandom(3000)
            else:
                jpeg = cv2.imencode(".jpg", self._frames[self.mode], [cv2.IMWRITE_JPEG_QUALITY, 98])[1].tobytes()
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            connection.sendall(head.encode() + jpeg + b"\r\n")


def test_a_camera_that_stops_returns_garbage_and_changes_its_size(tiny: TinyBundle, quick_folder: Path) -> None:
    with MjpegCamera() as camera:
        given = options(tiny, quick_folder, camera=f"http://127.0.0.1:{camera.port}/", deadline_ms=400)
        plc = Plc(given["publish"])

        def until(verdict: Verdict) -> Event:
            limit = time.monotonic() + LIMIT_S
            while True:
                parts = plc.ask(1)
                (event,) = (log.wait_for(parts)[part] for part in parts)
                if event.verdict is verdict:
                    return event
                assert time.monotonic() < limit, event

        def until_ok() -> tuple[int, int]:
            return until(Verdict.OK).frame_size

        with EdgeRun(**given) as station, Log(given["publish"], None) as log:
            assert until_ok() == (96, 80)
            camera.mode = "silent"
            # Frames that were sent before may still come.
            until(Verdict.FAULT)
            parts = plc.ask(2)
            silent = [log.wait_for(parts)[part] for part in parts]
            assert {event.verdict for event in silent} == {Verdict.FAULT}
            camera.mode = "large"
            # FFmpeg may scale what changes within a stream.
            assert until_ok() in ((96, 80), (192, 160))
            camera.mode = "garbage"
            log.wait_for(plc.ask(1))
            parts = plc.ask(3)
            assert all(log.wait_for(parts)[part].verdict is not Verdict.NG for part in parts)
            assert log.wait_for(parts)[list(parts)[-1]].verdict is Verdict.FAULT
            camera.mode = "large"
            assert until_ok() == (192, 160)
            camera.mode = "gone"
            log.wait(lambda: log.status is not None and log.status.status.state == "blind", "the loss")
            parts = plc.ask(2)
            gone = [log.wait_for(parts)[part] for part in parts]
            assert {event.verdict for event in gone} == {Verdict.FAULT}
            assert all("lost" in event.reason for event in gone)
            camera.mode = "good"
            assert until_ok() == (96, 80)
            station.stop()
        log.check()
        assert {event.part_id for event in log.events} == set(plc.accepted)


def test_a_corrupt_bundle_is_refused_and_the_next_one_taken_over(
    tiny: TinyBundle, quick_folder: Path, tmp_path: Path
) -> None:
    engine, coming = quick_folder / "redi.plan", quick_folder / "coming"
    shutil.copy(tiny.path, engine)
    given = options(tiny, quick_folder, engine=engine)
    whole = tiny.path.read_bytes()
    foreign = write_tiny_bundle(tmp_path / "foreign.plan", core=b"no network at all").path
    bad = [whole[: len(whole) // 2], foreign.read_bytes()]
    good = write_tiny_bundle(tmp_path / "good.plan", golden_frames=2)
    with EdgeRun("--follow", **given) as station, Log(given["publish"], None) as log:
        with Plc(given["publish"], pause_s=0.01) as plc:
            log.wait(lambda: log.events, "an event")
            before = log.events[0].bundle_id
            for number, content in enumerate(bad, 1):
                coming.write_bytes(content)
                coming.replace(engine)
                station.wait_said("is not taken over", times=number)
            count = len(log.events)
            log.wait(lambda: len(log.events) > count, "an event after the refusals")
            assert {event.bundle_id for event in log.events} == {before}
            # Not by renaming: as a slow copy over a network would do it.
            content = good.path.read_bytes()
            with engine.open("wb", buffering=0) as file:
                for start in range(0, len(content), len(content) // 4):
                    file.write(content[start : start + len(content) // 4])
                    threading.Event().wait(0.05)
            log.wait(lambda: log.events[-1].bundle_id != before, "the new bundle")
        log.wait_for(plc.accepted)
        station.stop()
    log.check()
    assert {event.verdict for event in log.events} <= {Verdict.OK, Verdict.NG}
    ids = [event.bundle_id for event in log.events]
    assert ids == sorted(ids, key=lambda each: each != before)


def test_a_clock_that_jumps_back_changes_no_verdict(tiny: TinyBundle, killer: Killer, quick_folder: Path) -> None:
    job = forked(tiny, quick_folder, jumping=True, deadline_ms=60_000)
    plcs = [Plc(job["endpoint"], first=number, step=2) for number in (1, 2)]
    with Log(job["endpoint"], quick_folder / "cursor", restart=50) as log:
        with ExitStack() as asking:
            for plc in plcs:
                asking.enter_context(plc)
            for count in (40, 40):
                killer.run(**job, steps=count)
            killer.begin(**job, steps=10**9)
            log.wait(lambda: len(log.events) > 120, "an event")
        accepted = [part for plc in plcs for part in plc.accepted]
        events = log.wait_for(accepted)
        killer.end()
    log.check()
    assert set(events) == set(accepted)
    assert {event.verdict for event in events.values()} == {Verdict.OK, Verdict.NG} | (
        {Verdict.FAULT} if any(event.reason for event in events.values()) else set()
    )
    times = [event.decided_at_ns for event in log.events]
    assert times != sorted(times)


class Stranger(Worker):
    """Connects to TCP ports and sends nonsense, some of it after a proper greeting of ZeroMQ."""

    def __init__(self, ports: list[int]) -> None:
        super().__init__()
        self._ports = ports
        self.calls = 0

    def work(self) -> None:
        chance = random.Random(7)
        null, curve = (
            b"\xff" + bytes(8) + b"\x7f\x03\x01" + name + bytes(48 - len(name)) for name in (b"NULL", b"CURVE")
        )
        while not self.ended.wait(0.002):
            for port in self._ports:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port)) as raw:
                    raw.settimeout(0.02)
                    raw.sendall(chance.choice((b"", null, curve)) + chance.randbytes(chance.choice((1, 64, 5000))))
                    raw.recv(4096)
                self.calls += 1


def test_clients_without_a_key_and_random_bytes_disturb_nobody(
    tiny: TinyBundle, quick_folder: Path, tmp_path: Path, free_port: int
) -> None:
    ours, theirs = (KeyFolder(tmp_path / name) for name in ("station", "panel"))
    public = ours.make("station", Kind.CONNECT)
    ours.allow(theirs.make("panel", Kind.CONNECT))
    friend = ClientKeys(theirs.pair(Kind.CONNECT), public)
    endpoint = f"tcp://127.0.0.1:{free_port}"
    given = options(tiny, quick_folder, publish=endpoint, keys=ours.path)
    plc = Plc(endpoint, keys=friend)
    with (
        EdgeRun(**given) as station,
        Log(endpoint, None, keys=friend) as log,
        ControlClient(control_endpoint(endpoint)) as keyless,
        Subscriber(endpoint) as eavesdropper,
    ):
        log.wait_for(plc.ask(1))
        with Stranger([free_port, free_port + 1]) as stranger:
            log.wait_for(plc.ask(200))
            # Never connected, so never sent.
            assert keyless.send("trigger", Trigger("stranger")) is None
            assert eavesdropper.receive(0.2) is None
            while stranger.calls < 100:
                plc.ask(1)
        log.wait_for(plc.ask(10))
        station.wait_said("refused")
        station.stop()
    log.check()
    assert {event.part_id for event in log.events} == set(plc.accepted)


def test_nonsense_from_clients_that_may_speak_disturbs_nobody(
    tiny: TinyBundle, killer: Killer, quick_folder: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    chance = random.Random(8)
    job = forked(tiny, quick_folder)
    killer.begin(**job, steps=10**9)
    plc = Plc(job["endpoint"])
    whole = encode_request("trigger", 1, Trigger("never", encoder=1))
    with Log(job["endpoint"], None) as log:
        log.wait_for(plc.ask(5))
        subscriber, asker = context.socket(zmq.XSUB), context.socket(zmq.DEALER)
        subscriber.connect(job["endpoint"])
        asker.connect(control_endpoint(job["endpoint"]))
        for number in range(600):
            # Neither reads what it is sent.
            subscriber.send(chance.choice((b"\x00", b"\x01", b"")) + chance.randbytes(chance.choice((0, 5, 3000))))
            damaged = bytearray(whole)
            damaged[chance.randrange(len(whole))] = chance.randrange(256)
            cut = whole[: chance.randrange(len(whole))]
            asker.send_multipart(
                chance.choice(
                    ([chance.randbytes(50)], [b"", cut], [b"\x91" * 5000], [b""] * 6, [b"", bytes(damaged)], [cut, cut])
                )
            )
            if number % 100 == 0:
                # The connection ends here, and a new one begins.
                asker.send(bytes(MAX_REQUEST_BYTES + 1))
                asker.close(0)
                asker = context.socket(zmq.DEALER)
                asker.connect(control_endpoint(job["endpoint"]))
                log.wait_for(plc.ask(5))
        log.wait_for(plc.ask(20))
        killer.end()
    log.check()
    # A damaged request may still be one, for another part.
    known = {event.part_id: event for event in log.events}
    assert known.keys() >= set(plc.accepted)
    assert len(known) == len(log.events)
