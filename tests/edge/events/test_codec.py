from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.events.codec import (
    MAX_HEADER_BYTES,
    MAX_MASK_BYTES,
    EventMessage,
    MessageError,
    StatusMessage,
    decode_message,
    encode_event,
    encode_status,
    event_to_json,
)
from edge.events.rle import MAX_PIXELS, encode_mask
from edge.events.schema import SCHEMA_VERSION, Event, Status, numbering
from edge.inspection.result import Region, Verdict

GOLDEN = Path(__file__).parent / "golden"
MakeEvent = Callable[..., Event]

STATUS = Status(
    boot_id="00112233aabbccdd",
    camera="cam0",
    state="stopped",
    at_ns=1_767_225_600_123_456_789,
    last_seq=7,
    counters={"ok": 6, "ng": 1},
    bundle_id="0123456789abcdef",
    calibration_id="fedcba9876543210",
    journal_id="8899aabbccddeeff",
    first_seq=2,
    journal="ok",
)
TRIGGER = {
    "roi": (100, 50, 700, 500),
    "part_id": "part 41",
    "encoder": -(1 << 63),
    "triggered_at_ns": 1_767_225_600_000_000_000,
    "deadline_at_ns": 1_767_225_600_150_000_000,
}


def golden_mask() -> np.ndarray:
    mask = np.zeros((8, 16), bool)
    mask[1:3, 2:5] = True
    mask[6, 10] = True
    return mask


def golden(name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(GOLDEN.glob(f"{name}.*"))]


def test_events_are_encoded_to_the_golden_bytes(make_event: MakeEvent) -> None:
    counts = encode_mask(np.packbits(golden_mask(), axis=1))
    assert encode_event(make_event(), counts) == golden("event-v1")
    assert encode_event(make_event(**TRIGGER), b"") == golden("event-v1-triggered")
    assert encode_status(STATUS) == golden("status-v1")


def test_golden_bytes_decode(make_event: MakeEvent) -> None:
    message = decode_message(golden("event-v1"))
    assert isinstance(message, EventMessage)
    assert message.event == make_event()
    assert np.array_equal(message.mask_array(), golden_mask())
    assert decode_message(golden("event-v1-triggered")) == EventMessage(make_event(**TRIGGER), b"")
    assert decode_message(golden("status-v1")) == StatusMessage(STATUS)


def test_messages_from_before_there_were_journals_decode(make_event: MakeEvent) -> None:
    message = decode_message(golden("event-v1-first"))
    assert isinstance(message, EventMessage)
    assert message.event == make_event(journal_id="")
    assert numbering(message.event) == message.event.boot_id
    status = msgspec.structs.replace(STATUS, journal_id="", first_seq=0, journal="")
    assert decode_message(golden("status-v1-first")) == StatusMessage(status)


numbers = st.floats(allow_nan=False, allow_infinity=False)
maybe = st.none() | numbers
sizes = st.tuples(st.integers(0, 16000), st.integers(0, 16000))
int64 = st.integers(-(2**63), 2**63 - 1)
regions = st.builds(
    Region,
    bbox=st.tuples(int64, int64, int64, int64),
    area_px=int64,
    peak=numbers,
    centroid=st.tuples(numbers, numbers),
    area_mm2=maybe,
)
events = st.builds(
    Event,
    boot_id=st.text(),
    seq=st.integers(1, 2**63 - 1),
    camera=st.text(max_size=64),
    source=st.text(),
    frame_id=int64,
    verdict=st.sampled_from(Verdict),
    captured_at_ns=int64,
    decided_at_ns=int64,
    bundle_id=st.text(),
    calibration_id=st.text(),
    score=maybe,
    peak=maybe,
    threshold=maybe,
    pixel_threshold=maybe,
    frame_size=sizes,
    mask_size=sizes,
    regions=st.lists(regions, max_size=3),
    part_id=st.none() | st.text(),
    reason=st.text(),
    latency_ms=st.dictionaries(st.text(), numbers, max_size=3),
    skipped=int64,
    journal_id=st.text(),
    roi=st.none() | st.just((0, 0, 0, 0)),
)
quick = settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])


@quick
@given(events, st.binary(max_size=50))
def test_events_come_back_as_they_went(event: Event, mask: bytes) -> None:
    assert decode_message(encode_event(event, mask)) == EventMessage(event, mask)


@quick
@given(events)
def test_json_has_every_field_on_one_line(event: Event) -> None:
    line = event_to_json(EventMessage(event, b"061"))
    assert b"\n" not in line
    parsed = json.loads(line)
    assert set(parsed) == {*Event.__struct_fields__, "mask"}
    assert parsed["mask"] == "061"
    assert parsed["seq"] == event.seq
    assert parsed["score"] == event.score
    assert parsed["verdict"] == event.verdict.value


