"""The signals between the PLC and the bridge: the one list that the code, the tag exports and the docs are made from.

`Inputs` is what the PLC writes, `Outputs` what the bridge writes; each field carries its `Signal`.  `docs/plc.md` shows
the list, and a test compares them.
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Annotated, Any, NamedTuple, get_args, get_type_hints

import msgspec


class TagType(str, Enum):
    """Types as IEC 61131-3 names them: 1, 16, 32 bits without sign, 32 bits with, IEEE 754 single precision."""

    BOOL = "BOOL"
    UINT = "UINT"
    UDINT = "UDINT"
    DINT = "DINT"
    REAL = "REAL"

    @property
    def limits(self) -> tuple[int, int]:
        """The lowest and highest whole number of the type; of REAL, those that it holds exactly."""
        return _LIMITS[self]


_LIMITS = {
    TagType.BOOL: (0, 1),
    TagType.UINT: (0, 0xFFFF),
    TagType.UDINT: (0, 0xFFFF_FFFF),
    TagType.DINT: (-(1 << 31), (1 << 31) - 1),
    TagType.REAL: (-(1 << 24), 1 << 24),
}


class Direction(str, Enum):
    """Who writes a tag."""

    FROM_PLC = "PLC to station"
    TO_PLC = "station to PLC"


class VerdictCode(IntEnum):
    """What the PLC reads as `verdict`: let a part pass on `OK` alone."""

    NONE = 0
    OK = 1
    NG = 2
    LATE = 3
    FAULT = 4


class StateCode(IntEnum):
    """The station as OPC 40100-1 (OPC UA for Machine Vision) names its states."""

    PREOPERATIONAL = 1
    HALTED = 2
    ERROR = 3
    INITIALIZED = 4
    READY = 5
    SINGLE_EXECUTION = 6
    CONTINUOUS_EXECUTION = 7


class ErrorCode(IntEnum):
    """Why `error` is set."""

    NONE = 0
    STATION_LOST = 1
    NOT_READY = 2
    PART_ID = 3
    TRIGGER_REFUSED = 4
    TRIGGER_UNCONFIRMED = 5
    PARTS_DROPPED = 6
    COMMAND_REFUSED = 7


class CommandCode(IntEnum):
    """What the PLC may write as `command`."""

    NONE = 0
    RESET = 1
    RECIPE = 2


class CommandStatus(IntEnum):
    """How the command that is echoed went."""

    NONE = 0
    DONE = 1
    REFUSED = 2


class Signal(NamedTuple):
    """What a field of `Inputs` or `Outputs` is on the PLC's side; `unit` is empty where there is none."""

    kind: TagType
    meaning: str
    unit: str = ""
    values: type[IntEnum] | None = None


class Tag(NamedTuple):
    """One signal of the list."""

    field: str
    direction: Direction
    signal: Signal

    @property
    def name(self) -> str:
        """The name that PLC programs use: `part_id` is `PartId`."""
        return "".join(word.capitalize() for word in self.field.split("_"))

    @property
    def type(self) -> TagType:
        """Its type."""
        return self.signal.kind

    @property
    def meaning(self) -> str:
        """What it means, with its values by name."""
        if self.signal.values is None:
            return self.signal.meaning
        values = ", ".join(f"{each.value} {each.name.lower().replace('_', ' ')}" for each in self.signal.values)
        return f"{self.signal.meaning}: {values}"


_BOOL, _UINT, _UDINT, _DINT, _REAL = TagType.BOOL, TagType.UINT, TagType.UDINT, TagType.DINT, TagType.REAL


