"""What an event says to a PLC: the fields of a result."""

from __future__ import annotations

import math
from typing import NamedTuple

from edge.bridges.tags import VerdictCode
from edge.events.schema import Event
from edge.inspection.result import Region, Verdict

_CODES = {
    Verdict.OK: VerdictCode.OK,
    Verdict.NG: VerdictCode.NG,
    Verdict.LATE: VerdictCode.LATE,
    Verdict.FAULT: VerdictCode.FAULT,
}
# Of IEEE 754 single precision.
_LARGEST = 3.4028234e38
_NONE = -1.0


class Finding(NamedTuple):
    """One part's result but for its part id; the fields are those of `Outputs`."""

    verdict: VerdictCode
    region_count: int = 0
    score: float = _NONE
    threshold: float = _NONE
    worst_x: float = _NONE
    worst_y: float = _NONE
    worst_x_mm: float = _NONE
    worst_y_mm: float = _NONE


def finding_of(event: Event) -> Finding:
    """Return what an event says; the worst region is the one with the highest peak.

    A pixel's size is the root of the region's area in mm² by its area in pixels, where the event has both.
    """
    x = y = x_mm = y_mm = _NONE
    if event.regions:
        worst = max(event.regions, key=lambda region: region.peak)
        x, y = worst.centroid
        pixel_mm = _pixel_mm(worst)
        if pixel_mm is not None:
            x_mm, y_mm = x * pixel_mm, y * pixel_mm
    return Finding(
        verdict=_CODES[event.verdict],
        region_count=len(event.regions),
        score=_real(event.score),
        threshold=_real(event.threshold),
        worst_x=_real(x),
        worst_y=_real(y),
        worst_x_mm=_real(x_mm),
        worst_y_mm=_real(y_mm),
    )


def _pixel_mm(region: Region) -> float | None:
    if region.area_mm2 is None or region.area_px <= 0 or region.area_mm2 <= 0:
        return None
    return math.sqrt(region.area_mm2 / region.area_px)


def _real(value: float | None) -> float:
    if value is None or not math.isfinite(value):
        return _NONE
    return max(-_LARGEST, min(_LARGEST, value))
