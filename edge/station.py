"""The station: one camera, one bundle, one publisher.

    capture thread     camera → slot          `edge.capture`: freely, or one frame for each triggered part
    caller's thread    slot → verdict         the inspector
    publish thread     verdict → event        journal, ZeroMQ, then the slot is free again

A slot goes round this circle and has one owner at a time (`edge.cameras.ring`).  The three overlap: while one frame
is inspected, the next is captured and the last is published.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from edge.cameras.base import Camera
from edge.cameras.ring import FrameRing
from edge.capture import WAIT_S, Capture, StopFlag, Triggering
from edge.events.build import Origin, build_event, build_unseen
from edge.events.publisher import Publisher
from edge.events.schema import Event
from edge.frames import Slot
from edge.inspection.inspector import Inspector
from edge.inspection.result import Inspection, Verdict
from edge.parts import Parts
from edge.summary import Summary
from edge.supervision.pulse import Pulse

# Memory of a slot at the start.  A slot that meets a larger frame grows once.
_FRAME_BYTES = 1920 * 1080 * 3

#: For `sys.setswitchinterval` where a station runs: a thread that comes back from a kernel or a wait must not stand
#: behind another's Python code for the usual 5 ms.
SWITCH_INTERVAL_S = 2e-4

#: A station's threads.
THREADS = ("capture", "inspect", "publish")

#: Called by the publish thread with each published event, its mask's counts, and its slot unless no frame led to it.
OnEvent = Callable[[Event, bytes, "Slot | None"], None]


class _Decision(NamedTuple):
    """When a slot's verdict was reached, and by what."""

    at_ns: int
    total_ms: float
    inspector: Inspector