class Inputs(msgspec.Struct, frozen=True):
    """What the PLC writes."""

    trigger: Annotated[bool, Signal(_BOOL, "inspect the part PartId: keep it set until TriggerAck, then clear it")] = (
        False
    )
    result_ack: Annotated[
        bool, Signal(_BOOL, "the result has been taken: set it on ResultValid, clear it when ResultValid has cleared")
    ] = False
    error_ack: Annotated[bool, Signal(_BOOL, "each setting clears the error that is shown")] = False
    heartbeat: Annotated[int, Signal(_UINT, "changes while the PLC's program runs, such as counting up")] = 0
    command: Annotated[
        int, Signal(_UINT, "what to do: keep it until it is echoed, then write 0", values=CommandCode)
    ] = 0
    command_value: Annotated[int, Signal(_UINT, "number of the recipe, for command 2; write it before Command")] = 0
    part_id: Annotated[
        int, Signal(_UDINT, "the part to be inspected, from 1; write it before or together with Trigger")
    ] = 0
    encoder: Annotated[int, Signal(_DINT, "the conveyor's encoder when the part was triggered", "counts")] = 0


class Outputs(msgspec.Struct, frozen=True):
    """What the bridge writes; from `part_id` on, the result, whose fields stand still while `result_valid` is set."""

    ready: Annotated[bool, Signal(_BOOL, "a trigger will be taken")] = False
    trigger_ack: Annotated[
        bool, Signal(_BOOL, "the trigger was dealt with: the station has it, or the part will get the verdict fault")
    ] = False
    busy: Annotated[bool, Signal(_BOOL, "at least one part waits for its verdict")] = False
    result_valid: Annotated[bool, Signal(_BOOL, "PartId, Verdict and what follows are one part's result")] = False
    error: Annotated[bool, Signal(_BOOL, "ErrorCode holds an error; not ready until it is acknowledged")] = False
    heartbeat: Annotated[int, Signal(_UINT, "counts up while the bridge runs; over 65535 it goes on from 0")] = 0
    state: Annotated[int, Signal(_UINT, "state of the station", values=StateCode)] = StateCode.PREOPERATIONAL
    error_code: Annotated[int, Signal(_UINT, "the oldest error not acknowledged", values=ErrorCode)] = 0
    command_echo: Annotated[int, Signal(_UINT, "the command that was carried out; 0 when Command is 0 again")] = 0
    command_status: Annotated[int, Signal(_UINT, "how it went", values=CommandStatus)] = 0
    part_id: Annotated[int, Signal(_UDINT, "the part that the result is of; 0 none")] = 0
    verdict: Annotated[int, Signal(_UINT, "let the part pass on 1 alone", values=VerdictCode)] = 0
    region_count: Annotated[int, Signal(_UINT, "regions that are marked as anomalous")] = 0
    score: Annotated[float, Signal(_REAL, "image score; -1 not known", "map units")] = -1.0
    threshold: Annotated[float, Signal(_REAL, "ng when the score is above; -1 not known", "map units")] = -1.0
    worst_x: Annotated[float, Signal(_REAL, "centre of the worst region; -1 none", "px")] = -1.0
    worst_y: Annotated[float, Signal(_REAL, "centre of the worst region; -1 none", "px")] = -1.0
    worst_x_mm: Annotated[float, Signal(_REAL, "the same; -1 where the pixel size is not calibrated", "mm")] = -1.0
    worst_y_mm: Annotated[float, Signal(_REAL, "the same; -1 where the pixel size is not calibrated", "mm")] = -1.0


def _tags(struct: type[msgspec.Struct], direction: Direction) -> tuple[Tag, ...]:
    hints: dict[str, Any] = get_type_hints(struct, include_extras=True)
    return tuple(Tag(field, direction, get_args(hints[field])[1]) for field in struct.__struct_fields__)


INPUT_TAGS = _tags(Inputs, Direction.FROM_PLC)
OUTPUT_TAGS = _tags(Outputs, Direction.TO_PLC)
#: Every signal, those that the PLC writes first.
TAGS = INPUT_TAGS + OUTPUT_TAGS
#: The fields of `Outputs` that are one part's result.
RESULT_FIELDS = Outputs.__struct_fields__[Outputs.__struct_fields__.index("part_id") :]
