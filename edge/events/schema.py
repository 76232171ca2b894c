"""The event: what one part's inspection tells the world.  `docs/events.md` is its description for other
languages.

On the wire an event is a three-part ZeroMQ message: topic (UTF-8), header (one msgpack map, the fields of
`Event`), mask (COCO compressed RLE counts as ASCII; empty where nothing is marked).
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from edge.inspection.result import Region, Verdict

#: In every header.  Raised by one whenever an older reader could misread a newer event.
SCHEMA_VERSION = 1

#: Topics start with these, followed by the camera's name: `redi/event/cam0`.
EVENT_TOPIC = "redi/event/"
STATUS_TOPIC = "redi/status/"

#: An event lists at most this many regions, the largest; the mask has them all.
MAX_REGIONS = 1000

Count = Annotated[int, msgspec.Meta(ge=0)]


class Event(msgspec.Struct, omit_defaults=False):
    """One part's verdict and all that explains it.

    `seq` counts from 1 within a `journal_id` without gaps, over restarts too where the station keeps a journal;
    where it keeps none, `journal_id` is `boot_id`; a station of an older release leaves it empty.

    Times: `captured_at_ns` and `decided_at_ns` are wall-clock nanoseconds since 1970 UTC; `latency_ms` maps stage to
    milliseconds (`capture`, `queue`, `before`, `core`, `after`, `total`, from the start of capture to the verdict).
    `score` and `peak` are null where the verdict is `fault`; `threshold`, `pixel_threshold` likewise where no
    calibration is known.  `frame_size` and `mask_size` are `(width, height)`; mask pixel `(i, j)` covers the area at
    the same relative place of the frame, or of its part `roi`, `(x, y, width, height)`, where only that was inspected.
    `frame_size` is `(0, 0)` where the frame had no usable bytes.

    Where a trigger asked for the part: its `part_id`, the conveyor's `encoder` count, when it was triggered and until
    when the verdict was due, as wall-clock nanoseconds; a later verdict is `late`.
    """

    boot_id: str
    seq: Annotated[int, msgspec.Meta(ge=1)]
    camera: str
    source: str
    frame_id: int
    verdict: Verdict
    captured_at_ns: int
    decided_at_ns: int
    bundle_id: str
    calibration_id: str
    score: float | None
    peak: float | None
    threshold: float | None
    pixel_threshold: float | None
    frame_size: tuple[Count, Count]
    mask_size: tuple[Count, Count]
    regions: list[Region] = []
    part_id: str | None = None
    encoder: int | None = None
    triggered_at_ns: int | None = None
    deadline_at_ns: int | None = None
    reason: str = ""
    latency_ms: dict[str, float] = {}
    skipped: int = 0
    journal_id: str = ""
    roi: tuple[Count, Count, Count, Count] | None = None
    schema: int = SCHEMA_VERSION


class Status(msgspec.Struct, omit_defaults=False):
    """The station's own state, two-part message: topic, header.

    `state` is `starting`, `running`, `blind` (there are no frames, `reason` says why) or `stopped`; `last_seq` that of
    the last event sent, 0 before the first; `first_seq` that of the oldest event that can be replayed, 0 where there is
    none.  `journal` is `ok`, `degraded` (what is published is not on the disk yet) or `none`; a station of an older
    release leaves it empty.
    """

    boot_id: str
    camera: str
    state: str
    at_ns: int
    last_seq: Count = 0
    counters: dict[str, int] = {}
    bundle_id: str = ""
    calibration_id: str = ""
    journal_id: str = ""
    first_seq: Count = 0
    journal: str = ""
    reason: str = ""
    schema: int = SCHEMA_VERSION


def numbering(header: Event | Status) -> str:
    """Return what the header's sequence numbers belong to: its journal, or its boot where the release knows none."""
    return header.journal_id or header.boot_id
