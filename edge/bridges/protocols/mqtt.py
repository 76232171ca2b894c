"""MQTT: every event to a broker, for a plant's records and screens; as JSON or as Sparkplug B.

    redi/STATION/CAMERA/event      every event, the fields of docs/events.md without the mask; QoS 1
    redi/STATION/CAMERA/status     the station's state, retained; `{"state":"offline"}` is also our last will

An event counts as told when the broker has acknowledged it.  With `commands`, who may write these topics can trigger:

    redi/STATION/CAMERA/trigger    to us: {"part": 7, "encoder": 1234}
    redi/STATION/CAMERA/command    to us: {"command": "acknowledge"}, "reset", or "recipe" with a "value"
    redi/STATION/CAMERA/answer     {"part": 7, "taken": true}, or with a reason why not; likewise for a command
    redi/STATION/CAMERA/result     {"part": 7, "verdict": "ok", ...}
    redi/STATION/CAMERA/heartbeat  counts up, QoS 0

Sparkplug B has its own topics for events and state, at QoS 0 as it demands; an empty message at QoS 1 on
`redi/STATION/CAMERA/told`, behind each event on the same connection, then tells that the broker has taken it.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edge.bridges.base import EventPlc, Milliseconds, PlcLostError, PlcSettings, Port, Protocol
from edge.bridges.mqtt_link import Broker, Link, tls_context
from edge.bridges.mqtt_remote import Remote, Reply
from edge.bridges.passwords import read_password
from edge.bridges.sparkplug_node import Message, SparkplugNode
from edge.bridges.tags import (
    RESULT_FIELDS,
    Direction,
    ErrorCode,
    Inputs,
    Outputs,
    StateCode,
    Tag,
    VerdictCode,
)
from edge.events.schema import Event

_OFFLINE = b'{"state":"offline"}'
# What a topic's level cannot hold.
_UNFIT = str.maketrans(dict.fromkeys("+#/\0", "_"))

Level = Annotated[str, msgspec.Meta(max_length=64, pattern=r"^[^+#/\x00]*$")]


class MqttSettings(PlcSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of an MQTT broker.

    Attributes:
        plc_heartbeat: cannot be set: whoever listens to a broker has none.
        host, port: the broker's.
        station: its level of the topics; the machine's name where empty.
        format: of events and state.
        group: the group id of Sparkplug B, whose node is the station and whose device is `camera`.
        retain: the broker keeps the last event, as JSON, for who subscribes later.
        commands: take triggers and commands.
        user, password_file: where the broker asks for them; the file holds the password alone.
        tls: encrypt, and check the broker's certificate.
        ca_file: who has signed it; the system's authorities where empty.
        certificate_file, key_file: our own, where the broker asks for one.
        client_id: by default made of station and name; the broker admits each once.
        version: of MQTT; 3.1.1 does not tell when a broker's rules keep a message back.
        keepalive_s: after one and a half of it, a broker that does not hear us says that we are offline.
        timeout_ms: for connecting, and for each acknowledgement.
    """

    plc_heartbeat: bool = False
    host: str = "127.0.0.1"
    port: Port = 1883
    station: Level = ""
    camera: Level = ""
    format: Literal["json", "sparkplug"] = "json"
    group: Level = "redi"
    retain: bool = False
    commands: bool = False
    user: str = ""
    password_file: str = ""
    tls: bool = False
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    client_id: Annotated[str, msgspec.Meta(max_length=256)] = ""
    version: Literal["5", "3.1.1"] = "5"
    keepalive_s: Annotated[int, msgspec.Meta(ge=1, le=3600)] = 5
    timeout_ms: Milliseconds = 2000.0

    def __post_init__(self) -> None:
        if self.plc_heartbeat:
            raise ValueError("plc_heartbeat cannot be true: nobody's heartbeat comes over MQTT")
        if self.format == "sparkplug" and not (self.camera and self.group):
            raise ValueError("format = sparkplug needs the keys camera, its device id, and group")
        if bool(self.user) != bool(self.password_file):
            raise ValueError("user and password_file go together")
        if not self.tls and (self.ca_file or self.certificate_file or self.key_file):
            raise ValueError("ca_file, certificate_file and key_file are for tls = true")

    @property
    def node(self) -> str:
        """The station's level of the topics."""
        return self.station or socket.gethostname().translate(_UNFIT)

    def topic(self, kind: str, camera: str = "") -> str:
        """Return one of our own topics."""
        camera = (camera or self.camera).translate(_UNFIT)
        return "/".join(filter(None, ("redi", self.node, camera, kind)))