def test_json_never_has_nan(make_event: MakeEvent) -> None:
    event = make_event(score=math.nan, peak=math.inf, threshold=-math.inf, latency_ms={"core": math.nan})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    parsed = json.loads(event_to_json(EventMessage(event, b"")), parse_constant=refuse)
    assert [parsed["score"], parsed["peak"], parsed["threshold"], parsed["latency_ms"]] == [None] * 3 + [{"core": None}]


def test_numpy_scalars_are_numbers(make_event: MakeEvent) -> None:
    event = make_event(score=np.float32(1.25), seq=np.int64(7))
    assert encode_event(event, b"") == encode_event(make_event(), b"")


def changed(**fields: Any) -> list[bytes]:
    topic, header, mask = golden("event-v1")
    return [topic, msgspec.msgpack.encode({**msgspec.msgpack.decode(header), **fields}), mask]


def without(field: str) -> list[bytes]:
    topic, header, mask = golden("event-v1")
    fields = msgspec.msgpack.decode(header)
    del fields[field]
    return [topic, msgspec.msgpack.encode(fields), mask]


def test_fields_of_a_later_release_are_ignored(make_event: MakeEvent) -> None:
    message = decode_message(changed(speed=[1, {"deep": None}], colour="red"))
    assert isinstance(message, EventMessage)
    assert message.event == make_event()


def test_a_newer_schema_says_what_to_do() -> None:
    with pytest.raises(MessageError, match=rf"schema {SCHEMA_VERSION + 1} is newer.*install"):
        decode_message(changed(schema=SCHEMA_VERSION + 1))
    # Whatever else a newer schema may have changed.
    with pytest.raises(MessageError, match="is newer"):
        decode_message([b"redi/status/x", msgspec.msgpack.encode({"schema": 99})])


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b""],
        [b"\xff"],
        [b"redi/event/"],
        [b"redi/event/cam0", b"", b""],
        [b"redi/event/cam0", b"\xc1", b""],
        [b"other/cam0", b"", b""],
        [b"redi/event/" + b"x" * 2000, b"", b""],
        golden("event-v1")[:2],
        [*golden("event-v1"), b""],
        [b"redi/event/cam1", *golden("event-v1")[1:]],
        [b"redi/event/cam0", b"\x91" * 100_000, b""],
        [b"redi/event/cam0", b"\x81\xa6schema" * 5000, b""],
        [b"redi/event/cam0", golden("event-v1")[1] + b"\0" * MAX_HEADER_BYTES, b""],
        [b"redi/event/cam0", golden("event-v1")[1] + b"\0", b""],
        [b"redi/event/cam0", golden("event-v1")[1][:-1], b""],
        [*golden("event-v1")[:2], b"0" * (MAX_MASK_BYTES + 1)],
        [b"redi/status/cam1", golden("status-v1")[1]],
        [*golden("status-v1"), b""],
        changed(seq=0),
        changed(seq="7"),
        changed(seq=2**64 - 1, frame_id=1.5),
        changed(verdict="maybe"),
        changed(score="1.25"),
        changed(frame_size=[-1, 5]),
        changed(frame_size=[1, 2, 3]),
        changed(mask_size=[MAX_PIXELS, 2]),
        changed(roi=[0, 0, 901, 600]),
        changed(roi=[1, 1, 10, 600]),
        changed(roi=[-1, 0, 10, 10]),
        changed(frame_size=[MAX_PIXELS, 2]),
        changed(regions=[{"bbox": [1, 2, 3]}]),
        changed(schema="1"),
        without("schema"),
        without("verdict"),
        without("score"),
    ],
    ids=lambda parts: f"{len(parts)}-parts",
)
def test_malformed_messages_are_refused(parts: list[bytes]) -> None:
    with pytest.raises(MessageError):
        decode_message(parts)


@settings(max_examples=100)
@given(st.data())
def test_damaged_messages_decode_or_are_refused(data: st.DataObject) -> None:
    topic, header, mask = golden("event-v1")
    damaged = bytearray(header)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(header) - 1))] = data.draw(st.integers(0, 255))
    try:
        message = decode_message([topic, bytes(damaged), mask])
    except MessageError:
        return
    assert isinstance(message, EventMessage)
    event_to_json(message)
    with contextlib.suppress(ValueError):
        assert message.mask_array().shape == message.event.mask_size[::-1]
