"""Triggers and commands over MQTT, without a broker: what a PLC's program would have written."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("paho.mqtt.client")

from edge.bridges.handshake import AskStation, Handshake, Timing
from edge.bridges.mqtt_link import Received
from edge.bridges.mqtt_remote import Remote
from edge.bridges.tags import CommandCode, CommandStatus, Inputs, Outputs


class Rig:
    """A remote and what it has answered."""

    def __init__(self) -> None:
        self.answers: list[dict[str, Any]] = []
        self.remote = Remote(10.0, self.answers.append)

    def trigger(self, part: int) -> None:
        self.remote.take(Received("t", json.dumps({"part": part}).encode(), False), True, 0.0)

    def command(self, **fields: Any) -> None:
        self.remote.take(Received("c", json.dumps(fields).encode(), False), False, 0.0)

    def read(self) -> Inputs:
        return self.remote.inputs(0.0)


def test_a_reset_forgets_the_triggers_before_it_and_none_behind_it() -> None:
    rig = Rig()
    for part in (1, 2):
        rig.trigger(part)
    rig.command(command="reset")
    rig.trigger(3)
    inputs = rig.read()
    assert (inputs.command, inputs.trigger, inputs.part_id) == (CommandCode.RESET, True, 3)
    rig.remote.see(Outputs(command_echo=CommandCode.RESET, command_status=CommandStatus.DONE))
    assert [(each["part"], each["taken"]) for each in rig.answers[:-1]] == [(1, False), (2, False)]
    assert rig.answers[-1] == {"command": "reset", "done": True}
    assert rig.read().trigger


def test_a_trigger_that_a_reset_drops_is_refused_and_the_next_one_comes() -> None:
    rig = Rig()
    handshake = Handshake("plc1", "run", Timing(plc_timeout_s=None))
    handshake.station_alive("running", 0.0)
    handshake.read(rig.read(), 0.0)
    rig.trigger(1)
    (asked,) = handshake.read(rig.read(), 0.0)
    assert isinstance(asked, AskStation)
    rig.command(command="reset")
    for _ in range(3):
        assert handshake.read(rig.read(), 0.0) == []
        rig.remote.see(handshake.outputs(0.0))
    assert [each for each in rig.answers if "part" in each] == [
        {"part": 1, "taken": False, "reason": "a reset came behind it"}
    ]
    assert {"command": "reset", "done": True} in rig.answers
    # The same id again, of another part: the old one's being taken is not its own.
    rig.trigger(1)
    (again,) = handshake.read(rig.read(), 0.0)
    assert isinstance(again, AskStation)
    assert again.part != asked.part
    handshake.trigger_taken(asked.part, 0.0)
    rig.remote.see(handshake.outputs(0.0))
    assert len([each for each in rig.answers if "part" in each]) == 1
    handshake.trigger_taken(again.part, 0.0)
    rig.remote.see(handshake.outputs(0.0))
    assert rig.answers[-1] == {"part": 1, "taken": True}


def test_too_much_at_a_time_is_refused() -> None:
    rig = Rig()
    for part in range(1, 20):
        rig.trigger(part)
    assert len(rig.answers) == 3
    assert all("too much" in each["reason"] for each in rig.answers)
    rig.remote.see(Outputs())