class MqttPlc(EventPlc):
    """Tells a broker every event and the station's state; takes triggers where that is allowed."""

    polled = False

    def __init__(self, settings: MqttSettings, wake: Callable[[], None]) -> None:
        self._settings, self._wake = settings, wake
        self._link: Link | None = None
        self._node = None
        if settings.format == "sparkplug":
            self._node = SparkplugNode(settings.group, settings.node, settings.camera)
        self._begin()

    def _begin(self) -> None:
        """Forget what was told and asked on the last connection."""
        self._seen: Outputs | None = None
        self._status = b""
        self._acknowledge_error = False
        self._remote = None
        if self._settings.commands:
            self._remote = Remote(self._settings.trigger_timeout_ms / 1000, self._answer)

    def open(self) -> None:
        """Connect to the broker, and leave our last will."""
        settings = self._settings
        broker = Broker(
            host=settings.host,
            port=settings.port,
            client_id=settings.client_id or f"redi-{settings.node}-{settings.name}",
            version=settings.version,
            user=settings.user,
            password=read_password(Path(settings.password_file)) if settings.user else "",
            context=tls_context(settings.ca_file, settings.certificate_file, settings.key_file)
            if settings.tls
            else None,
            timeout_s=settings.timeout_ms / 1000,
            keepalive_s=settings.keepalive_s,
        )
        self._begin()
        topics = [settings.topic("trigger"), settings.topic("command")] if settings.commands else []
        will = (settings.topic("status"), _OFFLINE, True)
        if self._node is not None:
            topics.append(self._node.command_topic)
            will = (*self._node.death(), False)
        self._link = Link(broker, self._wake)
        try:
            self._link.open(will, topics)
            if self._node is not None:
                self._publish(self._node.begin())
        except PlcLostError:
            self.close()
            raise

    def read(self) -> Inputs:
        """Return what was asked for since."""
        link = self._connected()
        link.check()
        now = time.monotonic()
        for message in link.received():
            if self._node is not None and message.topic == self._node.command_topic:
                if self._node.asks_rebirth(Message(message.topic, message.payload)):
                    self._publish(self._node.birth())
            elif self._remote is not None:
                self._remote.take(message, message.topic == self._settings.topic("trigger"), now)
        if self._remote is None:
            # Nobody else acknowledges errors.
            self._acknowledge_error, acknowledge = False, self._acknowledge_error
            inputs, waiting = Inputs(error_ack=acknowledge), acknowledge
        else:
            inputs = self._remote.inputs(now)
            waiting = self._remote.waiting
        if waiting:
            self._wake()
        return inputs

    def write(self, outputs: Outputs) -> None:
        """Tell the state where it has changed, and a new result."""
        link = self._connected()
        if self._node is not None:
            self._publish(self._node.status(outputs))
        elif (status := _status(outputs)) != self._status:
            link.publish(self._settings.topic("status"), status, retain=True)
            self._status = status
        if self._remote is None:
            if outputs.error:
                self._acknowledge_error = True
                self._wake()
            return
        before, self._seen = self._seen, outputs
        if before is None or before.heartbeat != outputs.heartbeat:
            link.publish(self._settings.topic("heartbeat"), str(outputs.heartbeat).encode(), qos=0)
        self._remote.see(outputs)
        if outputs.result_valid and (before is None or _result(before) != _result(outputs)):
            link.publish(self._settings.topic("result"), msgspec.json.encode(_result(outputs)))
        self._remote.acknowledge_result(outputs.result_valid)
        if self._remote.waiting or outputs.result_valid != (before is not None and before.result_valid):
            self._wake()

    def event(self, event: Event) -> None:
        """Publish an event."""
        link = self._connected()
        if self._node is None:
            topic = self._settings.topic("event", event.camera)
            link.publish(topic, msgspec.json.encode(event), retain=self._settings.retain)
        else:
            self._publish(self._node.event(event))
            link.publish(self._settings.topic("told"), b"")

    def settle(self) -> None:
        """Wait for the broker's acknowledgements."""
        self._connected().settle()

    def close(self) -> None:
        """Say that we are offline, and disconnect."""
        link, self._link = self._link, None
        if link is None:
            return
        try:
            if self._node is None:
                link.publish(self._settings.topic("status"), _OFFLINE, retain=True)
            else:
                link.publish(*self._node.last_words())
            link.settle()
        except PlcLostError:
            # Then the last will says it.
            pass
        finally:
            link.close()

    def _connected(self) -> Link:
        if self._link is None:
            raise PlcLostError("there is no connection to the broker")
        return self._link

    def _publish(self, messages: list[Message]) -> None:
        for message in messages:
            self._connected().publish(*message, qos=0)

    def _answer(self, answer: Reply) -> None:
        self._connected().publish(self._settings.topic("answer"), msgspec.json.encode(answer))


