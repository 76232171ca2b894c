"""What an inspection says: the verdict and all that explains it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import msgspec


class Verdict(str, Enum):
    """Exactly one per part.  A PLC rejects on anything but `ok`."""

    OK = "ok"
    NG = "ng"
    LATE = "late"
    FAULT = "fault"


class Region(msgspec.Struct, frozen=True):
    """One connected region of the defect mask, in pixels of the source frame.

    `bbox` is `(x, y, width, height)`, `centroid` is `(x, y)`, `area_px` counts source-frame pixels, `area_mm2` is
    known where the pixel size is calibrated, `peak` is the highest anomaly-map value inside.
    """

    bbox: tuple[int, int, int, int]
    area_px: int
    peak: float
    centroid: tuple[float, float]
    area_mm2: float | None = None


@dataclass
class Inspection:
    """The outcome for one frame.

    `score` (image score: mean of the top-k anomaly-map values) and `peak` (maximum) are raw, in map units: 0 is
    identical features, each scale adds at most 2.  Both are NaN where the verdict is a `fault`; `reason` then says
    why.  `prompt` is the index of the prompt-bank entry chosen for the first tile, -1 where none was.  `latency_ms`
    has one entry per stage: `before`, `core`, `after`.
    """

    verdict: Verdict
    score: float
    peak: float
    threshold: float
    reason: str = ""
    regions: list[Region] = field(default_factory=list)
    prompt: int = -1
    latency_ms: dict[str, float] = field(default_factory=dict)