class Station:
    """Inspects what a camera sees and publishes one event per frame, or one per triggered part.

    Args:
        camera: the station closes it at the end.
        inspector: used by the thread that calls `run`.
        publisher: numbers, keeps and sends the events.
        slots: frame slots; at least `MIN_SLOTS` for a live camera, so that capture, inspection and publishing overlap.
        count: end after so many frames; None: when the camera ends, or `stop` is called.
        frame_timeout_s: silence of the camera for so long is reported by one `fault` event.
        reopen: opens the camera again after a live one was lost; None: a loss ends the station.
        triggering: None where the camera runs freely; its parts wake this station, see `wake`.
        on_event: called with each event, before its slot is free again.
        watch: gives each of the three threads, by its name, its sign of life.
    """

    def __init__(
        self,
        camera: Camera,
        inspector: Inspector,
        publisher: Publisher,
        *,
        slots: int = 4,
        count: int | None = None,
        frame_timeout_s: float = 5.0,
        reopen: Callable[[], Camera] | None = None,
        triggering: Triggering | None = None,
        on_event: OnEvent | None = None,
        watch: Callable[[str], Pulse] | None = None,
    ) -> None:
        self.summary = Summary()
        self.name = camera.name
        self._inspector = inspector
        self._coming: Inspector | None = None
        self._switched = threading.Condition()
        self._publisher: Publisher | None = publisher
        self._parts = None if triggering is None else triggering.parts
        self._on_event = on_event
        # A triggered frame is somebody's only one: it is never skipped for a newer one.
        newest_wins = camera.live and triggering is None
        self._ring = FrameRing(inspector.make_slots(slots, _FRAME_BYTES), newest_wins=newest_wins)
        self._stop = StopFlag()
        self._pulses = {name: watch(f"{camera.name} {name}") for name in THREADS} if watch is not None else {}
        self._capturing = Capture(
            camera,
            self._ring,
            self.summary,
            self._stop,
            count=count,
            frame_timeout_s=frame_timeout_s,
            reopen=reopen,
            triggering=triggering,
            report=self._report_blindness,
            # That of the moment: the inspector may be another one by then, and brings what was not staged for it.
            stage=lambda slot: self._inspector.stage(slot),
            pulse=self._pulses.get("capture"),
        )
        self._state = "starting"
        self._blind = ""
        self._error: BaseException | None = None
        self._broken = ""
        self._decided: dict[int, _Decision] = {}

    def run(self) -> Summary:
        """Inspect until the camera ends, `count` is reached, or `stop` is called; every captured frame gets its event.

        Raises:
            CameraError: the camera was lost and cannot be opened again; its last event is a `fault`.
            Exception: whatever ended one of the threads.
        """
        self._set_state("running")
        threads = [
            threading.Thread(target=self._capture, name="capture", daemon=True),
            threading.Thread(target=self._publish, name="publish", daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            self._inspect()
        except BaseException:
            self._ring.close()
            raise
        finally:
            self.stop()
            for thread in threads:
                thread.join()
            for pulse in self._pulses.values():
                pulse.idle()
            self._capturing.camera.close()
            self.summary.skipped = self.skipped
            self._set_state("stopped")
        if self._error is not None:
            raise self._error
        return self.summary

    def stop(self) -> None:
        """End the run: capture no more, finish what was captured.  May be called from any thread or signal handler."""
        self._stop.set()

    def wake(self) -> None:
        """Let the publish thread look at once whether a part is to get its verdict without a frame."""
        self._ring.nudge()

    def switch(self, inspector: Inspector, timeout_s: float = 10.0) -> Inspector | None:
        """Inspect with another model or calibration from the next frame on.

        Returns:
            The inspector before, which the caller closes; None where the station has ended or no frame's inspection
            ended in time: then nothing has changed.
        """
        with self._switched:
            before, self._coming = self._inspector, inspector
            if self._switched.wait_for(lambda: self._coming is not inspector or self._ring.drained, timeout_s):
                taken_over = self._coming is not inspector
            else:
                taken_over = False
            self._coming = None
            return before if taken_over else None

    @property
    def parts(self) -> Parts | None:
        """The triggered parts; None where the camera runs freely."""
        return self._parts

    @property
    def inspector(self) -> Inspector:
        """What decides now."""
        return self._inspector

    @property
    def queue_depths(self) -> dict[str, int]:
        """Slots that wait, by whom they wait for, and triggered parts that wait for their verdict."""
        return self._ring.depths if self._parts is None else {**self._ring.depths, "verdict": len(self._parts)}

    @property
    def state(self) -> str:
        """As in the status: `starting`, `running`, `blind` or `stopped`."""
        return self._state

    @property
    def blind(self) -> str:
        """Why there are no frames; "" where there are."""
        return self._blind

    @property
    def silent_s(self) -> float | None:
        """Seconds since the last frame came; None before the first."""
        seen_at = self._capturing.seen_at
        return None if seen_at is None else time.monotonic() - seen_at

    @property
    def skipped(self) -> int:
        """Frames that were not inspected."""
        return self._ring.skipped + self._capturing.refused

    # The caller's thread

    def _inspect(self) -> None:
        while not self._ring.drained:
            self._beat("inspect")
            self._take_over()
            slot = self._ring.take(WAIT_S)
            if slot is None:
                continue
            self._take_over()
            taken_ns = time.monotonic_ns()
            inspection = self._inspect_or_fault(slot)
            decided_ns = time.monotonic_ns()
            captured_ns, capture_ms = slot.meta.captured_ns, slot.meta.capture_ms
            inspection.latency_ms["queue"] = max(0.0, (taken_ns - captured_ns) / 1e6 - capture_ms)
            _judge_time(inspection, slot, decided_ns)
            self._decided[slot.index] = _Decision(time.time_ns(), (decided_ns - captured_ns) / 1e6, self._inspector)
            self._ring.hand_over(slot)
        with self._switched:
            self._switched.notify_all()

    def _take_over(self) -> None:
        """Begin with another inspector, where one waits."""
        if self._coming is None:
            return
        with self._switched:
            if self._coming is not None:
                self._inspector, self._coming = self._coming, None
                self._switched.notify_all()
        self._set_state(self._state)

    def _inspect_or_fault(self, slot: Slot) -> Inspection:
        if not self._broken:
            try:
                self._inspector.fit(slot)
                return self._inspector.inspect(slot)
            except Exception as error:  # noqa: BLE001  `run` raises it, but not before each frame has its verdict
                self._broken = f"the inspector failed: {error}"
                self._fail(error)
        slot.inspection = self._inspector.fault(self._broken)
        return slot.inspection

    # The capture thread

    def _capture(self) -> None:
        try:
            self._capturing.run()
        except BaseException as error:  # noqa: BLE001  `run` raises it
            self._fail(error)
        finally:
            if self._parts is not None:
                self._parts.close("the station has stopped")
            self._ring.finish()

    def _report_blindness(self, reason: str) -> None:
        self._blind = reason
        self._set_state("blind" if reason else "running")

    # The publish thread

    def _publish(self) -> None:
        try:
            while not self._ring.done:
                self._beat("publish")
                wait_s = WAIT_S if self._parts is None else self._parts.until_due(time.monotonic_ns(), WAIT_S)
                slot = self._ring.take_inspected(wait_s)
                slots: list[Slot] = []
                while slot is not None:
                    slots.append(slot)
                    slot = self._ring.take_inspected(0)
                self._publish_all(slots)
            self._publish_all([])
        except BaseException as error:  # noqa: BLE001  `run` raises it
            self._fail(error)
            # Nothing can be published any more: let nobody wait for it.
            self._publisher = None
            self._ring.close()

    def _publish_all(self, slots: Sequence[Slot]) -> None:
        """Publish what waits: all of it shares one wait for the journal's disk."""
        start_ns = time.monotonic_ns()
        publisher = self._publisher
        assert publisher is not None
        entitled = [slot for slot in slots if self._settle(slot)]
        events = [self._build(slot, publisher) for slot in entitled]
        unseen = [] if self._parts is None else self._parts.take_unseen(start_ns)
        events += [(build_unseen(each, self._origin(publisher, self._inspector)), b"") for each in unseen]
        publisher.publish_all(events)
        publish_ms = (time.monotonic_ns() - start_ns) / 1e6
        shown: list[Slot | None] = [*entitled, *[None] * (len(events) - len(entitled))]
        for (event, mask), slot in zip(events, shown, strict=True):
            self.summary.add(event, publish_ms)
            if self._on_event is not None:
                try:
                    self._on_event(event, mask, slot)
                except BaseException as error:  # noqa: BLE001  `run` raises it, but not before each frame has its event
                    self._on_event = None
                    self._fail(error)
        for slot in slots:
            self._ring.release(slot)

    def _settle(self, slot: Slot) -> bool:
        """Return whether this slot gives its part the verdict; a part that was too late may have had it before."""
        ticket = slot.meta.ticket
        return ticket is None or self._parts is None or self._parts.settle(ticket)

    def _build(self, slot: Slot, publisher: Publisher) -> tuple[Event, bytes]:
        decision = self._decided[slot.index]
        return build_event(
            slot,
            self._origin(publisher, decision.inspector),
            decided_at_ns=decision.at_ns,
            total_ms=decision.total_ms,
        )

    def _origin(self, publisher: Publisher, inspector: Inspector) -> Origin:
        return Origin(
            boot_id=publisher.boot_id,
            journal_id=publisher.journal_id,
            seq=publisher.next_seq(),
            camera=self.name,
            bundle_id=inspector.bundle_id,
            calibration_id=inspector.calibration_id,
            threshold=inspector.threshold,
            pixel_threshold=inspector.pixel_threshold,
            skipped=self.skipped,
        )

    def _set_state(self, state: str) -> None:
        self._state = state
        if self._publisher is not None:
            self._publisher.status(
                state,
                lambda: {**self.summary.counters(), "skipped": self.skipped},
                bundle_id=self._inspector.bundle_id,
                calibration_id=self._inspector.calibration_id,
                reason=self._blind,
            )

    def _beat(self, thread: str) -> None:
        if self._pulses:
            self._pulses[thread].beat()

    def _fail(self, error: BaseException) -> None:
        """Keep the first error for `run` to raise, and end the capture."""
        self._error = self._error or error
        self._stop.set()


def _judge_time(inspection: Inspection, slot: Slot, decided_ns: int) -> None:
    """Turn a verdict that was reached after its part's deadline into `late`; score and regions stay."""
    ticket = slot.meta.ticket
    if ticket is None or ticket.due_ns is None or decided_ns <= ticket.due_ns:
        return
    if inspection.verdict in (Verdict.OK, Verdict.NG):
        inspection.reason = (
            f"{inspection.verdict.value}, but {(decided_ns - ticket.due_ns) / 1e6:.1f} ms after its deadline"
        )
        inspection.verdict = Verdict.LATE