def _status(outputs: Outputs) -> bytes:
    return msgspec.json.encode(
        {
            "state": StateCode(outputs.state).name.lower(),
            "ready": outputs.ready,
            "busy": outputs.busy,
            "error": ErrorCode(outputs.error_code).name.lower(),
        }
    )


def _result(outputs: Outputs) -> dict[str, object]:
    if not outputs.result_valid:
        return {}
    fields = {field: getattr(outputs, field) for field in RESULT_FIELDS}
    return {"part": fields.pop("part_id"), **fields, "verdict": VerdictCode(outputs.verdict).name.lower()}


_INPUT_KEYS = {
    "trigger": "trigger",
    "part_id": "trigger part",
    "encoder": "trigger encoder",
    "error_ack": "command acknowledge",
    "command": "command command",
    "command_value": "command value",
}
_STATUS_KEYS = {"ready": "ready", "busy": "busy", "state": "state", "error": "error", "error_code": "error"}
_SPARKPLUG_METRICS = {
    "ready": "Station/Ready",
    "state": "Station/State",
    "error": "Station/Error",
    "error_code": "Station/Error",
}
_ANSWER_KEYS = {"trigger_ack": "answer taken", "command_echo": "answer command", "command_status": "answer done"}


def _address(settings: MqttSettings, tag: Tag) -> str:
    """Return a topic and the key of its JSON object, or the metric's name."""
    if tag.direction is Direction.TO_PLC and tag.field in _STATUS_KEYS:
        if settings.format == "sparkplug":
            return f"metric {_SPARKPLUG_METRICS[tag.field]}" if tag.field in _SPARKPLUG_METRICS else "none"
        return f"{settings.topic('status')} {_STATUS_KEYS[tag.field]}"
    if not settings.commands:
        return "none"
    if tag.direction is Direction.FROM_PLC:
        where = _INPUT_KEYS.get(tag.field, "")
    elif tag.field in RESULT_FIELDS:
        where = f"result {'part' if tag.field == 'part_id' else tag.field}"
    else:
        where = {"heartbeat": "heartbeat", "result_valid": "result", **_ANSWER_KEYS}[tag.field]
    kind, _, key = where.partition(" ")
    return f"{settings.topic(kind)} {key}".rstrip() if kind else "none"


PROTOCOL = Protocol(settings=MqttSettings, connect=MqttPlc, address=_address)
