"""From an inspected frame slot to the event that is sent."""

from __future__ import annotations

import heapq
import math
import time
from dataclasses import dataclass

from edge.errors import FrameError
from edge.events.rle import encode_mask
from edge.events.schema import MAX_REGIONS, Event
from edge.files import utf8_text
from edge.frames import Slot
from edge.inspection.result import Inspection, Verdict
from edge.parts import Unseen

_NOTHING = (0, 0)


@dataclass(frozen=True)
class Origin:
    """Where an event comes from, whatever it says.

    `boot_id`, `journal_id` and `seq` are the publisher's; `bundle_id`, `calibration_id` (empty where none is known)
    and the thresholds those that decided; `skipped` counts the frames that this camera has skipped so far.
    """

    boot_id: str
    journal_id: str
    seq: int
    camera: str
    bundle_id: str
    calibration_id: str
    threshold: float
    pixel_threshold: float
    skipped: int


def build_event(slot: Slot, origin: Origin, *, decided_at_ns: int, total_ms: float) -> tuple[Event, bytes]:
    """Return an inspected slot's event and its mask's compressed counts, copied out of the slot.

    Args:
        slot: with its `inspection` set.
        origin: where the event comes from.
        decided_at_ns: wall clock at the verdict, nanoseconds.
        total_ms: milliseconds from the start of capture to the verdict.
    """
    inspection, meta = slot.inspection, slot.meta
    if inspection is None:
        raise RuntimeError(f"slot {slot.index} was published before it was inspected")
    # What a fault leaves in the slot's buffers belongs to some earlier frame.
    mask = b"" if inspection.verdict is Verdict.FAULT else encode_mask(slot.mask, slot.area)
    frame_size = _NOTHING if meta.error is not None else _frame_size(slot)
    regions = inspection.regions
    if len(regions) > MAX_REGIONS:
        regions = heapq.nlargest(MAX_REGIONS, regions, key=lambda region: region.area_px)
    ticket = meta.ticket
    event = Event(
        boot_id=origin.boot_id,
        journal_id=origin.journal_id,
        seq=origin.seq,
        camera=origin.camera,
        source=utf8_text(meta.source),
        frame_id=meta.frame_id,
        verdict=inspection.verdict,
        captured_at_ns=meta.captured_at_ns,
        decided_at_ns=decided_at_ns,
        bundle_id=origin.bundle_id,
        calibration_id=origin.calibration_id,
        score=_finite(inspection.score),
        peak=_finite(inspection.peak),
        threshold=_finite(inspection.threshold),
        pixel_threshold=_finite(origin.pixel_threshold),
        frame_size=frame_size,
        mask_size=(slot.frame_map.shape[1], slot.frame_map.shape[0]),
        regions=list(regions),
        part_id=None if ticket is None else ticket.part_id,
        encoder=None if ticket is None else ticket.encoder,
        triggered_at_ns=None if ticket is None else ticket.triggered_at_ns,
        deadline_at_ns=None if ticket is None else ticket.deadline_at_ns,
        reason=utf8_text(inspection.reason),
        latency_ms=_latencies(inspection, meta.capture_ms, total_ms),
        skipped=origin.skipped,
        roi=None if inspection.verdict is Verdict.FAULT else slot.roi,
    )
    return event, mask


def build_unseen(unseen: Unseen, origin: Origin) -> Event:
    """Return the event of a part whose verdict comes from no frame."""
    ticket = unseen.ticket
    now_ns = time.time_ns()
    return Event(
        boot_id=origin.boot_id,
        journal_id=origin.journal_id,
        seq=origin.seq,
        camera=origin.camera,
        source=origin.camera,
        frame_id=0,
        verdict=unseen.verdict,
        captured_at_ns=now_ns,
        decided_at_ns=now_ns,
        bundle_id=origin.bundle_id,
        calibration_id=origin.calibration_id,
        score=None,
        peak=None,
        threshold=_finite(origin.threshold),
        pixel_threshold=_finite(origin.pixel_threshold),
        frame_size=_NOTHING,
        mask_size=_NOTHING,
        part_id=ticket.part_id,
        encoder=ticket.encoder,
        triggered_at_ns=ticket.triggered_at_ns,
        deadline_at_ns=ticket.deadline_at_ns,
        reason=unseen.reason,
        skipped=origin.skipped,
    )


def _frame_size(slot: Slot) -> tuple[int, int]:
    """Return width and height, nothing where the bytes are no frame of their format."""
    try:
        height, width = slot.size
    except FrameError:
        return _NOTHING
    return width, height


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _latencies(inspection: Inspection, capture_ms: float, total_ms: float) -> dict[str, float]:
    stages = {"capture": capture_ms, **inspection.latency_ms}
    # Whatever of the total no stage accounts for was spent waiting for the next one.
    stages.setdefault("queue", max(0.0, total_ms - sum(stages.values())))
    stages["total"] = total_ms
    return {stage: round(float(ms), 3) for stage, ms in stages.items() if math.isfinite(ms)}
