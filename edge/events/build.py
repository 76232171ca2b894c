"""From an inspected frame slot to the event that is sent."""

from __future__ import annotations

import heapq
import math

from edge.events.rle import encode_mask
from edge.events.schema import MAX_REGIONS, Event
from edge.files import utf8_text
from edge.frames import Slot
from edge.inspection.result import Inspection, Verdict

_NOTHING = (0, 0)


def build_event(
    slot: Slot,
    *,
    boot_id: str,
    seq: int,
    camera: str,
    bundle_id: str,
    calibration_id: str,
    pixel_threshold: float,
    skipped: int,
    decided_at_ns: int,
    total_ms: float,
) -> tuple[Event, bytes]:
    """Return an inspected slot's event and its mask's compressed counts, copied out of the slot.

    Args:
        slot: with its `inspection` set.
        boot_id: the publisher's, with `seq` the next number in it.
        seq: counts from 1.
        camera: the camera's name.
        bundle_id: the bundle that decided.
        calibration_id: the calibration that decided; empty where none is known.
        pixel_threshold: map value above which a pixel is in the mask.
        skipped: frames that this camera has skipped so far.
        decided_at_ns: wall clock at the verdict, nanoseconds.
        total_ms: milliseconds from the start of capture to the verdict.
    """
    inspection, meta = slot.inspection, slot.meta
    if inspection is None:
        raise RuntimeError(f"slot {slot.index} was published before it was inspected")
    # What a fault leaves in the slot's buffers belongs to some earlier frame.
    mask = b"" if inspection.verdict is Verdict.FAULT else encode_mask(slot.mask, slot.area)
    has_bytes = meta.error is None and slot.pixels.ndim >= 2
    regions = inspection.regions
    if len(regions) > MAX_REGIONS:
        regions = heapq.nlargest(MAX_REGIONS, regions, key=lambda region: region.area_px)
    event = Event(
        boot_id=boot_id,
        seq=seq,
        camera=camera,
        source=utf8_text(meta.source),
        frame_id=meta.frame_id,
        verdict=inspection.verdict,
        captured_at_ns=meta.captured_at_ns,
        decided_at_ns=decided_at_ns,
        bundle_id=bundle_id,
        calibration_id=calibration_id,
        score=_finite(inspection.score),
        peak=_finite(inspection.peak),
        threshold=_finite(inspection.threshold),
        pixel_threshold=_finite(pixel_threshold),
        frame_size=(slot.pixels.shape[1], slot.pixels.shape[0]) if has_bytes else _NOTHING,
        mask_size=(slot.frame_map.shape[1], slot.frame_map.shape[0]),
        regions=list(regions),
        part_id=meta.part_id,
        reason=utf8_text(inspection.reason),
        latency_ms=_latencies(inspection, meta.capture_ms, total_ms),
        skipped=skipped,
    )
    return event, mask


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _latencies(inspection: Inspection, capture_ms: float, total_ms: float) -> dict[str, float]:
    stages = {"capture": capture_ms, **inspection.latency_ms}
    # Whatever of the total no stage accounts for was spent waiting for the next one.
    stages.setdefault("queue", max(0.0, total_ms - sum(stages.values())))
    stages["total"] = total_ms
    return {stage: round(float(ms), 3) for stage, ms in stages.items() if math.isfinite(ms)}
