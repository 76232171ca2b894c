"""What a client may ask of a station, and what it answers: one msgpack map each way.

    request   {"op": "replay", "id": 7, ...the operation's own fields}
    reply     {"id": 7, "code": "", "error": "", "result": {...}}

`code` is empty where all went well, and else names what went wrong; `error` is for people.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from edge.events.schema import Count

#: Larger requests cost the client its connection.
MAX_REQUEST_BYTES = 64 << 10
#: A reply is not larger than this, with one event of the largest size in it.
MAX_REPLY_BYTES = 24 << 20
#: Events of one reply, unless a single one is larger.
MAX_REPLAY_BYTES = 512 << 10
MAX_REPLAY_EVENTS = 1000

Name = Annotated[str, msgspec.Meta(max_length=256)]
PartId = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Encoder = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]

#: Codes of refusals that a program may want to tell apart.
BAD_REQUEST = "bad-request"
UNKNOWN_OPERATION = "unknown-operation"
UNKNOWN_CAMERA = "unknown-camera"
UNKNOWN_JOURNAL = "unknown-journal"
UNAVAILABLE = "unavailable"
#: The station runs free, or too many parts wait for their verdict.
NOT_TRIGGERED = "not-triggered"
BUSY = "busy"
#: A bundle that cannot take over; the one in use stays.
REFUSED_BUNDLE = "refused-bundle"
INTERNAL = "internal"


class RequestError(Exception):
    """A request that is refused, with one of the codes and a reason for people."""

    def __init__(self, code: str, problem: str) -> None:
        super().__init__(problem)
        self.code = code
        self.problem = problem


class Request(msgspec.Struct):
    """What every request has; the fields of an operation are in a class of its own."""

    op: Name
    id: Count = 0


class Reply(msgspec.Struct):
    """What every reply is; `result` is a struct of the operation, still encoded at the client."""

    id: Count
    code: str = ""
    error: str = ""
    result: msgspec.Raw = msgspec.Raw(b"\xc0")


class Replay(msgspec.Struct):
    """`replay`: the events of a camera's journal after a number; of the oldest journal where `journal_id` is empty."""

    camera: Name
    journal_id: Name = ""
    after_seq: Count = 0
    limit: Annotated[int, msgspec.Meta(ge=1)] = MAX_REPLAY_EVENTS


class Lost(msgspec.Struct):
    """Events `first` to `last` cannot be replayed: `reason` is `lost`, or `pruned` where they were too old."""

    first: int
    last: int
    reason: str


class Replayed(msgspec.Struct):
    """The answer: of the numbers after `after_seq` up to `through_seq`, all are in `events` or in `lost`.

    `events` are in order, each its header and mask as they were published.  `last_seq` is the last one issued,
    `first_seq` the oldest that is kept, 0 where there is none.  Where `next_journal_id` is not empty and `through_seq`
    is `last_seq`, the camera's numbers go on in that journal, from 1.
    """

    journal_id: str
    first_seq: Count
    last_seq: Count
    through_seq: Count
    events: list[tuple[bytes, bytes]] = []
    lost: list[Lost] = []
    next_journal_id: str = ""


class StatusRequest(msgspec.Struct):
    """`status`: the latest status of each camera, or of one."""

    camera: Name = ""


class Statuses(msgspec.Struct):
    """The answer: each status as it would be published, encoded."""

    statuses: list[bytes]


class Trigger(msgspec.Struct):
    """`trigger`: inspect one part, once; asked again with the same `part_id`, it is the same part.

    `camera` may be empty where the station has one.  `deadline_ms` counts from the station's receiving the request;
    without it, the station's own `--deadline-ms` holds.
    """

    part_id: PartId
    camera: Name = ""
    encoder: Encoder | None = None
    deadline_ms: Annotated[float, msgspec.Meta(gt=0, le=3_600_000)] | None = None


class Triggered(msgspec.Struct):
    """The answer: the part will get exactly one event.

    `new`: this request started the inspection.  `durable`: the journal has the part, so that even after a crash it gets
    its verdict.  Where the verdict is there already, it is event `seq` of `journal_id`.
    """

    part_id: str
    new: bool
    durable: bool
    journal_id: str = ""
    seq: int | None = None


class Switch(msgspec.Struct):
    """`switch`: inspect with another bundle, a path on the station's machine, once its golden frames have passed."""

    bundle: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
    camera: Name = ""


class Switched(msgspec.Struct):
    """The answer: what decides from now on."""

    bundle_id: str
    calibration_id: str


def encode(value: Any) -> bytes:
    """Return a struct as msgpack."""
    return msgspec.msgpack.encode(value)


def encode_request(op: str, number: int, request: msgspec.Struct) -> bytes:
    """Return an operation's request as it is sent."""
    return encode({"op": op, "id": number, **msgspec.structs.asdict(request)})
