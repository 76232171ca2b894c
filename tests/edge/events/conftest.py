from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from edge.events.schema import Event
from edge.inspection.result import Region, Verdict


def fixed_event(**changes: Any) -> Event:
    fields: dict[str, Any] = {
        "boot_id": "00112233aabbccdd",
        "seq": 7,
        "camera": "cam0",
        "source": "broken_large/000.png",
        "frame_id": 6,
        "verdict": Verdict.NG,
        "captured_at_ns": 1_767_225_600_123_456_789,
        "decided_at_ns": 1_767_225_600_140_000_000,
        "bundle_id": "0123456789abcdef",
        "calibration_id": "fedcba9876543210",
        "score": 1.25,
        "peak": 1.5,
        "threshold": 0.75,
        "pixel_threshold": 0.5,
        "frame_size": (900, 600),
        "mask_size": (16, 8),
        "regions": [
            Region(bbox=(112, 75, 169, 150), area_px=12656, peak=1.5, centroid=(196.5, 150.0), area_mm2=None),
            Region(bbox=(562, 450, 57, 75), area_px=4219, peak=0.625, centroid=(590.5, 487.0), area_mm2=2.5),
        ],
        "part_id": None,
        "reason": "",
        "latency_ms": {"capture": 1.5, "queue": 0.25, "before": 0.5, "core": 12.0, "after": 1.0, "total": 15.25},
        "skipped": 0,
        "journal_id": "8899aabbccddeeff",
    }
    return Event(**{**fields, **changes})


@pytest.fixture
def make_event() -> Callable[..., Event]:
    return fixed_event
