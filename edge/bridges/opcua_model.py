"""What an OPC UA client sees: the signals as variables, the state machines with their methods, and result events.

Objects/VisionSystem
  VisionStateMachine            CurrentState; Reset, Halt, SelectModeAutomatic, ConfirmAll
    AutomaticModeStateMachine   CurrentState; StartSingleJob, StartContinuous (refused)
  Signals/FromPlc, Signals/ToPlc
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timezone
from typing import Any

from asyncua import Node, Server, ua

from edge.bridges.tags import OUTPUT_TAGS, RESULT_FIELDS, TAGS, Direction, Outputs, StateCode, Tag, TagType

#: Whose names these are; its own nodes are not here.
VISION_URI = "http://opcfoundation.org/UA/MachineVision"
SIGNALS_URI = "urn:redi-edge:signals"
#: Indexes of the two, as in the addresses of nodes.
SIGNALS_INDEX, VISION_INDEX = 2, 3

VARIANTS = {
    TagType.BOOL: ua.VariantType.Boolean,
    TagType.UINT: ua.VariantType.UInt16,
    TagType.UDINT: ua.VariantType.UInt32,
    TagType.DINT: ua.VariantType.Int32,
    TagType.REAL: ua.VariantType.Float,
}
_TOP = {1: "Preoperational", 2: "Halted", 3: "Error", 4: "Operational"}
_AUTOMATIC = {5: "Initialized", 6: "Ready", 7: "SingleExecution", 8: "ContinuousExecution"}
_SUBSTATES = {
    StateCode.INITIALIZED: "Initialized",
    StateCode.READY: "Ready",
    StateCode.SINGLE_EXECUTION: "SingleExecution",
    StateCode.CONTINUOUS_EXECUTION: "ContinuousExecution",
}
_RESULT_TAGS = [tag for tag in TAGS if tag.direction is Direction.TO_PLC and tag.field in RESULT_FIELDS]
# Of `ResultState` in OPC 40100-1.
_COMPLETED = 1

Method = Callable[..., Awaitable[Any]]


def node_name(tag: Tag) -> str:
    """Return the identifier of a signal's node."""
    return f"{'FromPlc' if tag.direction is Direction.FROM_PLC else 'ToPlc'}.{tag.name}"


class _Machine:
    """A finite state machine: its states, and which of them is current."""

    def __init__(self, node: Node, states: dict[int, str]) -> None:
        self.node, self._states = node, states
        self._current: str | None = None

    async def build(self, name: str) -> None:
        """Add its states."""
        for number, state in self._states.items():
            made = await self.node.add_object(
                ua.NodeId(f"{name}.{state}", SIGNALS_INDEX),
                ua.QualifiedName(state, VISION_INDEX),
                objecttype=ua.NodeId(ua.ObjectIds.StateType),
            )
            value = await made.get_child("0:StateNumber")
            await value.write_value(ua.Variant(number, ua.VariantType.UInt32))
        self._name = name
        self._value = await self.node.get_child("0:CurrentState")
        self._id = await self.node.get_child(["0:CurrentState", "0:Id"])

    async def enter(self, state: str) -> None:
        """Make a state the current one; none where it is empty."""
        if state == self._current:
            return
        self._current = state
        identifier = ua.NodeId(f"{self._name}.{state}", SIGNALS_INDEX) if state else ua.NodeId()
        await self._id.write_value(ua.Variant(identifier, ua.VariantType.NodeId))
        await self._value.write_value(ua.Variant(ua.LocalizedText(state), ua.VariantType.LocalizedText))


