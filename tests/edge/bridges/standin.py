"""A small real station: control socket, publisher and journal, with a function in place of camera and inspector."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge.events.control import Control
from edge.events.journal import Journal
from edge.events.outlet import Outlet
from edge.events.publisher import Publisher
from edge.events.replay import serve_events
from edge.events.requests import RequestError, Switch, Switched, Trigger, Triggered
from edge.events.schema import Event
from edge.inspection.result import Region, Verdict

#: What a part's inspection says, and seconds that it takes; None: no event comes.
Decide = Callable[[Trigger], tuple[Verdict, float] | None]

NG_REGIONS = [
    Region(bbox=(90, 40, 20, 20), area_px=400, peak=2.5, centroid=(100.0, 50.0), area_mm2=4.0),
    Region(bbox=(10, 10, 40, 40), area_px=1600, peak=1.5, centroid=(30.0, 30.0), area_mm2=16.0),
]


class StandIn:
    """Answers `trigger` and publishes each part's one event, in order."""

    def __init__(
        self, folder: Path, decide: Decide, *, events: str = "tcp://127.0.0.1:*", control: str = "tcp://127.0.0.1:*"
    ) -> None:
        self.triggers: list[Trigger] = []
        self._decide = decide
        self._work: queue.SimpleQueue[tuple[str, Verdict, float] | None] = queue.SimpleQueue()
        self._journal = Journal(folder, synchronous="normal")
        self._outlet = Outlet(events, heartbeat_s=0.1)
        self._publisher = Publisher(self._outlet, camera="cam0", journal=self._journal)
        self._control = Control(control, context=self._outlet.context)
        serve_events(self._control, [self._publisher])
        self._control.register("trigger", Trigger, self._trigger)
        self._control.register("switch", Switch, self._switch)
        self._control.start()
        self.events, self.control = self._publisher.endpoint, self._control.endpoint
        self._thread = threading.Thread(target=self._publish, daemon=True)
        self._thread.start()
        self._publisher.status("running", {})

    def _trigger(self, request: Trigger) -> Triggered:
        self.triggers.append(request)
        accepted = self._journal.accept(request.part_id, encoder=request.encoder, triggered_at_ns=time.time_ns())
        decided = self._decide(request)
        if decided is not None:
            self._work.put((request.part_id, decided[0], time.monotonic() + decided[1]))
        return Triggered(request.part_id, accepted.new, accepted.durable)

    def _switch(self, request: Switch) -> Switched:
        if "good" not in request.bundle:
            raise RequestError("refused-bundle", "its golden frames moved")
        return Switched("0" * 16, "1" * 16)

    def _publish(self) -> None:
        while (job := self._work.get()) is not None:
            part_id, verdict, at = job
            time.sleep(max(0.0, at - time.monotonic()))
            self._publisher.publish(self._event(part_id, verdict), b"")

    def _event(self, part_id: str, verdict: Verdict) -> Event:
        ng = verdict is Verdict.NG
        fields: dict[str, Any] = {"score": 1.5 if ng else 0.25, "regions": NG_REGIONS if ng else []}
        return Event(
            boot_id=self._publisher.boot_id,
            journal_id=self._publisher.journal_id,
            seq=self._publisher.next_seq(),
            camera="cam0",
            source="stand-in",
            frame_id=0,
            verdict=verdict,
            captured_at_ns=time.time_ns(),
            decided_at_ns=time.time_ns(),
            bundle_id="0" * 16,
            calibration_id="1" * 16,
            peak=2.5,
            threshold=0.75,
            pixel_threshold=0.5,
            frame_size=(640, 480),
            mask_size=(64, 48),
            part_id=part_id,
            **fields,
        )

    def close(self) -> None:
        """Stop as a killed station does: no word, no waiting."""
        self._work.put(None)
        self._thread.join()
        self._control.close()
        self._publisher.close()
        self._outlet.close(0.0)
        self._journal.close()

    def __enter__(self) -> StandIn:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
