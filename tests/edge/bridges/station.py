"""A whole station that is triggered by requests, and can be killed: see `tests/edge/events/killed.py`.

Its camera runs freely, and shows what lies before it at that moment, whatever the trigger says.
"""

from __future__ import annotations

import os
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
from edge.inspection.result import Inspection
from edge.parts import Parts
from edge.station import SWITCH_INTERVAL_S, Station
from edge.triggers.request import serve_triggers
from tests.edge.bridges.view import View
from tests.edge.events.killed import ROLES, main
from tests.tiny_bundle import TinyProduct

PRODUCT = TinyProduct()
FRAMES = (PRODUCT.good(0), PRODUCT.defective(0))
# A frame that took longer would show another moment than it says.
_EXPOSURE_NS = 2_000_000


class ViewCamera(Camera):
    """Shows the part in view, `rate` times a second."""

    def __init__(self, view: View, rate: float) -> None:
        super().__init__("cam0", live=True)
        self._view, self._period_s = view, 1 / rate
        self._due = time.monotonic()

    def capture(self, slot: Slot, timeout_s: float) -> bool:
        now = time.monotonic()
        self._due = max(self._due + self._period_s, now)
        time.sleep(min(timeout_s, self._due - now))
        started_ns = time.monotonic_ns()
        defective = self._view.defective
        if time.monotonic_ns() > started_ns + _EXPOSURE_NS:
            return False
        place(slot, FRAMES[defective])
        self._stamp(slot, "defective" if defective else "good", started_ns)
        return True


class SlowInspector(Inspector):
    """Takes `slow_s` more for every third part."""

    slow_s = 0.0
    _count = 0

    def inspect(self, slot: Slot) -> Inspection:
        self._count += 1
        if self._count % 3 == 0:
            time.sleep(self.slow_s)
        return super().inspect(slot)


def line(job: dict[str, Any], step: int) -> None:
    """Run a station as `edge-run` does."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    outlet = Outlet(job["endpoint"], heartbeat_s=0.2)
    control = Control(control_endpoint(job["endpoint"]), context=outlet.context)
    publisher = Publisher(outlet, camera="cam0", journal=Journal(Path(job["folder"])))
    publisher.status("starting", {})
    inspector = SlowInspector(Bundle.open(Path(job["bundle"])), threads=1)
    inspector.slow_s = job.get("slow_s", 0.0)
    parts = Parts(publisher.journal, wake=lambda: station.wake())

    def published(event: Event, mask: bytes, slot: Slot | None) -> None:
        os.write(step, b".")

    camera = ViewCamera(View(Path(job["view"])), job["rate"])
    triggering = Triggering(parts, window_ms=job["window_ms"])
    station = Station(camera, inspector, publisher, triggering=triggering, on_event=published)
    serve_events(control, [publisher])
    serve_triggers(control, {"cam0": parts})
    control.start()
    station.run()
    threading.Event().wait()


if __name__ == "__main__":
    ROLES["line"] = line
    main()