class VisionModel:
    """The nodes of one server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._nodes: dict[str, Node] = {}
        self._shown: Outputs | None = None
        self._showing = asyncio.Lock()
        #: The signals that the PLC writes, by node.
        self.inputs: dict[ua.NodeId, Tag] = {}

    async def build(self, methods: dict[str, Method]) -> None:
        """Add all nodes; `methods` are those of both state machines."""
        assert await self._server.register_namespace(SIGNALS_URI) == SIGNALS_INDEX
        assert await self._server.register_namespace(VISION_URI) == VISION_INDEX
        system = await self._server.nodes.objects.add_object(*_names("VisionSystem"))
        self._top = await self._machine(system, "VisionStateMachine", _TOP)
        self._automatic = await self._machine(self._top.node, "AutomaticModeStateMachine", _AUTOMATIC)
        error = [_argument("error", ua.VariantType.Int32, "0: done")]
        for name in ("Reset", "Halt", "SelectModeAutomatic", "ConfirmAll"):
            await self._top.node.add_method(*_names(name), methods[name], [], error)
        job = [
            _argument("measId", ua.VariantType.String, "yours; not used"),
            _argument("partId", ua.VariantType.UInt32, "the part, from 1"),
            _argument("recipeId", ua.VariantType.String, "not used: the recipe that is in use stays"),
            _argument("productId", ua.VariantType.String, "yours; not used"),
            _argument("encoder", ua.VariantType.Int32, "the conveyor's encoder, in counts"),
        ]
        started = [_argument("jobId", ua.VariantType.String, "comes with the result event"), *error]
        for name in ("StartSingleJob", "StartContinuous"):
            await self._automatic.node.add_method(*_names(name), methods[name], job, started)
        await self._add_signals(system)
        event_type = await self._server.create_custom_event_type(
            VISION_INDEX,
            "ResultReadyEventType",
            ua.ObjectIds.BaseEventType,
            [
                ("JobId", ua.VariantType.String),
                ("ResultState", ua.VariantType.Int32),
                ("IsPartial", ua.VariantType.Boolean),
                ("IsSimulated", ua.VariantType.Boolean),
                ("CreationTime", ua.VariantType.DateTime),
                *((tag.name, VARIANTS[tag.type]) for tag in _RESULT_TAGS),
            ],
        )
        self._events = await self._server.get_event_generator(event_type, system)

    async def show(self, outputs: Outputs) -> None:
        """Let clients see these outputs; whoever is told that a result is valid has been told the result."""
        async with self._showing:
            # Until it is done, nobody knows what of it can be seen.
            before, self._shown = self._shown, None
            await self._show(before, outputs)
            self._shown = outputs

    async def _show(self, before: Outputs | None, outputs: Outputs) -> None:
        tags = [
            tag for tag in OUTPUT_TAGS if before is None or getattr(before, tag.field) != getattr(outputs, tag.field)
        ]
        tags.sort(key=lambda tag: (tag.field == "result_valid") == outputs.result_valid)
        for tag in tags:
            value = ua.DataValue(ua.Variant(_plain(getattr(outputs, tag.field)), VARIANTS[tag.type]))
            await self._server.write_attribute_value(self._nodes[tag.field].nodeid, value)
        state = StateCode(outputs.state)
        await self._automatic.enter(_SUBSTATES.get(state, ""))
        await self._top.enter("Operational" if state in _SUBSTATES else state.name.capitalize())

    async def tell(self, outputs: Outputs, job: str) -> None:
        """Fire the result event."""
        event = self._events.event
        event.Message = ua.LocalizedText(f"part {outputs.part_id}")
        event.Severity = 100
        event.JobId, event.ResultState = job, _COMPLETED
        event.IsPartial = event.IsSimulated = False
        event.CreationTime = datetime.now(timezone.utc)
        for tag in _RESULT_TAGS:
            setattr(event, tag.name, _plain(getattr(outputs, tag.field)))
        await self._events.trigger()

    async def _machine(self, parent: Node, name: str, states: dict[int, str]) -> _Machine:
        base = self._server.get_node(ua.NodeId(ua.ObjectIds.FiniteStateMachineType))
        # The standard's name of this one is `VisionAutomaticModeStateMachineType`.
        kind = name if name.startswith("Vision") else f"Vision{name}"
        type_node = await base.add_object_type(*_names(f"{kind}Type"))
        node = await parent.add_object(*_names(name), objecttype=type_node.nodeid, instantiate_optional=False)
        machine = _Machine(node, states)
        await machine.build(name)
        return machine

    async def _add_signals(self, system: Node) -> None:
        folder = await system.add_folder(
            ua.NodeId("Signals", SIGNALS_INDEX), ua.QualifiedName("Signals", SIGNALS_INDEX)
        )
        blocks = {
            direction: await folder.add_folder(ua.NodeId(name, SIGNALS_INDEX), ua.QualifiedName(name, SIGNALS_INDEX))
            for direction, name in ((Direction.FROM_PLC, "FromPlc"), (Direction.TO_PLC, "ToPlc"))
        }
        for tag in TAGS:
            node = await blocks[tag.direction].add_variable(
                ua.NodeId(node_name(tag), SIGNALS_INDEX),
                ua.QualifiedName(tag.name, SIGNALS_INDEX),
                ua.get_default_value(VARIANTS[tag.type]),
                VARIANTS[tag.type],
            )
            await node.write_attribute(
                ua.AttributeIds.Description,
                ua.DataValue(ua.Variant(ua.LocalizedText(tag.meaning), ua.VariantType.LocalizedText)),
            )
            if tag.direction is Direction.FROM_PLC:
                await node.set_writable()
                self.inputs[node.nodeid] = tag
            else:
                self._nodes[tag.field] = node


def _names(name: str) -> tuple[ua.NodeId, ua.QualifiedName]:
    return ua.NodeId(name, SIGNALS_INDEX), ua.QualifiedName(name, VISION_INDEX)


def _argument(name: str, kind: ua.VariantType, meaning: str) -> ua.Argument:
    return ua.Argument(
        Name=name,
        DataType=ua.NodeId(kind.value),
        ValueRank=ua.ValueRank.Scalar,
        ArrayDimensions=[],
        Description=ua.LocalizedText(meaning),
    )


def _plain(value: bool | int | float) -> bool | int | float:
    # Not the enumerations of ours.
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value
