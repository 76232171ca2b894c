"""Triggers and commands that come as MQTT messages, as what a PLC's program would write."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec

from edge.bridges.mqtt_link import Received
from edge.bridges.tags import CommandCode, CommandStatus, Inputs, Outputs

# Triggers and commands that are not dealt with yet.
_MAX_WAITING = 16

Reply = dict[str, object]


class _Trigger(msgspec.Struct, forbid_unknown_fields=True):
    part: Annotated[int, msgspec.Meta(ge=1, le=0xFFFF_FFFF)]
    encoder: Annotated[int, msgspec.Meta(ge=-(1 << 31), lt=1 << 31)] = 0


class _Command(msgspec.Struct, forbid_unknown_fields=True):
    command: Literal["acknowledge", "reset", "recipe"]
    value: Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)] = 0


class Remote:
    """Plays the PLC's part of the handshake, for whoever sends triggers and commands.

    Args:
        fresh_s: a trigger that has waited longer is refused: the camera would see another part.
        answer: publishes an answer.
    """

    def __init__(self, fresh_s: float, answer: Callable[[Reply], None]) -> None:
        self._fresh_s, self._answer = fresh_s, answer
        self._inputs = Inputs()
        self._triggers: deque[tuple[_Trigger, float]] = deque()
        self._commands: deque[_Command] = deque()
        self._acknowledged = False
        # The trigger that is set is one that the reset drops.
        self._dropped = False

    def take(self, message: Received, is_trigger: bool, now: float) -> None:
        """Take what was sent; answer at once where it cannot be done."""
        try:
            if message.retained:
                raise ValueError("it was retained, and may be of any time")
            if len(self._triggers) + len(self._commands) >= _MAX_WAITING:
                raise ValueError("too much waits already")
            if is_trigger:
                self._triggers.append((msgspec.json.decode(message.payload, type=_Trigger), now))
            else:
                order = msgspec.json.decode(message.payload, type=_Command)
                if order.command == "reset":
                    self._forget_triggers()
                self._commands.append(order)
        except (ValueError, RecursionError) as error:
            self._answer({"topic": message.topic, "taken": False, "reason": str(error)})

    def _forget_triggers(self) -> None:
        """Refuse those that wait: who resets may use their part ids again."""
        while self._triggers:
            self._refuse(self._triggers.popleft()[0].part, "a reset came behind it")

    def _refuse(self, part: int, reason: str) -> None:
        self._answer({"part": part, "taken": False, "reason": reason})

    def inputs(self, now: float) -> Inputs:
        """Return what a PLC would have written now."""
        changes: dict[str, Any] = {"error_ack": False}
        if self._acknowledged:
            changes["trigger"] = self._acknowledged = False
        elif not self._inputs.trigger:
            while self._triggers:
                asked, at = self._triggers.popleft()
                if now - at <= self._fresh_s:
                    changes |= {"trigger": True, "part_id": asked.part, "encoder": asked.encoder}
                    break
                self._refuse(asked.part, "it has waited too long")
        if self._inputs.command == 0 and self._commands:
            order = self._commands.popleft()
            if order.command == "acknowledge":
                changes["error_ack"] = True
                self._answer({"command": order.command, "done": True})
            else:
                # A trigger that was set before; one that comes with the reset came behind it.
                self._dropped = order.command == "reset" and self._inputs.trigger and "trigger" not in changes
                changes |= {"command": CommandCode[order.command.upper()], "command_value": order.value}
        self._inputs = msgspec.structs.replace(self._inputs, **changes)
        return self._inputs

    @property
    def waiting(self) -> bool:
        """Whether `inputs` has something new to say already."""
        free = not self._inputs.trigger or self._acknowledged
        order = self._inputs.command == 0 and bool(self._commands)
        return self._acknowledged or (free and bool(self._triggers)) or order or self._inputs.error_ack

    def see(self, outputs: Outputs) -> None:
        """Take what a PLC would see now."""
        inputs = self._inputs
        if outputs.trigger_ack and inputs.trigger and not self._acknowledged:
            self._answer({"part": inputs.part_id, "taken": True})
            self._acknowledged = True
        if inputs.command and outputs.command_echo == inputs.command:
            name = CommandCode(inputs.command).name.lower()
            if self._dropped and not self._acknowledged:
                # It will not be acknowledged any more.
                self._refuse(inputs.part_id, "a reset came behind it")
                self._acknowledged = True
            self._dropped = False
            self._answer({"command": name, "done": outputs.command_status == CommandStatus.DONE})
            self._inputs = msgspec.structs.replace(self._inputs, command=0)

    def acknowledge_result(self, value: bool) -> None:
        """Set or clear ResultAck."""
        self._inputs = msgspec.structs.replace(self._inputs, result_ack=value)
