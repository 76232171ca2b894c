from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edge.events.build import Origin, build_event, build_unseen
from edge.events.codec import EventMessage, decode_message, encode_event
from edge.events.rle import decode_mask
from edge.events.schema import MAX_REGIONS, Event
from edge.frames import FrameMeta, PixelFormat, Slot, aligned_bytes, aligned_f32
from edge.inspection.result import Inspection, Region, Verdict
from edge.parts import Ticket, Unseen

TICKET = Ticket("P9", encoder=7, triggered_at_ns=900, triggered_ns=0, deadline_at_ns=1900, due_ns=1000)
ORIGIN = Origin(
    boot_id="boot",
    journal_id="journal",
    seq=5,
    camera="cam0",
    bundle_id="bundle",
    calibration_id="calibration",
    threshold=1.0,
    pixel_threshold=0.75,
    skipped=2,
)


def region(area: int) -> Region:
    return Region(bbox=(0, 0, area, 1), area_px=area, peak=1.0, centroid=(0.0, 0.0))


def inspected(verdict: Verdict = Verdict.NG, **fields: Any) -> Slot:
    slot = Slot(3, aligned_bytes(1 << 16), aligned_f32(32, 64), np.zeros((32, 8), np.uint8))
    slot.shape_pixels(60, 100, PixelFormat.BGR8)
    slot.mask[4, 2] = 0b1010_0000
    slot.meta = FrameMeta(
        source="a/b.png", frame_id=9, ticket=TICKET, captured_ns=1, captured_at_ns=1000, capture_ms=2.0
    )
    outcome: dict[str, Any] = {"score": 1.5, "peak": 2.5, "threshold": 1.0}
    outcome |= {"latency_ms": {"before": 0.5, "core": 10.0, "after": 1.0}}
    slot.inspection = Inspection(verdict, **{**outcome, **fields})
    return slot


def build(slot: Slot, **fields: Any) -> tuple[Event, bytes]:
    total_ms = fields.pop("total_ms", 15.0)
    return build_event(slot, replace(ORIGIN, **fields), decided_at_ns=2000, total_ms=total_ms)


def test_an_event_has_all_that_the_slot_knows() -> None:
    event, counts = build(inspected(regions=[region(5)]))
    assert event == Event(
        boot_id="boot",
        seq=5,
        camera="cam0",
        source="a/b.png",
        frame_id=9,
        verdict=Verdict.NG,
        captured_at_ns=1000,
        decided_at_ns=2000,
        bundle_id="bundle",
        calibration_id="calibration",
        score=1.5,
        peak=2.5,
        threshold=1.0,
        pixel_threshold=0.75,
        frame_size=(100, 60),
        mask_size=(64, 32),
        regions=[region(5)],
        part_id="P9",
        encoder=7,
        triggered_at_ns=900,
        deadline_at_ns=1900,
        journal_id="journal",
        reason="",
        latency_ms={"capture": 2.0, "before": 0.5, "core": 10.0, "after": 1.0, "queue": 1.5, "total": 15.0},
        skipped=2,
    )
    expected = np.zeros((32, 64), bool)
    expected[4, [16, 18]] = True
    assert np.array_equal(decode_mask(counts, event.mask_size), expected)


def test_a_mono_frame_has_a_size() -> None:
    slot = inspected()
    slot.shape_pixels(48, 72, PixelFormat.MONO8)
    assert build(slot)[0].frame_size == (72, 48)


def test_the_event_outlives_the_slot() -> None:
    slot = inspected(regions=[region(5)])
    event, counts = build(slot)
    assert slot.inspection is not None
    slot.inspection.regions.clear()
    slot.inspection.latency_ms.clear()
    slot.mask.fill(255)
    assert event.regions == [region(5)]
    assert event.latency_ms["core"] == 10.0
    assert decode_mask(counts, event.mask_size).sum() == 2


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_numbers_that_are_none_become_null(number: float) -> None:
    slot = inspected(Verdict.FAULT, score=number, peak=number, threshold=number, reason="NaN from the core")
    event, _ = build(slot, pixel_threshold=number, total_ms=number)
    assert (event.score, event.peak, event.threshold, event.pixel_threshold) == (None,) * 4
    assert "total" not in event.latency_ms


def test_a_fault_does_not_show_the_last_frames_mask() -> None:
    slot = inspected(Verdict.FAULT, score=math.nan, peak=math.nan, reason="truncated", latency_ms={})
    slot.meta.error = "truncated"
    event, counts = build(slot)
    assert counts == b""
    assert event.frame_size == (0, 0)
    assert event.reason == "truncated"


def test_a_crowd_of_regions_leaves_the_largest() -> None:
    event, counts = build(inspected(regions=[region(area) for area in range(1, MAX_REGIONS + 100)]))
    assert [each.area_px for each in event.regions] == list(range(MAX_REGIONS + 99, 99, -1))
    assert isinstance(decode_message(encode_event(event, counts)), EventMessage)


def test_an_uninspected_slot_is_a_bug() -> None:
    slot = inspected()
    slot.inspection = None
    with pytest.raises(RuntimeError, match="slot 3"):
        build(slot)


def test_a_name_that_is_no_text_can_still_be_sent() -> None:
    slot = inspected(Verdict.FAULT, reason="cannot read caf\udce9.png")
    slot.meta.source = "caf\udce9.png"
    message = decode_message(encode_event(*build(slot)))
    assert isinstance(message, EventMessage)
    assert message.event.source == "caf\\udce9.png"
    assert message.event.reason == "cannot read caf\\udce9.png"


def test_a_part_without_a_frame_has_its_trigger_and_the_reason() -> None:
    event = build_unseen(Unseen(TICKET, Verdict.LATE, "no verdict by its deadline"), ORIGIN)
    assert (event.part_id, event.encoder, event.triggered_at_ns, event.deadline_at_ns) == ("P9", 7, 900, 1900)
    assert (event.verdict, event.reason, event.score) == (Verdict.LATE, "no verdict by its deadline", None)
    assert (event.seq, event.journal_id, event.threshold, event.skipped) == (5, "journal", 1.0, 2)
    assert decode_message(encode_event(event, b"")) == EventMessage(event, b"")
