"""The station, played: for commissioning a PLC without camera, bundle or product."""

from __future__ import annotations

import time
from pathlib import Path

from edge.bridges.side import StationAddress
from edge.events import requests
from edge.events.control import Control, control_endpoint
from edge.events.journal import Journal
from edge.events.outlet import Outlet
from edge.events.publisher import Publisher
from edge.events.replay import serve_events
from edge.events.requests import RequestError, Switch, Switched, Trigger, Triggered
from edge.events.schema import Event
from edge.inspection.result import Region, Verdict

#: What the first parts get, one after the other.
VERDICTS = (Verdict.OK, Verdict.NG, Verdict.LATE, Verdict.FAULT)

_REGION = Region(bbox=(110, 60, 20, 10), area_px=200, peak=2.0, centroid=(120.0, 65.0), area_mm2=50.0)


class PlayedStation:
    """Gives the first parts each verdict once, then refuses one; all further ones are a `fault`.

    Attributes:
        taken: the number and encoder count of each part, in order; the refused one is the fifth.
    """

    def __init__(self, folder: Path) -> None:
        self.address = StationAddress(f"ipc://{folder / 'events'}")
        self.taken: list[tuple[int, int]] = []
        self._journal = Journal(folder / "journal", synchronous="normal")
        self._outlet = Outlet(self.address.events)
        self._publisher = Publisher(self._outlet, camera="test", journal=self._journal)
        self._control = Control(control_endpoint(self.address.events), context=self._outlet.context)
        serve_events(self._control, [self._publisher])
        self._control.register("trigger", Trigger, self._trigger)
        self._control.register("switch", Switch, self._switch)
        self._control.start()
        self._publisher.status("running", {})

    def _trigger(self, request: Trigger) -> Triggered:
        count = len(self.taken)
        self.taken.append((int(request.part_id.split(".")[0]), request.encoder or 0))
        if count == len(VERDICTS):
            raise RequestError(requests.BUSY, "refused, as a part of the test")
        accepted = self._journal.accept(request.part_id, encoder=request.encoder, triggered_at_ns=time.time_ns())
        verdict = VERDICTS[count] if count < len(VERDICTS) else Verdict.FAULT
        self._publisher.publish(self._event(request, verdict), b"")
        return Triggered(request.part_id, accepted.new, accepted.durable)

    @staticmethod
    def _switch(request: Switch) -> Switched:
        return Switched("0" * 16, "0" * 16)

    def _event(self, request: Trigger, verdict: Verdict) -> Event:
        ng = verdict is Verdict.NG
        score = None if verdict is Verdict.FAULT else 1.5 if ng else 0.25
        return Event(
            boot_id=self._publisher.boot_id,
            journal_id=self._publisher.journal_id,
            seq=self._publisher.next_seq(),
            camera="test",
            source="test",
            frame_id=0,
            verdict=verdict,
            captured_at_ns=time.time_ns(),
            decided_at_ns=time.time_ns(),
            bundle_id="0" * 16,
            calibration_id="0" * 16,
            score=score,
            peak=score,
            threshold=0.75,
            pixel_threshold=0.75,
            frame_size=(640, 480),
            mask_size=(640, 480),
            regions=[_REGION] if ng else [],
            reason="" if score is not None else "as a part of the test",
            part_id=request.part_id,
            encoder=request.encoder,
        )

    def close(self) -> None:
        """Stop."""
        self._control.close()
        self._publisher.close()
        self._outlet.close(0.0)
        self._journal.close()
