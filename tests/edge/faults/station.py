"""A whole station that can be forked in milliseconds, and killed: see `tests/edge/events/killed.py`.

Only the camera is the test's: it shows the part that lies at the trigger's encoder count, with a defect where that is
odd, so that a verdict tells whether its frame was the right one.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

# Here, so that no life has to import it again.
import openvino  # noqa: F401

from edge.bundle import Bundle
from edge.cameras.base import Camera, place
from edge.capture import Triggering
from edge.events.control import Control, control_endpoint
from edge.events.journal import Journal
from edge.events.outlet import Outlet
from edge.events.publisher import Publisher
from edge.events.replay import serve_events
from edge.events.schema import Event
from edge.frames import Slot
from edge.inspection.inspector import Inspector
from edge.parts import Parts, Ticket
from edge.station import SWITCH_INTERVAL_S, Station
from edge.triggers.request import serve_triggers
from tests.edge.events.killed import ROLES, main
from tests.tiny_bundle import TinyProduct

PRODUCT = TinyProduct()
FRAMES = (PRODUCT.good(0), PRODUCT.defective(0))


class EncoderCamera(Camera):
    """Shows the part at the encoder's count, after up to `pause_s`."""

    def __init__(self, pause_s: float) -> None:
        super().__init__("cam0", live=False)
        self._pause_s = pause_s
        self._chance = random.Random(time.monotonic_ns())
        self._encoder = 0

    def expect(self, ticket: Ticket) -> None:
        self._encoder = ticket.encoder or 0

    def capture(self, slot: Slot, timeout_s: float) -> bool:
        started_ns = time.monotonic_ns()
        time.sleep(self._chance.uniform(0, self._pause_s))
        place(slot, FRAMES[self._encoder % 2])
        self._stamp(slot, f"part at {self._encoder}", started_ns)
        return True


def set_clock_back() -> None:
    """Let the wall clock jump back by up to an hour, again and again."""
    chance, real = random.Random(3), time.time_ns
    offset_ns = 0

    def jumping() -> int:
        nonlocal offset_ns
        if chance.random() < 0.02:
            offset_ns += chance.randint(0, 3600 * 10**9)
        return real() - offset_ns

    time.time_ns = jumping


def line(job: dict[str, Any], step: int) -> None:
    """Run a station as `edge-run` does, triggered by requests or for `frames` that it does not wait for."""
    if job.get("jumping"):
        set_clock_back()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    outlet = Outlet(job["endpoint"], heartbeat_s=0.2, hwm=job.get("hwm", 100_000))
    control = Control(control_endpoint(job["endpoint"]), context=outlet.context)
    publisher = Publisher(outlet, camera="cam0", journal=Journal(Path(job["folder"])))
    publisher.status("starting", {})
    inspector = Inspector(Bundle.open(Path(job["bundle"])), threads=1)
    parts = Parts(publisher.journal, deadline_ms=job.get("deadline_ms"), wake=lambda: station.wake())

    def published(event: Event, mask: bytes, slot: Slot | None) -> None:
        os.write(step, b".")

    camera, frames = EncoderCamera(job.get("pause_s", 0.0)), job.get("frames")
    triggering = Triggering(parts) if frames is None else None
    station = Station(camera, inspector, publisher, count=frames, triggering=triggering, on_event=published)
    serve_events(control, [publisher])
    serve_triggers(control, {"cam0": parts})
    control.start()
    station.run()
    threading.Event().wait()


if __name__ == "__main__":
    ROLES["line"] = line
    main()
