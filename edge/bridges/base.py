"""What a protocol's module provides: settings, addresses, and a connection to one PLC.

A new protocol is one module in `edge/bridges/protocols/`, with a `PROTOCOL`.  Its name is what `protocol = "…"` in
`bridge.toml` says, and the extra of our package that installs what it imports.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import msgspec

from edge.bridges import protocols
from edge.bridges.tags import RESULT_FIELDS, Inputs, Outputs, Tag
from edge.errors import UsageError
from edge.events.schema import Event

Milliseconds = Annotated[float, msgspec.Meta(gt=0, le=3_600_000)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
PlcName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,32}$")]


class PlcSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys that every `[[plc]]` table of `bridge.toml` may have; a protocol's own come on top.

    Attributes:
        name: names the PLC in messages, and its parts in the station's events.
        protocol: a module of `edge.bridges.protocols`.
        camera: triggers and verdicts are this camera's; may be empty where the station has one.
        deadline_ms, trigger_timeout_ms, station_timeout_ms, plc_timeout_ms, heartbeat_ms, max_parts: see
            `edge.bridges.handshake.Timing`.
        plc_heartbeat: False where the PLC has no heartbeat: it is then there as long as it is connected.
        poll_ms: between looks at the PLC where its writing does not wake us.
        recipes: bundles by number, paths on the station's machine.
    """

    name: PlcName
    protocol: str
    camera: Annotated[str, msgspec.Meta(max_length=64)] = ""
    deadline_ms: Milliseconds = 500.0
    trigger_timeout_ms: Milliseconds = 100.0
    station_timeout_ms: Milliseconds = 2500.0
    plc_timeout_ms: Milliseconds = 1000.0
    plc_heartbeat: bool = True
    heartbeat_ms: Milliseconds = 250.0
    max_parts: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 16
    poll_ms: Milliseconds = 10.0
    recipes: dict[str, str] = {}


class PlcLostError(Exception):
    """The PLC cannot be read or written now: names the register, node or address, and the reason.

    The bridge closes the connection, says why, and opens it again.
    """


def _nothing(text: str) -> None:
    """Do nothing."""


class Plc(ABC):
    """A connection to one PLC.  All calls come from one thread, that of its side of the bridge.

    Attributes:
        polled: what the PLC writes must be looked for every `poll_ms`; False where its writing wakes us.
        report: called with messages for people; the bridge sets it.
    """

    polled: ClassVar[bool] = True
    report: Callable[[str], None] = staticmethod(_nothing)

    @abstractmethod
    def open(self) -> None:
        """Connect, or begin to serve; called again after `close`.

        Raises:
            PlcLostError: not now; it is tried again.
            BridgeError: not ever with these settings, such as an address that is in use.
        """

    @abstractmethod
    def read(self) -> Inputs:
        """Return what the PLC has written, as of one moment.

        Raises:
            PlcLostError: it cannot be had.
        """

    @abstractmethod
    def write(self, outputs: Outputs) -> None:
        """Let the PLC see these outputs, all of them at one moment or not at all.

        Raises:
            PlcLostError: whether it sees them is not known.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the connection; nothing happens where it is closed."""


class EventPlc(Plc):
    """A connection that also tells every event of the camera, such as to a plant's records."""

    @abstractmethod
    def event(self, event: Event) -> None:
        """Hand on the next event, triggered by this PLC or not; it counts as told after `settle`.

        It may come twice, under the same `journal_id` and `seq`; what was published while the bridge was not there
        comes when it is back.

        Raises:
            PlcLostError: it could not be told; it comes again after the connection has been opened anew.
        """

    def settle(self) -> None:
        """Return when all events that were handed on have arrived.

        Raises:
            PlcLostError: one has not; they come again after the connection has been opened anew.
        """


_Settings = TypeVar("_Settings", bound=PlcSettings)


@dataclass(frozen=True)
class Protocol(Generic[_Settings]):
    """What a protocol's module has as `PROTOCOL`.

    Attributes:
        settings: the keys of its `[[plc]]` table.
        connect: makes the connection, not yet open, of settings and of a function that wakes the bridge's thread for
            this PLC when the PLC has written; it may be called from any thread.
        address: where a tag is, as PLC programmers write it, such as `holding register 104`.
    """

    settings: type[_Settings]
    connect: Callable[[_Settings, Callable[[], None]], Plc]
    address: Callable[[_Settings, Tag], str]


def protocol_names() -> list[str]:
    """Return the protocols that there are."""
    return sorted(module.name for module in pkgutil.iter_modules(protocols.__path__))


def find_protocol(name: str) -> Protocol[Any]:
    """Return a protocol by its name.

    Raises:
        UsageError: there is none of this name, or what it needs is not installed.
    """
    if name not in protocol_names():
        raise UsageError(f"there is no protocol {name!r}", f"use one of: {', '.join(protocol_names())}")
    try:
        protocol = importlib.import_module(f"{protocols.__name__}.{name}").PROTOCOL
    except ModuleNotFoundError as error:
        raise UsageError(
            f"the protocol {name} needs {error.name}, which is not installed", f"pip install 'redi-edge[{name}]'"
        ) from error
    assert isinstance(protocol, Protocol)
    return protocol


def transitions(seen: Outputs, wanted: Outputs) -> list[Outputs]:
    """Return the images to write, one after the other, so that a PLC that reads in between never errs.

    No value of a result changes while `result_valid` is set, not even in the write that sets or clears it.
    """
    if _result(seen) == _result(wanted):
        return [] if seen == wanted else [wanted]
    images = []
    if seen.result_valid:
        images.append(msgspec.structs.replace(wanted, result_valid=False, **_result(seen)))
    if wanted.result_valid:
        images.append(msgspec.structs.replace(wanted, result_valid=False))
    return [*images, wanted]


def _result(outputs: Outputs) -> dict[str, Any]:
    return {field: getattr(outputs, field) for field in RESULT_FIELDS}
